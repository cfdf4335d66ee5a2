"""Several servers, started together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from fleet.network import Host
from live_server import START_SECONDS, LiveServer, poll

_Server = TypeVar("_Server", bound=LiveServer)
_PORT = 50051


class HostedServer(LiveServer):
    """A server with a host of its own, on the usual port.

    Attributes:
        host: its host.
    """

    def __init__(self, host: Host, *flags: str) -> None:
        self.host = host
        places = ("--host", host.address, "--port", str(_PORT), "--metrics-host", host.address)
        super().__init__(*places, *flags, within=host.within, wait=False)

    def metrics_text(self) -> str:
        """The metrics now, in the text format, as they are seen from its host."""
        return self.host.visit(super().metrics_text)

    def wait_serving(self) -> None:
        """Returns once it says that it serves."""
        poll(lambda: self.log_lines("serving") or self._gone(), "line with event serving", START_SECONDS)


@contextmanager
def running(*servers: _Server) -> Iterator[tuple[_Server, ...]]:
    """The servers, from when all of them serve to their end. Made with wait=False, they start side by side."""
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        for server in servers:
            server.wait_serving()
        yield servers


def answered(server: LiveServer) -> float:
    """Requests that it has answered with a result."""
    return sum(
        value for name, value in server.metrics().items()
        if name.startswith("pkpo_requests_total{") and 'code="OK"' in name
    )  # fmt: skip


def with_a_stream(servers: tuple[_Server, ...]) -> _Server:
    """The first that has a stream open."""
    return poll(lambda: next((each for each in servers if each.metrics()["pkpo_open_streams"]), None), "open stream")
