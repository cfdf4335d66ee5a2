"""The two services of a soak: real servers, each behind a wire that faults are injected into.

`plain` has two workers, no TLS and no tokens, and is killed and restarted; `guarded` is one process with both, and
lives from the start to the end.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import trustme

from faults.wire import Wire
from live_server import START_SECONDS, LiveServer, poll

PLAIN, GUARDED = "plain", "guarded"
WORKERS = 2
# Few, and soon idle, so that many come and go in an hour.
MAX_RUN_IDS, RUN_IDLE_SECONDS = 16, 20
# Longer than calls take, and shorter than the retries of a client that knows of one server only.
DRAIN_SECONDS = 2
_FLAGS = (
    "--max-run-ids", str(MAX_RUN_IDS), "--run-idle-seconds", str(RUN_IDLE_SECONDS),
    "--drain-seconds", str(DRAIN_SECONDS),
)  # fmt: skip
# Said of what was done to it, and not of itself.
_EXPECTED_ERRORS = {"worker_died", "worker_stuck", "certificate_unusable"}
# What gRPC logs of bytes that are no text, of which the garbage has some, and of callers who are gone.
_OF_GRPC = ("UnicodeDecodeError", "ExecuteBatchError")


class Identity:
    """The files that say who serves and who may call; rotated as a secret is, by renaming.

    Attributes:
        authority: file of what callers trust.
        token: file of the token that callers have.
        withdrawn: a token that counts no more.
    """

    def __init__(self, folder: Path) -> None:
        self._certificate, self._key, self._tokens = folder / "tls.crt", folder / "tls.key", folder / "tokens"
        self.token = folder / "token"
        self._ca = trustme.CA()
        self.authority = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.authority)
        self._known = [secrets.token_hex(24)]
        self.withdrawn = secrets.token_hex(24)
        self.renew()
        self._write_tokens()
        self.hand_out()

    @property
    def flags(self) -> tuple[str, ...]:
        """Of a server that goes by them."""
        files = {"--tls-certificate": self._certificate, "--tls-key": self._key, "--tokens": self._tokens}
        return tuple(part for flag, path in files.items() for part in (flag, str(path)))

    def renew(self) -> None:
        """Another certificate, for new connections."""
        leaf = self._ca.issue_cert("localhost", "127.0.0.1")
        _replace(self._certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        _replace(self._key, leaf.private_key_pem.bytes())

    def add_token(self) -> None:
        """Another token, beside the one there is."""
        self._known.append(secrets.token_hex(24))
        self._write_tokens()

    def hand_out(self) -> None:
        """Callers have the newest token from now on."""
        _replace(self.token, f"{self._known[-1]}\n".encode())

    def withdraw_token(self) -> None:
        """The older of two counts no more."""
        self.withdrawn = self._known.pop(0)
        self._write_tokens()

    def _write_tokens(self) -> None:
        _replace(self._tokens, "".join(f"{token}\n" for token in self._known).encode())


def _replace(path: Path, content: bytes) -> None:
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


class _Server(LiveServer):
    """A server that is not asked in plaintext how it is, and whose log may have lines of gRPC's own."""

    def __init__(self, *flags: str, env: Mapping[str, str]) -> None:
        super().__init__(*flags, env=env)
        self._lock = threading.Lock()
        self._parsed = 0
        self._events: dict[str, list[dict[str, Any]]] = {}

    def wait_serving(self) -> None:
        """Returns once it says that it serves."""
        poll(lambda: self.log_lines("serving") or self._gone(), "line with event serving", START_SECONDS)

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Of one event, those so far; each line is parsed once, for there are many."""
        assert event is not None
        with self._lock:
            new = self._lines[self._parsed :]
            self._parsed += len(new)
            for line in new:
                said = parsed(line)
                # Of requests that were refused there is one for each.
                if said is not None and said["event"] != "refused":
                    self._events.setdefault(said["event"], []).append(said)
            return list(self._events.get(event, ()))


def parsed(line: str) -> dict[str, Any] | None:
    """A line of a log; None where it is not the server's own."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and "event" in said else None


class Service:
    """A server that comes back on its own port, behind a wire.

    Args:
        name: PLAIN or GUARDED.
        folder: for its temporary files.
        flags: of the server.
        env: of the server.

    Attributes:
        live: the server as it is now.
        wire: what callers reach it through.
        findings: of its logs and exits so far.
        grpc_lines: lines that gRPC wrote by itself.
    """

    def __init__(self, name: str, folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.findings: list[str] = []
        self.grpc_lines = 0
        self._temporary = folder / f"{name}-tmp"
        self._temporary.mkdir()
        self._flags = (*_FLAGS, *flags)
        self._env = {**(env or {}), "TMPDIR": str(self._temporary), "OMP_NUM_THREADS": "1"}
        self._read = 0
        self.live: LiveServer
        self.wire: Wire

    def __enter__(self) -> Service:
        self.live = _Server(*self._flags, env=self._env).__enter__()
        self._port = self.live.address.rpartition(":")[2]
        self.wire = Wire(f"127.0.0.1:{self._port}").__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.wire.__exit__(*error)
        if self.live.process.poll() is None:
            self.stop()

    @property
    def address(self) -> str:
        """What callers know it by."""
        return self.wire.address.replace("127.0.0.1", "localhost")

    def stop(self) -> None:
        """Asks it to end, and judges how it did."""
        for child in psutil.Process(self.live.process.pid).children():
            if child.status() == psutil.STATUS_STOPPED:
                child.resume()
        status = self.live.stop()
        if status != 0:
            self.findings.append(f"{self.name}: ended with {status} when it was asked to; must be 0")
        left = [path.name for path in self._temporary.iterdir()]
        if left:
            self.findings.append(f"{self.name}: left {left} behind in its temporary folder")
        self.read_log()

    def start(self) -> None:
        """Another one, on the same port."""
        self._read = 0
        self.live = _Server(*self._flags, "--port", self._port, env=self._env).__enter__()

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """What there is of it now, by role."""
        try:
            whole = psutil.Process(self.live.process.pid)
            children = whole.children()
        except psutil.NoSuchProcess:
            return
        yield f"{self.name} {'supervisor' if children else 'server'}", whole
        yield from ((f"{self.name} worker", child) for child in children)

    def serving(self) -> bool:
        """Whether it has all of its workers."""
        return self.live.process.poll() is None and bool(self.live.log_lines("serving"))

    def read_log(self) -> None:
        """Judges what it wrote since the last time."""
        lines = self.live.raw_log()
        new, self._read = lines[self._read :], len(lines)
        said = [(line, parsed(line)) for line in new]
        self.findings += [
            f"{self.name}: the log has a line of no form: {line[:500]}" for line, it in said if it is None
        ]
        ours = [(line, it) for line, it in said if it is not None]
        self.findings += [f"{self.name}: the log says: {line[:1000]}" for line, it in ours if is_fault(it)]
        self.grpc_lines += sum("logger" in it for _, it in ours)
        # gRPC prints what it has logged.
        logged = sum("exception" in it and "logger" in it for _, it in ours)
        printed = sum(it["event"].startswith("Traceback") for _, it in ours)
        if printed > logged:
            self.findings.append(f"{self.name}: {printed} tracebacks were printed, and {logged} of them logged by gRPC")


def is_fault(said: Mapping[str, Any]) -> bool:
    """Whether a line of a server's log tells of something that nobody did to it."""
    if "logger" in said:
        return "exception" in said and not any(each in said["exception"] for each in _OF_GRPC)
    if said["event"] == "internal_error" or "exception" in said:
        return True
    return said["level"] in ("error", "critical") and said["event"] not in _EXPECTED_ERRORS
