"""Calls made one after another by several threads, and a stream beside them, in a process of their own.

Each answer is compared with the one computed in that process. A failure is a call that its caller saw fail.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pkpo_client import Client, LocalClient, PkpoError

_CALLERS = 3
_PAUSE_SECONDS = 0.02
_K = 4


@dataclass
class Report:
    """What has happened so far.

    Attributes:
        calls: unary calls that have ended.
        messages: of the stream, that have ended.
        wrong: answers other than those computed here.
        failures: what callers saw.
    """

    calls: int = 0
    messages: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)


class Load:
    """A process that calls, from start to end.

    Args:
        address: of the service.
        within: what goes in front of the command, such as `ip netns exec NAME`.
    """

    def __init__(self, address: str, within: Sequence[str] = ()) -> None:
        self._command = [*within, sys.executable, str(Path(__file__)), address]
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.end()

    def end(self) -> None:
        """No more calls."""
        self._process.communicate(timeout=60)

    def report(self) -> Report:
        """What has happened so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        return Report(**json.loads(self._process.stdout.readline()))

    def has_gone_on(self, since: Report, number: int) -> bool:
        """Whether so many calls and messages have ended since then, and none of all has failed."""
        now = self.report()
        assert not now.failures, now
        assert not now.wrong, now
        return now.calls >= since.calls + number and now.messages >= since.messages + number


class _Caller:
    """What the process does."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)
        self._batches = [np.random.default_rng(seed).random((64, 16)) for seed in range(7)]
        with LocalClient() as here:
            self._answers = [here.transform(batch, _K) for batch in self._batches]
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._so_far = Report()
        self._threads = [threading.Thread(target=self._call) for _ in range(_CALLERS)]
        self._threads.append(threading.Thread(target=self._stream))

    def run(self) -> None:
        """Calls until nobody asks for reports any more."""
        for thread in self._threads:
            thread.start()
        for _ in sys.stdin:
            with self._lock:
                report = json.dumps(asdict(self._so_far))
            print(report, flush=True)
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _call(self) -> None:
        for batch, answer in itertools.cycle(zip(self._batches, self._answers, strict=True)):
            if self._over.wait(_PAUSE_SECONDS):
                return
            try:
                self._note("calls", self._client.transform(batch, _K), answer)
            except PkpoError as error:
                self._note_failure("calls", error)

    def _stream(self) -> None:
        results = iter(self._client.stream(self._batches_for_ever(), _K))
        for answer in itertools.cycle(self._answers):
            try:
                self._note("messages", next(results).advantages, answer)
            except StopIteration:
                return
            except PkpoError as error:
                self._note_failure("messages", error)

    def _batches_for_ever(self) -> Iterator[Any]:
        for batch in itertools.cycle(self._batches):
            if self._over.wait(_PAUSE_SECONDS):
                return
            yield batch

    def _note(self, kind: str, answer: Any, expected: Any) -> None:
        with self._lock:
            setattr(self._so_far, kind, getattr(self._so_far, kind) + 1)
            self._so_far.wrong += not np.array_equal(answer, expected)

    def _note_failure(self, kind: str, error: PkpoError) -> None:
        with self._lock:
            setattr(self._so_far, kind, getattr(self._so_far, kind) + 1)
            self._so_far.failures.append(f"{kind}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    _Caller(sys.argv[1]).run()
