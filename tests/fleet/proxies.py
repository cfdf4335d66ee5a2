"""nginx and Envoy, run with the documented configurations."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

from live_server import poll

_CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "proxies"
# A loopback address that nothing else here uses, so that a port found free stays free.
_HERE = "127.0.0.77"


@dataclass(frozen=True)
class Kind:
    """A proxy that is documented.

    Attributes:
        name: of its program.
        file: its documented configuration.
        addressed: the configuration with other addresses: it, where to listen, where to be administered, the servers.
        command: how it is started with a configuration.
    """

    name: str
    file: Path
    addressed: Callable[[str, int, int, Sequence[str]], str]
    command: Callable[[Path], list[str]]

    @property
    def configuration(self) -> str:
        """What the file says."""
        return self.file.read_text()

    def program(self) -> str:
        """Where its program is; skips the test where there is none."""
        found = shutil.which(self.name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if found is None:
            pytest.skip(f"needs {self.name}")
        return found


def _nginx_addressed(text: str, port: int, _: int, servers: Sequence[str]) -> str:
    for number, server in enumerate(servers, start=1):
        text = _replaced(text, f"pkpo-{number}:50051", server)
    return _replaced(text, "listen 50051", f"listen {_HERE}:{port}")


def _envoy_addressed(text: str, port: int, admin_port: int, servers: Sequence[str]) -> str:
    text = _replaced(text, "0.0.0.0, port_value: 50051", f"{_HERE}, port_value: {port}")
    text = _replaced(text, "127.0.0.1, port_value: 9901", f"{_HERE}, port_value: {admin_port}")
    # The name stands for all of its addresses.
    endpoint = re.search(r".*pkpo-headless.*\n", text)
    assert endpoint is not None
    hosts_and_ports = [server.split(":") for server in servers]
    endpoints = [
        _replaced(endpoint[0], "pkpo-headless, port_value: 50051", f"{host}, port_value: {port}")
        for host, port in hosts_and_ports
    ]
    return _replaced(text, endpoint[0], "".join(endpoints))


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{text.count(old)} times {old}"
    return text.replace(old, new)


NGINX = Kind(
    "nginx",
    _CONFIGURATIONS / "nginx.conf",
    _nginx_addressed,
    lambda file: ["-e", "stderr", "-p", str(file.parent), "-c", str(file), "-g", "daemon off;"],
)
ENVOY = Kind(
    "envoy",
    _CONFIGURATIONS / "envoy.yaml",
    _envoy_addressed,
    lambda file: [
        "-c",
        str(file),
        "--use-dynamic-base-id",
        "--concurrency",
        "2",
        "--log-level",
        "warn",
        "--drain-time-s",
        "2",
        "--drain-strategy",
        "immediate",
    ],
)
KINDS = (NGINX, ENVOY)


class Proxy:
    """A proxy, from start to end.

    Args:
        kind: which.
        folder: for its configuration and its log.
        configuration: the text of it.
        within: what goes in front of the command, such as `ip netns exec NAME`.
    """

    def __init__(self, kind: Kind, folder: Path, configuration: str, within: Sequence[str] = ()) -> None:
        folder.mkdir(exist_ok=True)
        self._kind = kind
        self._log = folder / "log"
        file = folder / kind.file.name
        file.write_text(configuration)
        self._command = [*within, kind.program(), *kind.command(file)]
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Proxy:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text()


class LocalProxy(Proxy):
    """A proxy on free ports of the loopback, which takes connections once it is entered.

    Args:
        kind: which.
        folder: for its configuration and its log.
        servers: host:port of the three behind it.
        change: what is changed in its configuration besides.

    Attributes:
        address: where it takes calls.
        admin_address: where it is administered, of a kind that is.
    """

    def __init__(self, kind: Kind, folder: Path, servers: Sequence[str], change: Callable[[str], str] = str) -> None:
        port, admin_port = _free_ports(2)
        self.address = f"{_HERE}:{port}"
        self.admin_address = f"{_HERE}:{admin_port}"
        super().__init__(kind, folder, change(kind.addressed(kind.configuration, port, admin_port, servers)))

    def __enter__(self) -> LocalProxy:
        super().__enter__()
        poll(lambda: self._is_running() and self.takes_connections(), "open port of the proxy")
        return self

    def drain(self) -> None:
        """Asks it to leave once its calls have ended, and returns when it takes no connections any more."""
        if self._kind is NGINX:
            self.process.send_signal(signal.SIGQUIT)
        else:
            order = urllib.request.Request(f"http://{self.admin_address}/drain_listeners?graceful", method="POST")
            urllib.request.urlopen(order, timeout=30).close()
        poll(lambda: not self.takes_connections(), "closed port of the proxy")

    def _is_running(self) -> bool:
        assert self.process.poll() is None, self.log()
        return True

    def takes_connections(self) -> bool:
        """Whether its port is open."""
        host, port = self.address.split(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server((_HERE, 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
