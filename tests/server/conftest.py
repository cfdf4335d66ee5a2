from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from live_server import LiveServer
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc

LIMIT = 64 * 2**20
OPTIONS = (("grpc.max_receive_message_length", LIMIT), ("grpc.max_send_message_length", LIMIT))


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """One server with the default settings, for every test that changes none."""
    with LiveServer() as live:
        yield live


@pytest.fixture(scope="session")
def channel(server: LiveServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=OPTIONS) as open_channel:
        yield open_channel


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> Any:
    return pb_grpc.RewardTransformServiceStub(channel)
