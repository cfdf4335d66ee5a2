"""A real pkpo-server process, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

_Value = TypeVar("_Value")

# The gate sets another one, to run a client of one age against a server of another.
SERVER_PYTHON = os.environ.get("SERVER_PYTHON", sys.executable)
# The first start on a machine compiles the kernels.
START_SECONDS = 240.0
STOP_SECONDS = 60.0


def poll(ask: Callable[[], _Value | None], what: str, seconds: float = 30.0) -> _Value:
    """What `ask` answers as soon as that is true of anything. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds} s")
        time.sleep(0.01)


def sample_key(name: str, labels: Mapping[str, str]) -> str:
    """How a sample is named in LiveServer.metrics(): name{a="x",b="y"}, labels in alphabetical order."""
    inner = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


class LiveServer:
    """`python -m pkpo_server` on free ports of the loopback, from start to exit.

    Args:
        flags: added to the command line.
        env: added to the environment; PKPO_* of this process are not passed on.
        within: what goes in front of the command, such as `ip netns exec NAME`.
        wait: whether entering waits until the server reports SERVING.

    Attributes:
        process: the process (the supervisor, with --workers).
        address: where it serves, as a gRPC target.
        metrics_address: host:port of its metrics.
    """

    def __init__(
        self, *flags: str, env: Mapping[str, str] | None = None, within: Sequence[str] = (), wait: bool = True
    ) -> None:
        self._flags = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", *flags)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PKPO_")}
        self._env = {**inherited, **(env or {})}
        self._within = within
        self._wait = wait
        self._lines: list[str] = []
        self.process: subprocess.Popen[str]

    def __enter__(self) -> LiveServer:
        self.process = subprocess.Popen(
            [*self._within, SERVER_PYTHON, "-m", "pkpo_server", *self._flags],
            env=self._env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if self._wait:
            try:
                self.wait_serving()
            except BaseException:
                self.kill()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Where it serves; waits for the server to say so."""
        lines = poll(lambda: self.log_lines("serving") or self.log_lines("listening") or self._gone(), "address")
        return str(lines[0]["address"])

    @property
    def metrics_address(self) -> str:
        """Where its metrics are; waits for the server to say so."""
        return str(poll(lambda: self.log_lines("metrics") or self._gone(), "metrics address")[0]["address"])

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """The log so far, parsed; those of one event where it is named."""
        lines = [json.loads(line) for line in tuple(self._lines)]
        return [line for line in lines if event is None or line["event"] == event]

    def raw_log(self) -> list[str]:
        """Everything written to stderr so far, line by line."""
        return list(self._lines)

    def metrics_text(self) -> str:
        """The metrics now, in the text format."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=30) as response:
            text: str = response.read().decode()
        return text

    def metrics(self) -> dict[str, float]:
        """The samples now, by `sample_key`."""
        return {
            sample_key(sample.name, sample.labels): sample.value
            for family in text_string_to_metric_families(self.metrics_text())
            for sample in family.samples
        }

    def health(self) -> int:
        """What its health service says of the server as a whole."""
        with grpc.insecure_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True)
        return int(answer.status)

    def wait_serving(self) -> None:
        """Returns once its health service reports SERVING."""
        poll(lambda: self.log_lines("serving") or self._gone(), "line with event serving", START_SECONDS)
        poll(lambda: self.health() == health_pb2.HealthCheckResponse.SERVING, "SERVING")

    def stop(self) -> int:
        """Asks it to stop, waits, and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._reader.join(STOP_SECONDS)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return status

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line.rstrip("\n"))

    def _gone(self) -> list[dict[str, Any]]:
        """Nothing, while it runs. Raises RuntimeError with its log once it does not."""
        if self.process.poll() is not None:
            self._reader.join(STOP_SECONDS)
            raise RuntimeError(f"the server exited with {self.process.returncode}:\n" + "\n".join(self._lines))
        return []
