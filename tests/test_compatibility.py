"""Versions apart work together: a newer peer's unknown fields are passed over, in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import pkpo_core
from live_server import LiveServer
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import Client
from pkpo_client.splitting import DEFAULT_LIMITS
from pkpo_server.settings import read_settings

SERVICE = pb.DESCRIPTOR.services_by_name["RewardTransformService"]
# Field 15000, which no version has: a number, and a message.
UNKNOWN = b"\xc0\xa9\x07\x2a" + b"\xc2\xa9\x07\x03new"


def of_a_newer_version(message: bytes) -> bytes:
    return message + UNKNOWN


@pytest.fixture(scope="module")
def newer_peer() -> Iterator[str]:
    """The address of a relay that makes every message, either way, one of a newer version."""
    with LiveServer() as server, grpc.insecure_channel(server.address) as channel:

        def unary(name: str) -> grpc.RpcMethodHandler:
            call = channel.unary_unary(f"/{SERVICE.full_name}/{name}")
            return grpc.unary_unary_rpc_method_handler(lambda raw, _: of_a_newer_version(call(of_a_newer_version(raw))))

        def stream(name: str) -> grpc.RpcMethodHandler:
            call = channel.stream_stream(f"/{SERVICE.full_name}/{name}")
            return grpc.stream_stream_rpc_method_handler(
                lambda raws, _: map(of_a_newer_version, call(map(of_a_newer_version, raws)))
            )

        handlers = {m.name: (stream if m.client_streaming else unary)(m.name) for m in SERVICE.methods}
        relay = grpc.server(ThreadPoolExecutor(4))
        relay.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        port = relay.add_insecure_port("127.0.0.1:0")
        relay.start()
        yield f"127.0.0.1:{port}"
        relay.stop(None).wait()


def test_the_appended_bytes_are_a_field_no_version_has() -> None:
    message = pb.TransformRequest.FromString(UNKNOWN)
    assert not message.ListFields()
    assert message.SerializeToString() == UNKNOWN


def test_unknown_fields_are_passed_over(newer_peer: str) -> None:
    rewards = np.random.default_rng(0).random((5, 8))
    expected = pkpo_core.transform(rewards, 3, estimate_k=[1, 3])
    with Client(newer_peer) as pkpo:
        result = pkpo.transform_detailed(rewards, 3, estimate_k=[1, 3])
        streamed = list(pkpo.stream([rewards, rewards[::-1]], 3))
        (estimated,) = pkpo.estimate(rewards, 3)
        info = pkpo.server_info()
    assert (result.advantages == expected.advantages).all()
    assert (streamed[1].advantages == expected.advantages[::-1]).all()
    assert (estimated.values == expected.estimates[1].values).all()
    assert info.default_variant == "sloo_minus_one"


def test_the_limits_a_client_assumes_are_those_a_server_has() -> None:
    told = read_settings([])
    assert {name: getattr(told, name) for name in vars(DEFAULT_LIMITS)} == vars(DEFAULT_LIMITS)
