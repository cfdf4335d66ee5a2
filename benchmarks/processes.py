"""Other processes: servers to measure, and what they have used."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Running:
    """A process that serves.

    Attributes:
        address: as a gRPC target.
        process: it, or the one that looks after its workers.
    """

    address: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Of the process and its workers, so far."""
        return sum(cpu_seconds(process) for process in (self.process, *self.process.children(recursive=True)))

    def resident_bytes(self) -> int:
        """Of the process."""
        return int(self.process.memory_info().rss)


def cpu_seconds(process: psutil.Process) -> float:
    """What a process has used so far, by its own clock (of Linux): the usual figures tick in hundredths of a second."""
    return time.clock_gettime(~process.pid << 3 | 2)


def stolen_seconds() -> float:
    """What the host of this virtual machine has kept from its processors so far; 0 where it does not say."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


@contextmanager
def pkpo_server(*flags: str) -> Iterator[Running]:
    """A real server, from SERVING to its end."""
    command = [sys.executable, "-m", "pkpo_server", "--port", "0", "--metrics-port", "0", *flags]
    with _running(command, _serving_address) as running:
        yield running


@contextmanager
def echo_server(kind: str, *flags: str) -> Iterator[Running]:
    """A server of `benchmarks.echo`."""
    with _running([sys.executable, "-m", "benchmarks.echo", kind, *flags], str.strip) as running:
        yield running


def _serving_address(line: str) -> str | None:
    said = json.loads(line)
    return str(said["address"]) if said["event"] == "serving" else None


@contextmanager
def _running(command: list[str], address_in: Callable[[str], str | None]) -> Iterator[Running]:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(filter(None, map(address_in, lines)), None)
        if address is None:
            raise RuntimeError(f"{' '.join(command)} ended before it served")
        threading.Thread(target=lambda: list(lines), daemon=True).start()
        try:
            yield Running(address, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(30)
