"""Every call's answer is core's answer, bit for bit, however the request was encoded."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

import pkpo
import pkpo_core
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_core import KPolicy, RewardGroups, Scale, Variant

RNG = np.random.default_rng(7)
BINARY_ONLY = {Variant.BINARY}
LEGAL_K = {Variant.TZSM: 0}


def rewards_for(variant: Variant, count: int, dtype: type = np.float64) -> np.ndarray:
    if variant in BINARY_ONLY:
        return RNG.integers(0, 2, count).astype(dtype)
    return RNG.normal(size=count).astype(dtype)


def message_of(rewards: np.ndarray, shape: int | list[int]) -> pb.RewardGroups:
    groups = pb.RewardGroups()
    if rewards.dtype == np.float32:
        groups.f32.CopyFrom(packed.float_values(rewards))
    else:
        groups.f64.CopyFrom(packed.double_values(rewards))
    if isinstance(shape, int):
        groups.group_size = shape
    else:
        groups.group_sizes.sizes.extend(shape)
    return groups


def advantages_of(response: pb.TransformResponse) -> np.ndarray:
    if response.WhichOneof("advantages") == "f32":
        return packed.array(response.f32.values, np.float32)
    return packed.array(response.f64.values, np.float64)


def assert_same(response: pb.TransformResponse, expected: pkpo_core.Transformed) -> None:
    advantages = advantages_of(response)
    assert advantages.dtype == expected.advantages.dtype
    assert advantages.tobytes() == expected.advantages.tobytes()
    statuses = list(response.group_statuses) or [0] * expected.group_statuses.size
    assert statuses == expected.group_statuses.tolist()
    assert [e.k for e in response.estimates] == [e.k for e in expected.estimates]
    for got, wanted in zip(response.estimates, expected.estimates, strict=True):
        assert np.array(got.values).tobytes() == wanted.values.tobytes()
        assert np.array(got.standard_errors).tobytes() == wanted.standard_errors.tobytes()


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [8, [8, 4, 16, 12]], ids=["uniform", "ragged"])
@pytest.mark.parametrize("scale", list(Scale))
def test_transform_equals_core(stub: Any, variant: Variant, dtype: type, shape: int | list[int], scale: Scale) -> None:
    rewards = rewards_for(variant, 40, dtype)
    k = LEGAL_K.get(variant, 4 if variant is not Variant.NAIVE_PARTITIONED_BASELINED else 2)
    request = pb.TransformRequest(
        groups=message_of(rewards, shape),
        variant=pb.Variant.Value(f"VARIANT_{variant.name}"),
        k=[k],
        scale=pb.Scale.Value(f"SCALE_{scale.name}"),
        estimate_k=[1, 4, 9],
        seed=2**64 - 1,
        first_group=2**64 - 2,
        run_id="org/run:1",
    )
    sizes = shape if isinstance(shape, int) else np.array(shape)
    if variant is Variant.SLOO or variant is Variant.CENTERED:
        request.k[0] = k = 3
    expected = pkpo_core.transform(
        RewardGroups(rewards, sizes),
        k,
        variant=variant,
        scale=scale,
        estimate_k=(1, 4, 9),
        seed=2**64 - 1,
        first_group=2**64 - 2,
    )
    assert_same(stub.Transform(request), expected)


def test_the_worked_example(stub: Any) -> None:
    request = pb.TransformRequest(groups=message_of(np.array([1.0, 1, 0, 0]), 4), variant=pb.VARIANT_S, k=[2])
    assert list(stub.Transform(request).f64.values) == pytest.approx([0.5, 0.5, 1 / 3, 1 / 3], rel=1e-15)


def test_unset_fields_mean_the_documented_defaults(stub: Any) -> None:
    rewards = RNG.normal(size=16)
    request = pb.TransformRequest(groups=message_of(rewards, 8), k=[4])
    expected = pkpo_core.transform(
        RewardGroups(rewards, 8), 4, variant=Variant.SLOO_MINUS_ONE, scale=Scale.SUM, k_policy=KPolicy.STRICT
    )
    assert_same(stub.Transform(request), expected)


@pytest.mark.parametrize("variant", [Variant.LOO, Variant.GRPO])
def test_variants_without_k_need_none(stub: Any, variant: Variant) -> None:
    rewards = RNG.normal(size=16)
    number = pb.Variant.Value(f"VARIANT_{variant.name}")
    response = stub.Transform(pb.TransformRequest(groups=message_of(rewards, 8), variant=number))
    assert_same(response, pkpo_core.transform(RewardGroups(rewards, 8), variant=variant))


def test_clamped_small_and_equal_groups_are_reported(stub: Any) -> None:
    rewards = np.array([0.0, 1.0, 2.0, 5.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.5, 0.25])
    sizes = [3, 1, 4, 5]
    request = pb.TransformRequest(groups=message_of(rewards, sizes), k=[4], k_policy=pb.K_POLICY_CLAMP)
    response = stub.Transform(request)
    assert list(response.group_statuses) == [
        pb.GROUP_STATUS_K_CLAMPED,
        pb.GROUP_STATUS_TOO_SMALL,
        pb.GROUP_STATUS_NO_SIGNAL,
        pb.GROUP_STATUS_UNSPECIFIED,
    ]
    expected = pkpo_core.transform(RewardGroups(rewards, np.array(sizes)), 4, k_policy=KPolicy.CLAMP)
    assert_same(response, expected)


def test_statuses_are_left_out_where_all_groups_are_fine(stub: Any) -> None:
    response = stub.Transform(pb.TransformRequest(groups=message_of(RNG.normal(size=64), 8), k=[2]))
    assert not response.group_statuses


def test_one_k_per_group(stub: Any) -> None:
    rewards = RNG.normal(size=30)
    response = stub.Transform(pb.TransformRequest(groups=message_of(rewards, 10), k=[1, 5, 10]))
    assert_same(response, pkpo_core.transform(RewardGroups(rewards, 10), np.array([1, 5, 10])))


@pytest.mark.parametrize("groups", [3_000, 200_000])
def test_big_batches_equal_core(stub: Any, groups: int) -> None:
    """Beyond the size that is computed on the event loop."""
    rewards = RNG.normal(size=16 * groups)
    response = stub.Transform(pb.TransformRequest(groups=message_of(rewards, 16), k=[4], estimate_k=[4]))
    assert_same(response, pkpo_core.transform(RewardGroups(rewards, 16), 4, estimate_k=(4,)))


def test_estimate_equals_core(stub: Any) -> None:
    rewards = RNG.normal(size=24)
    response = stub.Estimate(pb.EstimateRequest(groups=message_of(rewards, [4, 8, 12]), k=[1, 6, 8]))
    expected = pkpo_core.estimate(RewardGroups(rewards, np.array([4, 8, 12])), [1, 6, 8])
    assert [e.k for e in response.estimates] == [1, 6, 8]
    for got, wanted in zip(response.estimates, expected, strict=True):
        assert np.array(got.values).tobytes() == wanted.values.tobytes()
        assert np.array(got.standard_errors).tobytes() == wanted.standard_errors.tobytes()
    assert np.isnan(response.estimates[1].values[0])


def test_server_info(stub: Any) -> None:
    info = stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.version == pkpo.__version__
    assert info.default_variant == pb.VARIANT_SLOO_MINUS_ONE
    assert {pb.Variant.Name(v.variant) for v in info.variants} == set(pb.Variant.keys()) - {"VARIANT_UNSPECIFIED"}
    assert [pb.Variant.Name(v.variant) for v in info.variants if v.needs_seed] == ["VARIANT_PASSK_BOOTSTRAP"]
    assert all(v.source and v.k_range for v in info.variants)
    assert info.limits == pb.Limits(
        max_message_bytes=64 * 2**20,
        max_rewards=2**23,
        max_group_size=2**20,
        max_groups=2**20,
        max_estimate_k=32,
    )


@pytest.mark.parametrize(
    ("call", "where"),
    [("Transform", "trailing_metadata"), ("Estimate", "trailing_metadata"), ("GetServerInfo", "initial_metadata")],
)
def test_every_answer_names_the_version_and_the_request(stub: Any, call: str, where: str) -> None:
    groups = message_of(np.array([0.0, 1.0]), 2)
    requests = {
        "Transform": pb.TransformRequest(groups=groups, k=[1]),
        "Estimate": pb.EstimateRequest(groups=groups, k=[1]),
        "GetServerInfo": pb.GetServerInfoRequest(),
    }
    _, done = getattr(stub, call).with_call(requests[call])
    metadata = dict(getattr(done, where)())
    assert metadata["pkpo-server-version"] == pkpo.__version__
    assert len(metadata["pkpo-request-id"]) == 32


# --- encodings that are legal protobuf, though no encoder of ours writes them -----------------------------------------


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    tag = bytes([number << 3 | wire_type])
    return tag + (bytes([len(payload)]) if wire_type == 2 else b"") + payload


def unpacked_doubles(values: list[float]) -> bytes:
    return b"".join(field(1, 1, np.float64(v).tobytes()) for v in values)


def split_doubles(values: list[float]) -> bytes:
    half = len(values) // 2
    return field(1, 2, np.array(values[:half]).tobytes()) + field(1, 2, np.array(values[half:]).tobytes())


@pytest.mark.parametrize("encode", [unpacked_doubles, split_doubles])
def test_unpacked_and_split_encodings_are_understood(channel: grpc.Channel, encode: Any) -> None:
    values = [0.5, -1.0, 2.0, 3.5]
    groups = field(1, 2, encode(values)) + field(4, 2, field(1, 0, b"\x02") + field(1, 0, b"\x02"))
    request = field(1, 2, groups) + field(3, 0, b"\x01") + field(3, 0, b"\x02")
    call = channel.unary_unary(
        "/pkpo.v1.RewardTransformService/Transform", response_deserializer=pb.TransformResponse.FromString
    )
    expected = pkpo_core.transform(RewardGroups(np.array(values), np.array([2, 2])), np.array([1, 2]))
    assert_same(call(request), expected)


def test_unknown_fields_of_a_later_version_are_ignored(channel: grpc.Channel) -> None:
    request = pb.TransformRequest(groups=message_of(np.array([0.0, 1.0]), 2), k=[1]).SerializeToString()
    call = channel.unary_unary(
        "/pkpo.v1.RewardTransformService/Transform", response_deserializer=pb.TransformResponse.FromString
    )
    assert len(call(request + field(15, 2, b"later")).f64.values) == 2


def test_compressed_messages_are_understood(stub: Any) -> None:
    request = pb.TransformRequest(groups=message_of(RNG.normal(size=1600), 16), k=[4])
    plain = stub.Transform(request)
    assert stub.Transform(request, compression=grpc.Compression.Gzip) == plain
