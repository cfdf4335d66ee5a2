"""Several hosts on one machine: network namespaces with addresses of their own, on one switch, with a name service.

Nothing of it is in the machine's own network, so nothing can collide with what is there, and whoever deletes the
namespaces has deleted every link.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from live_server import poll

_Value = TypeVar("_Value")
_numbers = itertools.count()


def missing_part() -> str | None:
    """What keeps this process from making networks, or None."""
    if shutil.which("dnsmasq") is None:
        return "dnsmasq"
    if not hasattr(os, "setns") or os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces"
    try:
        with _namespace(f"pkpo-{os.getpid()}-probe") as probe:
            _run("ip", "-n", probe, "link", "add", "bridge", "type", "bridge")
            _run("ip", "-n", probe, "link", "add", "one", "type", "veth", "peer", "name", "other")
    except OSError:
        return "network namespaces"
    return None


class Host:
    """One of a network's hosts.

    Args:
        namespace: its own.
        switch: the namespace of the switch.
        number: of its port there.

    Attributes:
        address: its IPv4 address.
        within: what goes in front of a command to run it there.
    """

    def __init__(self, namespace: str, switch: str, number: int) -> None:
        self.address = f"10.77.0.{number}"
        self.within = ("ip", "netns", "exec", namespace)
        self._namespace = namespace
        self._switch = switch
        self._port = f"port{number}"
        link = ("type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("ip", "-n", switch, "link", "add", self._port, *link)
        _run("ip", "-n", switch, "link", "set", self._port, "master", "bridge", "up")
        for device in ("lo", "eth0"):
            _run("ip", "-n", namespace, "link", "set", device, "up")
        _run("ip", "-n", namespace, "address", "add", f"{self.address}/24", "dev", "eth0")

    def cut_off(self) -> None:
        """From now on nothing reaches it, and nobody is told."""
        _run("ip", "-n", self._switch, "link", "set", self._port, "down")

    def run(self, *command: str) -> str:
        """What a command says that is run there, to its end."""
        return _run(*self.within, *command)

    def addresses_of(self, name: str) -> set[str]:
        """What the network's name service answers there. Raises OSError where that is nothing."""
        return {line.split()[0] for line in self.run("getent", "ahostsv4", name).splitlines()}

    def visit(self, ask: Callable[[], _Value]) -> _Value:
        """What `ask` answers from there: a thread of this process goes, and opens its connections there."""
        answers: list[_Value] = []

        def go() -> None:
            with open(f"/run/netns/{self._namespace}") as namespace:
                os.setns(namespace.fileno(), os.CLONE_NEWNET)
            answers.append(ask())

        visitor = threading.Thread(target=go)
        visitor.start()
        visitor.join()
        return answers[0]


class Network:
    """Hosts 10.77.0.2, 10.77.0.3, ... on a switch, whose names dnsmasq knows at 10.77.0.1.

    Args:
        folder: for the names.
    """

    def __init__(self, folder: Path) -> None:
        self._name = f"pkpo-{os.getpid()}-{next(_numbers)}"
        self._switch = f"{self._name}-switch"
        self._names, self._log = folder / "names", folder / "dnsmasq.log"
        self._addresses: dict[str, list[str]] = {}
        self._ports = itertools.count(2)
        self._stack = ExitStack()
        self._dns: subprocess.Popen[bytes]

    def __enter__(self) -> Network:
        with ExitStack() as stack:
            stack.enter_context(_namespace(self._switch))
            # An address of its own: by itself it has the lowest of its ports', and whoever knew that one does not find
            # it for up to a minute after a lower one has come.
            _run("ip", "-n", self._switch, "link", "add", "bridge", "address", "02:00:00:00:00:01", "type", "bridge")
            _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
            _run("ip", "-n", self._switch, "address", "add", "10.77.0.1/24", "dev", "bridge")
            self._names.touch()
            # For as long as a cluster's name service lets its answers be kept.
            lifetime = "--local-ttl=5"
            self._dns = subprocess.Popen(
                ["ip", "netns", "exec", self._switch, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
                 "--user=root", "--pid-file", f"--log-facility={self._log}", "--log-queries",
                 "--listen-address=10.77.0.1", "--bind-interfaces", "--no-resolv", "--no-hosts",
                 f"--addn-hosts={self._names}", lifetime],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(_end, self._dns)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def host(self) -> Host:
        """Another host."""
        number = next(self._ports)
        namespace = self._stack.enter_context(_namespace(f"{self._name}-{number}", nameserver="10.77.0.1"))
        return Host(namespace, self._switch, number)

    def publish(self, name: str, hosts: Sequence[Host]) -> None:
        """From its return on `name` has these addresses, as that of a headless service has those of its ready pods."""
        self._addresses[name] = [host.address for host in hosts]
        lines = [f"{address} {each}\n" for each, some in self._addresses.items() for address in some]
        self._names.write_text("".join(lines))
        expected = set(self._addresses[name])
        answers: list[object] = []

        def known() -> bool:
            try:
                answers.append(hosts[0].addresses_of(name))
            except OSError as error:
                answers.append(error)
            return answers[-1] == expected

        self._dns.send_signal(signal.SIGHUP)
        try:
            poll(known, f"addresses of {name}")
        except TimeoutError as error:
            said = "\n".join(self._log.read_text().splitlines()[-40:])
            raise TimeoutError(
                f"{error}: after {len(answers)} times {answers[-1]!r} for {expected}; dnsmasq, status"
                f" {self._dns.poll()}, said last:\n{said}"
            ) from error


@contextmanager
def _namespace(name: str, nameserver: str | None = None) -> Iterator[str]:
    # Its file is mounted over /etc/resolv.conf by `ip netns exec`.
    settings = Path("/etc/netns") / name
    try:
        _run("ip", "netns", "add", name)
        if nameserver is not None:
            settings.mkdir(parents=True)
            (settings / "resolv.conf").write_text(f"nameserver {nameserver}\noptions timeout:1 attempts:2\n")
        yield name
    finally:
        shutil.rmtree(settings, ignore_errors=True)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
