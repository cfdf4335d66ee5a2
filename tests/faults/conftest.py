"""Real servers, and the clients behind one face."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flavour import Flavour
from live_server import LiveServer
from pkpo_client import LocalClient


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(scope="session")
def local() -> Iterator[LocalClient]:
    with LocalClient() as client:
        yield client


@pytest.fixture(params=["Client", "AsyncClient"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return Flavour(request.param == "AsyncClient")
