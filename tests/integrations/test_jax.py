"""Advantages under jit: the client's, with every transformation of JAX, and on several devices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs jax")

import jax.numpy as jnp  # noqa: E402

import reference  # noqa: E402
from live_server import LiveServer  # noqa: E402
from pages import ROOT, blocks, check_page  # noqa: E402
from pkpo_client import Client, InvalidArgument, LocalClient  # noqa: E402
from pkpo_client.integrations.jax import transform  # noqa: E402

from .jax_mesh import DEVICES, REWARDS, Counted  # noqa: E402

PAGE = ROOT / "docs" / "integrations" / "jax.md"
VALUES = [[1.0, 0.0, 0.25, 1.0], [0.5, 0.5, 0.0, 2.0]]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(scope="module")
def pkpo(server: LiveServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture
def counted(pkpo: Client) -> Any:
    return Counted(pkpo)


@pytest.fixture
def x64() -> Iterator[None]:
    was = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", was)


def exact(rewards: Any, k: int, scale: str = "sum") -> np.ndarray:
    return np.array([reference.advantages("sloo_minus_one", row, k, scale=scale) for row in np.asarray(rewards, float)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_under_jit_the_advantages_are_exact_and_of_the_dtype_given(pkpo: Client, dtype: str) -> None:
    rewards = jnp.array(VALUES, dtype)
    found = jax.jit(lambda r: transform(pkpo, r, 2))(rewards)
    assert found.dtype == rewards.dtype
    assert found.tolist() == jnp.array(exact(rewards, 2), jnp.float32).astype(dtype).tolist()


def test_float64(pkpo: Client, x64: None) -> None:
    rewards = jnp.array(VALUES)
    found = jax.jit(lambda r: transform(pkpo, r, 2, scale="mean"))(rewards)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, exact(VALUES, 2, "mean"), rtol=1e-14)
    assert jax.jit(lambda r: transform(pkpo, r, 2))(jnp.array([[1, 0, 1]])).dtype == np.float64


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integers_and_bools_give_the_widest_float(pkpo: Client, dtype: str) -> None:
    found = jax.jit(lambda r: transform(pkpo, r, 2))(jnp.array([[1, 0, 1, 0]], dtype))
    assert found.dtype == np.float32
    assert found.tolist() == np.float32(exact([[1, 0, 1, 0]], 2)).tolist()


@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 2, 4), (0, 4)])
def test_groups_are_rows_whatever_the_axes_before(pkpo: Client, shape: tuple[int, ...]) -> None:
    rewards = np.random.default_rng(1).random(shape)
    found = jax.jit(lambda r: transform(pkpo, r, 3))(jnp.asarray(rewards))
    assert found.shape == shape
    expected = exact(np.float32(rewards).reshape(-1, 4), 3).reshape(shape)
    np.testing.assert_array_equal(found, np.float32(expected))


def test_another_k_is_not_another_compilation(pkpo: Client) -> None:
    traces = []

    @jax.jit
    def advantages(rewards: Any, k: Any) -> Any:
        traces.append(k)
        return transform(pkpo, rewards, k)

    for k in (1, 2, 4):
        assert advantages(jnp.array(VALUES), k).tolist() == np.float32(exact(VALUES, k)).tolist()
    assert len(traces) == 1


def test_one_k_for_each_group(pkpo: Client) -> None:
    expected = np.float32([exact([VALUES[0]], 1)[0], exact([VALUES[1]], 4)[0]])
    rewards = jnp.array(VALUES)
    for k in ([1, 4], np.array([1, 4]), jnp.array([1, 4])):
        assert transform(pkpo, rewards, k).tolist() == expected.tolist()
    assert jax.jit(lambda r, k: transform(pkpo, r, k))(rewards, jnp.array([1, 4])).tolist() == expected.tolist()


def test_ids_and_masks(pkpo: Client) -> None:
    rewards, ids = jnp.array([1.0, 5.0, 0.0, 7.0, 2.0]), jnp.array([3, 9, 3, 9, 3])
    mask = jnp.array([True, True, True, True, False])
    expected = pkpo.transform(np.asarray(rewards), 2, group_ids=np.asarray(ids), mask=np.asarray(mask))
    assert expected.tolist() == [1.0, 0.0, 0.0, 2.0, 0.0]
    found = jax.jit(lambda r, i, m: transform(pkpo, r, 2, group_ids=i, mask=m))(rewards, ids, mask)
    assert found.tolist() == expected.tolist()
    named = jax.jit(lambda r, m: transform(pkpo, r, 2, group_ids=["b", "a", "b", "a", "b"], mask=m))(rewards, mask)
    assert named.tolist() == expected.tolist()
    nowhere = jnp.array([[1.0, jnp.nan, 0.0, 0.5]])
    found = jax.jit(lambda r: transform(pkpo, r, 2, mask=~jnp.isnan(r)))(nowhere)
    assert found.tolist() == pkpo.transform(np.asarray(nowhere), 2, mask=~np.isnan(nowhere)).tolist()


def test_a_seed_may_be_traced(pkpo: Client) -> None:
    rewards = jnp.array([[1.0, 0.0, 0.5, 0.75, 0.25, 2.0]])

    def drawn(seed: Any) -> Any:
        return transform(pkpo, rewards, 3, variant="passk_bootstrap", seed=seed)

    found = [jax.jit(drawn)(jnp.uint32(seed)).tolist() for seed in (1, 2)]
    assert found == [
        pkpo.transform(np.asarray(rewards), 3, variant="passk_bootstrap", seed=seed).tolist() for seed in (1, 2)
    ]
    assert found[0] != found[1]
    assert jax.vmap(drawn)(jnp.array([1, 2], jnp.uint32)).tolist() == found


def test_vmap_is_one_call(counted: Any) -> None:
    batch = jnp.asarray(np.random.default_rng(2).random((5, 2, 4), np.float32))
    found = jax.jit(jax.vmap(lambda r: transform(counted, r, 2)))(batch)
    assert counted.shapes == [(10, 4)]
    assert found.tolist() == np.float32(exact(batch.reshape(-1, 4), 2)).reshape(batch.shape).tolist()
    counted.shapes.clear()
    prompts = jax.vmap(jax.vmap(lambda r: transform(counted, r, 2)))(batch)
    assert prompts.tolist() == found.tolist()
    assert counted.shapes == [(10, 4)]


def test_vmap_over_k_and_masks(counted: Any) -> None:
    rewards = jnp.array(VALUES)
    found = jax.vmap(lambda k: transform(counted, rewards, k))(jnp.array([1, 2, 4]))
    assert found.tolist() == [np.float32(exact(VALUES, k)).tolist() for k in (1, 2, 4)]
    both = jax.vmap(lambda k: transform(counted, rewards, k))(jnp.array([[1, 2], [4, 3]]))
    assert both.tolist() == [transform(counted, rewards, jnp.array(k)).tolist() for k in ([1, 2], [4, 3])]
    masks = jnp.array([[[True] * 4, [True] * 4], [[True] * 4, [True, False, True, True]]])
    found = jax.vmap(lambda m: transform(counted, rewards, 2, mask=m))(masks)
    assert found.tolist() == [counted.transform(np.float32(VALUES), 2, mask=np.asarray(m)).tolist() for m in masks]


def test_vmap_with_ids_is_a_call_for_each(counted: Any) -> None:
    batch, ids = jnp.array([[1.0, 0.0, 2.0, 3.0], [4.0, 3.0, 0.0, 1.0]]), ["x", "x", "y", "y"]
    found = jax.vmap(lambda r: transform(counted, r, 2, group_ids=ids))(batch)
    assert found.tolist() == [[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]
    assert counted.shapes == [(4,), (4,)]


def test_advantages_are_constants_to_a_gradient(counted: Any) -> None:
    weights = jnp.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])

    def loss(weights: Any) -> Any:
        # Rewards that depend on what is differentiated, as those of a reward model that shares its trunk.
        advantages = transform(counted, weights * weights, 2)
        return -(advantages * jnp.log(weights)).sum()

    expected = -exact(np.float32(weights * weights), 2) / np.asarray(weights)
    for gradient in (
        jax.grad(loss),
        jax.jit(jax.grad(loss)),
        jax.jit(jax.grad(jax.checkpoint(loss))),
        jax.jit(jax.jacfwd(loss)),
    ):
        np.testing.assert_allclose(gradient(weights), expected, rtol=1e-6)
    assert jax.grad(lambda r: transform(counted, r, 2).sum())(weights).tolist() == np.zeros((2, 4)).tolist()


def test_scan_is_a_call_for_each_step(counted: Any) -> None:
    rewards = jnp.asarray(np.random.default_rng(3).random((3, 2, 4), np.float32))
    ks = jnp.array([4, 2, 1])

    def step(carried: Any, this: Any) -> tuple[Any, Any]:
        advantages = transform(counted, *this)
        return carried + advantages.sum(), advantages

    total, found = jax.jit(lambda r, k: jax.lax.scan(step, 0.0, (r, k)))(rewards, ks)
    expected = [np.float32(exact(r, int(k))).tolist() for r, k in zip(rewards, ks, strict=True)]
    assert found.tolist() == expected
    assert float(total) == pytest.approx(float(np.sum(expected)))
    assert counted.shapes == [(2, 4)] * 3


def test_what_nobody_uses_is_not_asked_for(counted: Any) -> None:
    def unused(rewards: Any) -> Any:
        transform(counted, rewards, 2)
        return rewards * 2

    jax.block_until_ready(jax.jit(unused)(jnp.array(VALUES)))
    assert counted.shapes == []


def test_a_large_batch(pkpo: Client) -> None:
    rewards = np.random.default_rng(4).random((20000, 16), np.float32)
    found = jax.jit(lambda r: transform(pkpo, r, 4))(rewards)
    assert np.array_equal(found, pkpo.transform(rewards, 4))


@pytest.mark.parametrize(
    ("rewards", "arguments", "says"),
    [
        (VALUES, {"k": 5}, "InvalidArgument: k[0]: is 5 for group 0 of n = 4"),
        (VALUES, {"k": 1.5}, "InvalidArgument: k[0]: is 1.5"),
        ([[1.0, float("nan")]], {"k": 2}, "InvalidArgument: groups.rewards[1]"),
        (VALUES, {"k": 2, "variant": "best"}, "InvalidArgument: variant: is 'best'"),
        (VALUES, {}, "InvalidArgument: k: is None"),
    ],
)
def test_what_the_service_refuses_is_raised_and_never_zeros(
    pkpo: Client, rewards: Any, arguments: dict[str, Any], says: str
) -> None:
    for call in (lambda r: transform(pkpo, r, **arguments), jax.jit(lambda r: transform(pkpo, r, **arguments))):
        with pytest.raises(jax.errors.JaxRuntimeError) as caught:
            jax.block_until_ready(call(jnp.array(rewards)))
        assert says in str(caught.value)


def test_an_advantage_that_does_not_fit_is_raised(pkpo: Client) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="does not fit"):
        jax.jit(lambda r: transform(pkpo, r, 1, scale="mean"))(jnp.array([[6e4, -6e4]], "float16")).block_until_ready()


def test_what_cannot_be_is_refused_while_tracing(pkpo: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"rewards: has shape \(\)"):
        jax.jit(lambda r: transform(pkpo, r, 1))(1.0)
    with pytest.raises(InvalidArgument, match=r"mask: has shape \(4,\); must be that of the rewards, \(2, 4\)"):
        jax.jit(lambda r: transform(pkpo, r, 1, mask=jnp.ones(4, bool)))(jnp.array(VALUES))
    with pytest.raises(InvalidArgument, match=r"k: has shape \(3,\); must be \(\) or, one for each group, \(2,\)"):
        jax.jit(lambda r: transform(pkpo, r, [1, 2, 3]))(jnp.array(VALUES))


def test_a_service_that_is_away_is_raised_or_replaced() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with Client(address, timeout=0.3) as away, pytest.raises(jax.errors.JaxRuntimeError, match="Unreachable"):
            jax.block_until_ready(jax.jit(lambda r: transform(away, r, 2))(jnp.array(VALUES)))
        with Client(address, timeout=0.3, fallback="local") as replaced:
            found = jax.jit(lambda r: transform(replaced, r, 2))(jnp.array(VALUES))
    assert found.tolist() == np.float32(exact(VALUES, 2)).tolist()


def test_in_process() -> None:
    with LocalClient() as here:
        found = jax.jit(lambda r: transform(here, r, 2))(jnp.array(VALUES))
    assert found.tolist() == np.float32(exact(VALUES, 2)).tolist()


def on_devices(server: LiveServer, processes: int) -> list[dict[str, Any]]:
    """What jax_mesh.py printed in each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(__file__).with_name("jax_mesh.py")
    running = [
        subprocess.Popen(
            [sys.executable, program, server.address, str(processes), str(index), coordinator],
            env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        said = [process.communicate(timeout=250) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, said, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(printed.splitlines()[-1]) for printed, _ in said]


@pytest.mark.parametrize("processes", [1, 2])
def test_sharded_rewards(server: LiveServer, processes: int) -> None:
    """jit gathers them for one call by the first process; shard_map makes one call for each device, by its process."""
    expected = np.float32(exact(REWARDS, 2))
    found = on_devices(server, processes)
    whole, shard = [list(REWARDS.shape)], [[len(REWARDS) // DEVICES, REWARDS.shape[1]]]
    for index, ways in enumerate(found):
        assert len(ways) == 6
        for way, outcome in ways.items():
            assert len(outcome["shards"]) == DEVICES // processes
            for start, values in outcome["shards"]:
                assert values == expected[start : start + len(values)].tolist(), way
            if way.startswith("shard_map"):
                assert outcome["calls"] == shard * (DEVICES // processes)
            else:
                assert outcome["calls"] == (whole if index == 0 else []), way


def test_the_page_does_what_it_says(server: LiveServer) -> None:
    assert sum(block.language == "python" for block in blocks(PAGE)) >= 3
    check_page(PAGE, server)
