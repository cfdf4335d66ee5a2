"""What test_jax.py runs in processes of its own, which have several devices each.

    python jax_mesh.py ADDRESS PROCESSES INDEX COORDINATOR

Prints, as JSON, what each way of calling gave to this process's devices, and the shapes of the calls it made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pkpo_client import Client
from pkpo_client.integrations.jax import transform

DEVICES = 8
# More than enough for every device to have two groups, and no two of them alike.
REWARDS = np.random.default_rng(7).random((2 * DEVICES, 4), dtype=np.float32)


class Counted:
    """A client, and the shapes it was asked for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.shapes: list[tuple[int, ...]] = []

    def transform(self, rewards: Any, *arguments: Any, **options: Any) -> Any:
        self.shapes.append(rewards.shape)
        return self._client.transform(rewards, *arguments, **options)


def main(address: str, processes: int, index: int, coordinator: str) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, processes, index)
    assert jax.device_count() == DEVICES
    printed = {}
    with Client(address) as client:
        pkpo: Any = Counted(client)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(kind,))
            rows = PartitionSpec("data")
            mine = np.split(REWARDS, processes)[index]
            rewards = jax.make_array_from_process_local_data(NamedSharding(mesh, rows), mine)

            def whole(rewards: jax.Array) -> jax.Array:
                return transform(pkpo, rewards, 2)

            ways: dict[str, Callable[[jax.Array], jax.Array]] = {
                "jit": whole,
                "jit, and more behind it": lambda rewards: transform(pkpo, rewards, 2) + 0 * rewards,
                "shard_map": jax.shard_map(whole, mesh=mesh, in_specs=rows, out_specs=rows),
            }
            for way, function in ways.items():
                found = jax.block_until_ready(jax.jit(function)(rewards))
                shards = [[_start(shard), np.asarray(shard.data).tolist()] for shard in found.addressable_shards]
                jax.effects_barrier()
                printed[f"{way}, {kind.name}"] = {"shards": shards, "calls": sorted(pkpo.shapes)}
                pkpo.shapes.clear()
    print(json.dumps(printed))


def _start(shard: Any) -> int:
    """The first row a device holds."""
    return int(shard.index[0].start or 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
