"""Requests are written as bytes around the bytes of the rewards: they say what a message filled by protobuf says."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import codec
from pkpo_client.options import K_POLICIES, SCALES, VARIANTS
from pkpo_client.work import Batch, EstimateBatch

words = st.integers(0, 2**64 - 1)
several_k = st.lists(st.integers(0, 2**32 - 1), max_size=4)


@st.composite
def rewards_and_sizes(draw: st.DrawFn) -> tuple[NDArray[Any], int | NDArray[np.int64]]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    if draw(st.booleans()):
        sizes = [sizes[0]] * len(sizes)
    dtype = draw(st.sampled_from((np.float64, np.float32)))
    rewards = np.random.default_rng(draw(st.integers(0, 99))).normal(size=sum(sizes)).astype(dtype)
    return rewards, sizes[0] if len(set(sizes)) == 1 else np.array(sizes)


def groups_message(rewards: NDArray[Any], sizes: int | NDArray[np.int64]) -> pb.RewardGroups:
    message = pb.RewardGroups()
    (message.f64 if rewards.dtype == np.float64 else message.f32).values.extend(rewards.tolist())
    if isinstance(sizes, int):
        message.group_size = sizes
    else:
        message.group_sizes.sizes.extend(sizes.tolist())
    return message


def number_of_groups(rewards: NDArray[Any], sizes: int | NDArray[np.int64]) -> int:
    return len(rewards) // sizes if isinstance(sizes, int) else len(sizes)


@given(
    given=rewards_and_sizes(),
    variant=st.sampled_from(sorted(VARIANTS)),
    scale=st.sampled_from(sorted(SCALES)),
    k_policy=st.sampled_from(sorted(K_POLICIES)),
    k=st.one_of(st.none(), st.integers(0, 2**32 - 1), several_k.map(np.array)),
    estimate_k=several_k.map(tuple),
    seed=words,
    run_id=st.text("aZ9._:/-", max_size=128),
    first_group=words,
    sequence=words,
)
def test_a_request_says_what_protobuf_would(
    given: tuple[NDArray[Any], int | NDArray[np.int64]],
    variant: str,
    scale: str,
    k_policy: str,
    k: int | NDArray[np.int64] | None,
    estimate_k: tuple[int, ...],
    seed: int,
    run_id: str,
    first_group: int,
    sequence: int,
) -> None:
    rewards, sizes = given
    batch = Batch(
        timeout=1.0,
        rewards=rewards,
        group_sizes=sizes,
        number_of_groups=number_of_groups(rewards, sizes),
        variant=variant,
        scale=scale,
        k_policy=k_policy,
        k=k,
        estimate_k=estimate_k,
        seed=seed,
        run_id=run_id,
        first_group=first_group,
    )
    expected = pb.TransformRequest(
        groups=groups_message(rewards, sizes),
        variant=pb.Variant.ValueType(VARIANTS[variant]),
        k=[] if k is None else np.atleast_1d(k).tolist(),
        scale=pb.Scale.ValueType(SCALES[scale]),
        k_policy=pb.KPolicy.ValueType(K_POLICIES[k_policy]),
        estimate_k=estimate_k,
        seed=seed,
        run_id=run_id,
        first_group=first_group,
    )
    assert pb.TransformRequest.FromString(codec.transform_request(batch)) == expected
    numbered = pb.TransformStreamRequest.FromString(codec.stream_request(sequence, batch))
    assert numbered == pb.TransformStreamRequest(sequence=sequence, request=expected)


@given(given=rewards_and_sizes(), k=several_k.map(tuple))
def test_an_estimate_request_says_what_protobuf_would(
    given: tuple[NDArray[Any], int | NDArray[np.int64]], k: tuple[int, ...]
) -> None:
    rewards, sizes = given
    batch = EstimateBatch(
        timeout=1.0,
        rewards=rewards,
        group_sizes=sizes,
        number_of_groups=number_of_groups(rewards, sizes),
        k=k,
    )
    raw = codec.method(batch).request(batch)
    assert pb.EstimateRequest.FromString(raw) == pb.EstimateRequest(groups=groups_message(rewards, sizes), k=k)
