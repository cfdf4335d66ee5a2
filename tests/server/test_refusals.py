"""Bad input is refused with the field, the value and the bound, and with nothing else."""

from __future__ import annotations

import socket
import threading
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from live_server import LiveServer
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc

ONE_KIB = 1024
INFINITY, NAN = float("inf"), float("nan")


def groups(values: Any = (0.0, 1.0, 0.0, 1.0), size: int | None = 4, sizes: Any = None, kind: str = "f64") -> Any:
    message = pb.RewardGroups()
    if kind == "f64":
        message.f64.CopyFrom(packed.double_values(np.asarray(values, dtype=np.float64)))
        message.f64.SetInParent()
    elif kind == "f32":
        message.f32.CopyFrom(packed.float_values(np.asarray(values, dtype=np.float32)))
    if sizes is not None:
        message.group_sizes.sizes.extend(sizes)
        message.group_sizes.SetInParent()
    elif size is not None:
        message.group_size = size
    return message


def transform(**fields: Any) -> pb.TransformRequest:
    return pb.TransformRequest(**{"groups": groups(), "k": [2], **fields})


def refusal(call: Any, request: Any) -> tuple[grpc.RpcError, list[tuple[str, str]]]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    error = caught.value
    status = rpc_status.from_call(error)
    violations = []
    for detail in status.details if status is not None else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            violations += [(v.field, v.description) for v in bad_request.field_violations]
    return error, violations


def trailer_bytes(error: Any) -> int:
    return sum(
        len(key) + (len(value) * 4 // 3 + 3 if key.endswith("-bin") else len(value))
        for key, value in error.trailing_metadata()
    ) + len(error.details())


BAD_TRANSFORMS = {
    "no groups": (pb.TransformRequest(k=[1]), ["groups.rewards", "groups.shape"]),
    "no rewards": (transform(groups=groups(kind="none")), ["groups.rewards"]),
    "empty rewards": (transform(groups=groups(values=[])), ["groups.rewards"]),
    "no shape": (transform(groups=groups(size=None)), ["groups.shape"]),
    "size 0": (transform(groups=groups(size=0)), ["groups.group_size"]),
    "size does not divide": (transform(groups=groups(size=3)), ["groups.group_size"]),
    "size over the rewards": (transform(groups=groups(size=8)), ["groups.group_size"]),
    "no sizes": (transform(groups=groups(sizes=[])), ["groups.group_sizes"]),
    "a size of 0": (transform(groups=groups(sizes=[4, 0])), ["groups.group_sizes[1]"]),
    "sizes add up to less": (transform(groups=groups(sizes=[2, 1])), ["groups.group_sizes"]),
    "sizes add up to more": (transform(groups=groups(sizes=[4, 4])), ["groups.group_sizes"]),
    "NaN": (transform(groups=groups([0, NAN, 1, NAN])), ["groups.rewards[1]", "groups.rewards[3]"]),
    "infinity": (transform(groups=groups([0, 1, 2, INFINITY])), ["groups.rewards[3]"]),
    "float infinity": (transform(groups=groups([0, 1, 2, -INFINITY], kind="f32")), ["groups.rewards[3]"]),
    "too large": (transform(groups=groups([0, 1e101, 0, -1e300])), ["groups.rewards[1]", "groups.rewards[3]"]),
    "unknown variant": (transform(variant=99), ["variant"]),
    "negative variant": (transform(variant=-1), ["variant"]),
    "unknown scale": (transform(scale=3), ["scale"]),
    "unknown k_policy": (transform(k_policy=77), ["k_policy"]),
    "several at once": (
        transform(variant=99, scale=9, k_policy=9, estimate_k=[0], run_id="no spaces", groups=groups(size=None)),
        ["variant", "scale", "k_policy", "estimate_k[0]", "run_id", "groups.shape"],
    ),
    "k absent": (transform(k=[]), ["k"]),
    "k 0": (transform(k=[0]), ["k[0]"]),
    "k 0, clamped": (transform(k=[0], k_policy=pb.K_POLICY_CLAMP), ["k[0]"]),
    "k over n": (transform(k=[5]), ["k[0]"]),
    "SLOO at n": (transform(k=[4], variant=pb.VARIANT_SLOO), ["k[0]"]),
    "TZSM below n": (transform(k=[3], variant=pb.VARIANT_TZSM), ["k[0]"]),
    "a k that does not divide": (transform(k=[3], variant=pb.VARIANT_NAIVE_PARTITIONED), ["k[0]"]),
    "a wrong number of k": (transform(k=[1, 2, 3]), ["k"]),
    "the second k": (transform(groups=groups(size=2), k=[2, 3]), ["k[1]"]),
    "BINARY of others": (transform(groups=groups([0, 0.5, 1, 0]), variant=pb.VARIANT_BINARY), ["groups.rewards[1]"]),
    "estimate_k 0": (transform(estimate_k=[1, 0, 0]), ["estimate_k[1]", "estimate_k[2]"]),
    "too many estimate_k": (transform(estimate_k=[1] * 33), ["estimate_k"]),
    "run_id with a space": (transform(run_id="a b"), ["run_id"]),
    "run_id with a newline": (transform(run_id="a\n"), ["run_id"]),
    "run_id of other letters": (transform(run_id="é"), ["run_id"]),
    "run_id too long": (transform(run_id="a" * 129), ["run_id"]),
}


@pytest.mark.parametrize("name", BAD_TRANSFORMS)
def test_a_bad_transform_names_the_field(stub: Any, name: str) -> None:
    request, fields = BAD_TRANSFORMS[name]
    error, violations = refusal(stub.Transform, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    assert [field for field, _ in violations] == fields
    assert all(description for _, description in violations)
    assert fields[0] in error.details()
    assert_nothing_leaks(error)


def assert_nothing_leaks(error: Any) -> None:
    said = error.details() + repr(error.trailing_metadata())
    assert not any(word in said for word in ("Traceback", ".py", "numpy", "<class", "Error("))
    assert trailer_bytes(error) < ONE_KIB
    assert dict(error.trailing_metadata()).keys() >= {"pkpo-request-id", "pkpo-server-version"}
    # Headers of their own would keep clients from retrying what may be retried.
    assert not error.initial_metadata()


@pytest.mark.parametrize("length", [1, 128])
def test_a_run_id_of_legal_length_is_taken(stub: Any, length: int) -> None:
    stub.Transform(transform(run_id="aA0._:/-x"[:length].ljust(length, "z")))


def test_values_and_bounds_are_named(stub: Any) -> None:
    _, violations = refusal(stub.Transform, transform(k=[5]))
    assert violations == [("k[0]", violations[0][1])]
    assert "5" in violations[0][1]
    assert "4" in violations[0][1]
    _, violations = refusal(stub.Transform, transform(estimate_k=[1] * 33))
    assert "33" in violations[0][1]
    assert "32" in violations[0][1]


BAD_ESTIMATES = {
    "no groups": (pb.EstimateRequest(k=[1]), ["groups.rewards", "groups.shape"]),
    "no k": (pb.EstimateRequest(groups=groups()), ["k"]),
    "k 0": (pb.EstimateRequest(groups=groups(), k=[1, 0]), ["k[1]"]),
    "too many k": (pb.EstimateRequest(groups=groups(), k=[1] * 33), ["k"]),
    "NaN": (pb.EstimateRequest(groups=groups([NAN, 0]), k=[1]), ["groups.rewards[0]"]),
}


@pytest.mark.parametrize("name", BAD_ESTIMATES)
def test_a_bad_estimate_names_the_field(stub: Any, name: str) -> None:
    request, fields = BAD_ESTIMATES[name]
    if name == "NaN":
        request.groups.group_size = 2
    error, violations = refusal(stub.Estimate, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in violations] == fields
    assert_nothing_leaks(error)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: transform(groups=groups([NAN] * 5000, size=10)),
        lambda: transform(groups=groups(np.zeros(5000), size=1), k=[7] * 5000),
        lambda: transform(groups=groups(np.zeros(5000), sizes=[0] * 5000)),
        lambda: transform(groups=groups(np.zeros(3000), sizes=[2**20 + 1] * 3000)),
        lambda: transform(estimate_k=[0] * 32),
        lambda: transform(run_id="\U0001f600" * 10_000),
        lambda: transform(run_id="%" * 10_000),
        lambda: transform(variant=99, scale=9, k_policy=9, groups=groups(np.zeros(80), sizes=[2**32 - 1] * 8)),
        lambda: transform(variant=99, scale=9, k_policy=9, estimate_k=[0] * 32, run_id="%" * 10_000),
        lambda: transform(variant=-99, scale=-9, k_policy=-9, estimate_k=[0] * 32, run_id="\U0001f600" * 10_000),
    ],
)
def test_thousands_of_offenders_fit_the_trailers(stub: Any, request_of: Any) -> None:
    error, violations = refusal(stub.Transform, request_of())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert 1 <= len(violations) <= 8
    assert_nothing_leaks(error)


def test_advantages_that_do_not_fit_float32_are_refused(stub: Any) -> None:
    request = transform(
        groups=groups([3.4e38, -3.4e38, 3.4e38, -3.4e38], kind="f32"), variant=pb.VARIANT_LOO, k=[], scale=pb.SCALE_MEAN
    )
    error, violations = refusal(stub.Transform, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations[0][0].startswith("groups.rewards")


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["Transform", "Estimate"])
@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05ab", b"\x0f" * 100, bytes(range(256))])
def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel, call: str, raw: bytes) -> None:
    """gRPC's asyncio server itself would answer UNKNOWN, with the exception's text."""
    error, violations = refusal(channel.unary_unary(f"/pkpo.v1.RewardTransformService/{call}"), raw)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    said = f"cannot be read: its {len(raw)} bytes are no pkpo.v1.{call}Request"
    assert violations == [("message", said)]
    assert error.details() == f"message {said}"
    assert_nothing_leaks(error)


def test_an_unknown_call_is_unimplemented(channel: grpc.Channel) -> None:
    error, _ = refusal(channel.unary_unary("/pkpo.v1.RewardTransformService/Nothing"), b"")
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 4096, b"\x16\x03\x01\x02\x00" + b"x" * 512]
)
def test_garbage_on_the_port_hurts_nobody(server: LiveServer, stub: Any, raw: bytes) -> None:
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(raw)
        connection.settimeout(30)
        while connection.recv(4096):
            pass
    assert stub.GetServerInfo(pb.GetServerInfoRequest()).version


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Any:
    flags = ("--max-message-bytes", "20000", "--max-rewards", "1000", "--max-group-size", "100", "--max-groups", "50")
    with LiveServer(*flags, "--max-estimate-k", "40") as live, grpc.insecure_channel(live.address) as open_channel:
        yield pb_grpc.RewardTransformServiceStub(open_channel)


LIMITED = {
    "rewards": (transform(groups=groups(np.zeros(1001), size=77)), "groups.rewards", "1001", "1000"),
    "size": (transform(groups=groups(np.zeros(202), size=101)), "groups.group_size", "101", "100"),
    "one size": (transform(groups=groups(np.zeros(110), sizes=[9, 101])), "groups.group_sizes[1]", "101", "100"),
    "groups": (transform(groups=groups(np.zeros(51), size=1)), "groups.group_size", "51", "50"),
    "ragged groups": (transform(groups=groups(np.zeros(51), sizes=[1] * 51)), "groups.group_sizes", "51", "50"),
    "estimates": (transform(estimate_k=[1] * 41), "estimate_k", "41", "40"),
    "the answer": (
        transform(groups=groups(np.zeros(50), size=1), k=[1], variant=pb.VARIANT_S, estimate_k=[1] * 40),
        "estimate_k",
        "an answer of",
        "20000",
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_limits_are_enforced(small: Any, name: str) -> None:
    request, field, value, bound = LIMITED[name]
    error, violations = refusal(small.Transform, request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations[0][0] == field
    assert value in violations[0][1]
    assert bound in violations[0][1]


def test_the_answer_to_an_estimate_is_limited_too(small: Any) -> None:
    request = pb.EstimateRequest(groups=groups(np.zeros(50), size=1), k=[1] * 40)
    _, violations = refusal(small.Estimate, request)
    assert violations[0][0] == "k"


def test_limits_that_were_set_are_reported(small: Any) -> None:
    limits = small.GetServerInfo(pb.GetServerInfoRequest()).limits
    assert limits == pb.Limits(
        max_message_bytes=20000, max_rewards=1000, max_group_size=100, max_groups=50, max_estimate_k=40
    )


def test_what_just_fits_the_limits_is_answered(small: Any) -> None:
    assert len(small.Transform(transform(groups=groups(np.zeros(1000), size=100), k=[100])).f64.values) == 1000
    assert len(small.Transform(transform(groups=groups(np.zeros(50), size=1), k=[1], variant=pb.VARIANT_S)).f64.values)


def test_a_message_over_the_limit_is_resource_exhausted(small: Any) -> None:
    error, _ = refusal(small.Transform, transform(groups=groups(np.zeros(3000), size=100)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    stub_error, _ = refusal(small.Transform, transform(k=[5]))
    assert stub_error.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_compressed_message_is_limited_by_what_it_unpacks_to(small: Any) -> None:
    request = transform(groups=groups(np.zeros(100_000), size=100))
    with pytest.raises(grpc.RpcError) as caught:
        small.Transform(request, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_stream_message_over_the_limit_ends_that_stream_alone(small: Any) -> None:
    messages = [pb.TransformStreamRequest(sequence=1, request=transform(groups=groups(np.zeros(3000), size=100)))]
    with pytest.raises(grpc.RpcError) as caught:
        list(small.TransformStream(iter(messages)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    messages = [pb.TransformStreamRequest(sequence=2, request=transform())]
    assert [answer.sequence for answer in small.TransformStream(iter(messages))] == [2]


def test_oversized_metadata_is_refused(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Transform(transform(), metadata=[("x", "y" * 50_000)])
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    stub.Transform(transform())


def test_too_many_calls_at_once_are_told_when_to_come_back() -> None:
    with (
        LiveServer("--max-concurrent-rpcs", "1") as live,
        grpc.insecure_channel(live.address, options=[("grpc.use_local_subchannel_pool", 1)]) as first,
        grpc.insecure_channel(live.address, options=[("grpc.use_local_subchannel_pool", 1)]) as second,
    ):
        messages: Any = _Held([pb.TransformStreamRequest(sequence=1, request=transform())])
        stream = pb_grpc.RewardTransformServiceStub(first).TransformStream(messages)
        assert next(stream).sequence == 1
        error, _ = refusal(pb_grpc.RewardTransformServiceStub(second).Transform, transform())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 50 <= int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) <= 150
        info = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(error).details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() >= 50
        assert not error.initial_metadata()
        config = '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s",' + (
            '"maxBackoff": "1s", "backoffMultiplier": 2, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]}'
        )
        count = 'pkpo_requests_total{code="RESOURCE_EXHAUSTED",method="Transform",variant="unknown"}'
        before = live.metrics()[count]
        with grpc.insecure_channel(live.address, options=[("grpc.service_config", config)]) as retrying:
            refusal(pb_grpc.RewardTransformServiceStub(retrying).Transform, transform())
        assert live.metrics()[count] > before + 1  # gRPC's own client, of some versions, stops short of its attempts
        messages.release()
        assert list(stream) == []
        pb_grpc.RewardTransformServiceStub(second).Transform(transform())


class _Held:
    """An iterator that ends when it is released."""

    def __init__(self, messages: list[Any]) -> None:
        self._messages = iter(messages)
        self._released = threading.Event()
        self.release = self._released.set

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        for message in self._messages:
            return message
        self._released.wait(60)
        raise StopIteration
