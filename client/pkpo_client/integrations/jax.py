"""Advantages inside `jax.jit`, for a trainer of your own: `Client.transform` as a `jax.pure_callback`.

    @jax.jit
    def loss(log_probs, rewards, k):
        advantages = transform(pkpo, rewards, k)
        return -(advantages * log_probs).sum(axis=1).mean()

docs/integrations/jax.md tells which process calls, and what happens when a call fails.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from pkpo_client.client import Client
from pkpo_client.errors import refused
from pkpo_client.local_client import LocalClient


def transform(
    client: Client | LocalClient,
    rewards: Any,
    k: Any = None,
    *,
    group_ids: Any = None,
    mask: Any = None,
    seed: Any = 0,
    **options: Any,
) -> jax.Array:
    """Advantages that optimise pass@k / max@k, wherever JAX traces: under jit, vmap, scan, remat, shard_map and grad.

    The values are those of `Client.transform`, and constants to a gradient: whatever `rewards` depend on gets none
    through them.

    Args:
        client: who computes; it outlives the compiled function.
        rewards: (..., n), where every row along the last axis is a group, or (samples,) with `group_ids`.
        k: as in `Client.transform`: an integer, or integers of shape (...,), one per group. May be traced, so that
            another k is not another compilation.
        group_ids: (samples,) as in `Client.transform`. May be traced.
        mask: of the shape of `rewards`, as in `Client.transform`. May be traced.
        seed: of the variant passk_bootstrap. May be traced.
        options: the other arguments of `Client.transform`: variant, scale, k_policy, run_id, timeout.

    Under `vmap` the batch's groups go in one call, and are numbered through (which only passk_bootstrap can tell);
    with `group_ids` or a traced seed it is one call for each element, one after the other.

    Returns:
        The advantages, of the shape and dtype of the rewards. Integers and bools give float64 where
        `jax_enable_x64` is set, else float32.

    Raises:
        InvalidArgument: `rewards` has no axis, or `k` or `mask` a shape that does not fit it.
        jax.errors.JaxRuntimeError: the call failed where it ran; what `Client.transform` raised is in the message.
    """
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards))
    if rewards.ndim == 0:
        raise refused("rewards", "has shape (); must be (..., n), or (samples,) with group_ids")
    traced: dict[str, Any] = {}
    if k is not None:
        traced["k"] = jnp.asarray(k)
        if group_ids is None and traced["k"].shape not in ((), rewards.shape[:-1]):
            shapes = f"() or, one for each group, {rewards.shape[:-1]}"
            raise refused("k", f"has shape {traced['k'].shape}; must be {shapes}")
    if mask is not None:
        traced["mask"] = jnp.asarray(mask)
        if traced["mask"].shape != rewards.shape:
            raise refused("mask", f"has shape {traced['mask'].shape}; must be that of the rewards, {rewards.shape}")
    known = {"group_ids": group_ids, "seed": seed}
    for name, value in known.items():
        if isinstance(value, jax.Array):
            traced[name] = value
    floating = jnp.issubdtype(rewards.dtype, jnp.floating)
    dtype = rewards.dtype if floating else jax.dtypes.canonicalize_dtype(np.float64)

    def answer(rewards: Any, traced: dict[str, Any]) -> NDArray[Any]:
        values = np.asarray(rewards)
        given = {**known, **{name: np.asarray(value) for name, value in traced.items()}}
        if group_ids is None:
            *leading, n = values.shape
            rows = (math.prod(leading), n)
            if "k" in given and given["k"].ndim:
                # The axes that vmap adds come first.
                k_axes = given["k"].shape + (1,) * (len(leading) - given["k"].ndim)
                given["k"] = np.broadcast_to(given["k"].reshape(k_axes), leading).ravel()
            if "mask" in given:
                given["mask"] = given["mask"].reshape(rows)
            values = values.reshape(rows)
        answered: NDArray[Any] = client.transform(values, **given, **options)
        narrowed: NDArray[Any] = answered.astype(dtype, copy=False).reshape(np.shape(rewards))
        return narrowed

    advantages = jax.pure_callback(
        answer,
        jax.ShapeDtypeStruct(rewards.shape, dtype),
        rewards,
        traced,
        vmap_method="broadcast_all" if group_ids is None and "seed" not in traced else "sequential",
    )
    # A callback's result lives on the first device of all, in a sharding that no array of a mesh may have: without
    # something behind it, a function that returns it as it is fails. Guarded by test_sharded_rewards.
    barred: jax.Array = jax.lax.optimization_barrier(advantages)
    return barred


__all__ = ["transform"]
