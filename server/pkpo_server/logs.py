"""One JSON line per event, to stderr."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import select
import stat
import sys
import threading
import time
import warnings
from collections import Counter
from datetime import datetime, timezone
from typing import Any, TextIO

import structlog

# A caller that repeats a mistake a thousand times a second says nothing new after the first few. Of each kind of line
# there are so many, so that one kind hides no other.
REFUSAL_LINES_PER_SECOND = 10

STDERR = 2

Log = structlog.typing.FilteringBoundLogger


def configure(level: str, **context: Any) -> Log:
    """The process's log, from `level` up; every line carries `context`.

    Lines of libraries come out in the same form: those that they log, and those that they print.
    """
    lines: Any = Lines(STDERR)
    threshold: int = getattr(logging, level.upper())
    shared: list[Any] = [
        _With(context),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.EventRenamer("event"),
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _Logger(lines),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    bounded = _Bounded()
    handler.addFilter(bounded)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)
    log: Log = structlog.get_logger()
    warnings.showwarning = _Warnings(log, bounded)
    sys.stderr = Printed()
    return log


class _With:
    """Adds fields to every line, of whatever thread: gRPC's and those of libraries have no context of ours."""

    def __init__(self, context: dict[str, Any]) -> None:
        self._context = context

    def __call__(self, _: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**self._context, **line}


class _Logger:
    """Writes what structlog makes of an event. Its own loggers hold a lock that a finalizer would wait for for ever."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def msg(self, line: str) -> None:
        """Writes a line."""
        self._lines.write(line + "\n")

    debug = info = warning = error = critical = msg


class Lines:
    """A text stream for lines. Whoever writes one goes on, whatever becomes of it.

    A full disk, a reader that is gone and one that has stopped reading lose lines; how many is said once lines can be
    written again.

    Args:
        descriptor: of a file, a pipe, a socket or a terminal.
        patience_seconds: how long a reader may take to make room. One that did not is no more waited for.
    """

    def __init__(self, descriptor: int, patience_seconds: float = 0.1) -> None:
        self._descriptor = descriptor
        self._patience_ms = 1000 * patience_seconds
        # Where poll says that a pipe has room, so much is written all at once and without waiting.
        self._at_once = select.PIPE_BUF if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else 2**20
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lock = threading.RLock()
        self._writing = False
        self._torn = False
        self._lost = 0

    def write(self, line: str) -> None:
        """Writes a line, with its end, or counts it as lost."""
        with self._lock:
            if self._writing:
                # A finalizer of the collector's, in the middle of a line of this thread.
                self._lost += 1
                return
            self._writing = True
            try:
                self._write(line)
            finally:
                self._writing = False

    def _write(self, line: str) -> None:
        if self._lost:
            now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
            told = {"lines": self._lost, "level": "warning", "timestamp": now, "event": "lost"}
            if self._written(json.dumps(told) + "\n"):
                self._lost = 0
        if self._lost or not self._written(line):
            self._lost += 1

    def flush(self) -> None:
        """Nothing is kept back."""

    def _written(self, line: str) -> bool:
        rest = ("\n" * self._torn + line).encode(errors="backslashreplace")
        while rest:
            if not self._poll.poll(0 if self._lost else self._patience_ms):
                return False
            try:
                rest = rest[os.write(self._descriptor, rest[: self._at_once]) :]
            except OSError:
                return False
            self._torn = bool(rest)
        return True


class Printed(io.TextIOBase):
    """What others print to stderr, as lines of the logger "stderr": gRPC prints tracebacks, and so does Python."""

    def write(self, text: str) -> int:
        """Logs each line of it that says anything."""
        for line in text.splitlines():
            if line.strip():
                logging.getLogger("stderr").error(line)
        return len(text)


class _Bounded(logging.Filter):
    """At most so many lines of each library a second: gRPC writes one, with a traceback, per header it cannot read."""

    def __init__(self, lines_per_second: int = REFUSAL_LINES_PER_SECOND) -> None:
        super().__init__()
        self._lines_per_second = lines_per_second
        # Finalizers of the collector's log too, wherever it runs.
        self._lock = threading.RLock()
        self._second = 0
        self._written: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        return self.has_room(record.name)

    def has_room(self, logger: str) -> bool:
        """Whether one more line of a logger's is written. Their names are in code, so that there are few."""
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second = second
                self._written.clear()
            self._written[logger] += 1
            return self._written[logger] <= self._lines_per_second


class _Warnings:
    """What Python and its libraries warn of, as events: what is said, without the line of code that said it."""

    def __init__(self, log: Log, bounded: _Bounded) -> None:
        self._log = log
        self._bounded = bounded

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Stands in for `warnings.showwarning`."""
        if file is not None:
            file.write(warnings.formatwarning(message, category, filename, lineno, line))
        elif self._bounded.has_room("warnings"):
            self._log.warning("warning", category=category.__name__, message=str(message))


class BoundedLog:
    """At most so many lines of a kind a second; the rest are counted, and the counts are written when it is over.

    Belongs to one event loop. Kinds are few: none is made of what callers send.
    """

    def __init__(self, log: Log, lines_per_second: int = REFUSAL_LINES_PER_SECOND) -> None:
        self._log = log
        self._lines_per_second = lines_per_second
        self._written: Counter[str] = Counter()
        self._suppressed: Counter[str] = Counter()
        self._second: asyncio.TimerHandle | None = None

    def warning(self, event: str, *, kind: str = "", **fields: Any) -> None:
        """Writes a line, or counts it. Its kind is the event where it is not given."""
        if self._has_room(kind or event):
            self._log.warning(event, **fields)

    def error(self, event: str, *, kind: str = "", **fields: Any) -> None:
        """Writes a line of severity error, or counts it."""
        if self._has_room(kind or event):
            self._log.error(event, **fields)

    def flush(self) -> None:
        """Writes how many lines were suppressed since the last count, and of which kinds."""
        if self._second is not None:
            self._second.cancel()
            self._second = None
        if self._suppressed:
            self._log.warning("suppressed", lines=sum(self._suppressed.values()), kinds=dict(self._suppressed))
        self._written.clear()
        self._suppressed.clear()

    def _has_room(self, kind: str) -> bool:
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1, self.flush)
        if self._written[kind] < self._lines_per_second:
            self._written[kind] += 1
            return True
        self._suppressed[kind] += 1
        return False
