"""Calls made one after another by several threads and tasks, and streams beside them, in a process of their own.

No two requests are the same, and each answer is compared with the one computed in that process: one that was lost, came
twice or was another's is seen. A failure is a call that its caller saw fail.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from pkpo_client import AsyncClient, Client, LocalClient, PkpoError

_CALLERS = 2
_K = 4
_GROUP_SIZE = 16


@dataclass
class Report:
    """What has happened so far.

    Attributes:
        asked: requests that were made, by unary calls and on streams.
        calls: unary calls that have ended.
        messages: of the streams, that have ended.
        wrong: answers other than those computed here.
        failures: what callers saw.
        said: what the clients said in their log.
    """

    asked: int = 0
    calls: int = 0
    messages: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Load:
    """A process that calls, from start to end.

    Args:
        address: of the service.
        within: what goes in front of the command, such as `ip netns exec NAME`.
        groups: of 16 rewards each, in a request.
        pause: seconds between one request of a caller and its next.
        fallback: of the clients.
    """

    def __init__(
        self,
        address: str,
        within: Sequence[str] = (),
        groups: int = 64,
        pause: float = 0.02,
        fallback: Literal["local"] | None = None,
    ) -> None:
        asked = json.dumps({"address": address, "groups": groups, "pause": pause, "fallback": fallback})
        self._command = [*within, sys.executable, str(Path(__file__)), asked]
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate(timeout=60)

    def end(self) -> Report:
        """No more calls; what has happened, once all of them have ended."""
        said, _ = self._process.communicate(timeout=60)
        return Report(**json.loads(said))

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


class _Caller(logging.Handler):
    """What the process does."""

    def __init__(self, address: str, groups: int, pause: float, fallback: str | None) -> None:
        super().__init__()
        self._of_clients = {"address": address, "fallback": fallback}
        self._pause = pause
        self._shape = groups, _GROUP_SIZE
        self._numbers = itertools.count()
        self._here = LocalClient()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._so_far = Report()

    def run(self) -> None:
        """Calls until nobody asks for reports any more."""
        logging.getLogger("pkpo_client").addHandler(self)
        with Client(**self._of_clients) as client:
            threads = [threading.Thread(target=self._call, args=(client,)) for _ in range(_CALLERS)]
            threads.append(threading.Thread(target=self._stream, args=(client,)))
            threads.append(threading.Thread(target=lambda: asyncio.run(self._call_and_stream())))
            for thread in threads:
                thread.start()
            for _ in sys.stdin:
                self._print()
            self._over.set()
            for thread in threads:
                thread.join()
        self._print()

    def emit(self, record: logging.LogRecord) -> None:
        self._so_far.said.append(record.getMessage())

    def _print(self) -> None:
        with self._lock:
            report = json.dumps(asdict(self._so_far))
        print(report, flush=True)

    def _call(self, client: Client) -> None:
        while not self._over.wait(self._pause):
            batch = self._batch()
            try:
                self._note("calls", client.transform(batch, _K), batch)
            except PkpoError as error:
                self._note_failure("calls", error)

    def _stream(self, client: Client) -> None:
        given: list[Any] = []
        results = client.stream(self._batches(given), _K)
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except PkpoError as error:
                self._note_failure("messages", error)
                given.pop(0)
            else:
                self._note("messages", result.advantages, given.pop(0))

    async def _call_and_stream(self) -> None:
        async with AsyncClient(**self._of_clients) as client:
            calls = [self._call_from_loop(client) for _ in range(_CALLERS)]
            await asyncio.gather(*calls, self._stream_from_loop(client))

    async def _call_from_loop(self, client: AsyncClient) -> None:
        while not self._over.is_set():
            await asyncio.sleep(self._pause)
            batch = self._batch()
            try:
                self._note("calls", await client.transform(batch, _K), batch)
            except PkpoError as error:
                self._note_failure("calls", error)

    async def _stream_from_loop(self, client: AsyncClient) -> None:
        given: list[Any] = []

        async def batches() -> AsyncIterator[Any]:
            while not self._over.is_set():
                await asyncio.sleep(self._pause)
                given.append(self._batch())
                yield given[-1]

        results = client.stream(batches(), _K)
        while True:
            try:
                result = await results.__anext__()
            except StopAsyncIteration:
                return
            except PkpoError as error:
                self._note_failure("messages", error)
                given.pop(0)
            else:
                self._note("messages", result.advantages, given.pop(0))

    def _batches(self, given: list[Any]) -> Iterator[Any]:
        while not self._over.wait(self._pause):
            given.append(self._batch())
            yield given[-1]

    def _batch(self) -> Any:
        batch = np.random.default_rng(next(self._numbers)).random(self._shape)
        with self._lock:
            self._so_far.asked += 1
        return batch

    def _note(self, kind: str, answer: Any, batch: Any) -> None:
        right = np.array_equal(answer, self._here.transform(batch, _K))
        with self._lock:
            setattr(self._so_far, kind, getattr(self._so_far, kind) + 1)
            self._so_far.wrong += not right

    def _note_failure(self, kind: str, error: PkpoError) -> None:
        with self._lock:
            setattr(self._so_far, kind, getattr(self._so_far, kind) + 1)
            self._so_far.failures.append(f"{kind}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    _Caller(**json.loads(sys.argv[1])).run()
