"""What became of each call: an answer that was right or wrong, an error, or nothing yet."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from pkpo_client import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    PkpoError,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unreachable,
)

# Beyond its deadline, for a call to end.
SLACK_SECONDS = 15.0
# A process that does not run for so long tells nothing of others by its calls.
STALL_SECONDS = 3.0
_BEAT_SECONDS = 0.25

_CODES: dict[type[PkpoError], str] = {
    Unreachable: "UNREACHABLE",
    Unavailable: "UNAVAILABLE",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    Overloaded: "RESOURCE_EXHAUSTED",
    Unauthenticated: "UNAUTHENTICATED",
    PermissionDenied: "PERMISSION_DENIED",
    Cancelled: "CANCELLED",
    InvalidArgument: "INVALID_ARGUMENT",
}


@dataclass(frozen=True)
class Failure:
    """A call that ended otherwise than with a right answer, or has not ended.

    Attributes:
        caller: what kind of.
        service: whom it asked.
        code: of gRPC, or UNREACHABLE, WRONG, ANSWERED (which it must not be), LATE, STUCK, or a Python exception.
        started, ended: by the monotonic clock, which all processes share.
        text: of the error.
    """

    caller: str
    service: str
    code: str
    started: float
    ended: float
    text: str = ""


class Call:
    """One call while it is made.

    Attributes:
        right: whether its answer was right; None where it gave none, or none that can be checked.
    """

    def __init__(self, caller: str, service: str, seconds: float, started: float, begun: float) -> None:
        self.caller, self.service, self.seconds = caller, service, seconds
        self.started, self.begun = started, begun
        self.right: bool | None = None


class Heartbeat:
    """Time in which this process ran. A machine that stands still, or a process that is stopped, lets none pass.

    Attributes:
        stalls: from when to when it did not.
    """

    def __init__(self) -> None:
        self.stalls: list[tuple[float, float]] = []
        self._lived = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._lived

    def stop(self) -> None:
        """No more."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        before = time.monotonic()
        while not self._over.wait(_BEAT_SECONDS):
            now = time.monotonic()
            self._lived += min(now - before, 2 * _BEAT_SECONDS)
            if now - before > STALL_SECONDS:
                self.stalls.append((before, now))
            before = now


@dataclass
class Page:
    """What was noted since the last time.

    Attributes:
        calls: that have ended, by caller.
        checked: answers that were compared with what they must be, by caller.
        refused: calls that were refused as they had to be, by caller.
        failures: all else.
        latencies: of right answers: caller, when it was asked, seconds.
        stalls: from when to when the process did not run.
        counts: of anything else.
    """

    calls: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    latencies: list[tuple[str, float, float]] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Notes every call of a process. Safe to use from any thread."""

    def __init__(self) -> None:
        self.heartbeat = Heartbeat()
        self._lock = threading.Lock()
        self._open: set[Call] = set()
        self._stuck: set[Call] = set()
        self._clear()

    def _clear(self) -> None:
        self._calls: Counter[str] = Counter()
        self._checked: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._failures: list[Failure] = []
        self._latencies: list[tuple[str, float, float]] = []

    @contextmanager
    def call(
        self, caller: str, service: str, seconds: float, refused: Iterable[str] = (), must: bool = False
    ) -> Iterator[Call]:
        """One call is made within the block; its errors end there.

        Args:
            caller: what kind of.
            service: whom it asks.
            seconds: within which it must have an outcome.
            refused: codes that are as good as an answer.
            must: whether it has to be refused, with one of these.
        """
        call = Call(caller, service, seconds, time.monotonic(), self.heartbeat.seconds)
        with self._lock:
            self._open.add(call)
        code, text = "", ""
        try:
            yield call
        except Exception as error:
            code, text = code_of(error), f"{type(error).__name__}: {error}"
        with self._lock:
            self._open.discard(call)
            self._note(call, code, text, tuple(refused), must)

    def _note(self, call: Call, code: str, text: str, refused: tuple[str, ...], must: bool) -> None:
        ended = time.monotonic()
        self._calls[call.caller] += 1
        self._checked[call.caller] += call.right is not None
        took = self.heartbeat.seconds - call.begun
        found = ""
        if call.right is False:
            found = "WRONG"
        elif code in refused:
            self._refused[call.caller] += 1
        elif code:
            found = code
        elif must:
            found = "ANSWERED"
        elif call.right:
            self._latencies.append((call.caller, call.started, ended - call.started))
        if took > call.seconds + SLACK_SECONDS:
            found, text = "LATE", f"took {took:.0f} s of {call.seconds:.0f}; {found} {text}"
        if found:
            self._failures.append(Failure(call.caller, call.service, found, call.started, ended, text[:300]))

    def fail(self, caller: str, service: str, code: str, text: str) -> None:
        """Something that is no call went wrong."""
        now = time.monotonic()
        with self._lock:
            self._failures.append(Failure(caller, service, code, now, now, text[:300]))

    def count(self, what: str) -> None:
        """Something happened."""
        with self._lock:
            self._counts[what] += 1

    def page(self) -> Page:
        """What was noted since the last time, and the calls that should have ended and have not."""
        with self._lock:
            now, lived = time.monotonic(), self.heartbeat.seconds
            for call in self._open - self._stuck:
                if lived - call.begun > call.seconds + SLACK_SECONDS:
                    self._stuck.add(call)
                    text = f"no outcome after {lived - call.begun:.0f} s; its deadline was {call.seconds:.0f} s"
                    self._failures.append(Failure(call.caller, call.service, "STUCK", call.started, now, text))
            self._stuck &= self._open
            stalls, self.heartbeat.stalls = self.heartbeat.stalls, []
            page = Page(
                dict(self._calls), dict(self._checked), dict(self._refused), [asdict(each) for each in self._failures],
                self._latencies, stalls, dict(self._counts),
            )  # fmt: skip
            self._clear()
        return page


def code_of(error: BaseException) -> str:
    """What a call ended with: the name of a gRPC code where it is of that kind."""
    if isinstance(error, ServerError):
        return error.code
    if isinstance(error, PkpoError):
        return _CODES.get(type(error), type(error).__name__)
    if isinstance(error, (grpc.RpcError, grpc.FutureCancelledError)):
        code = error.code() if isinstance(error, grpc.RpcError) else grpc.StatusCode.CANCELLED  # type: ignore[attr-defined]
        return str(code.name)
    return type(error).__name__
