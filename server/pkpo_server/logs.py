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
from datetime import datetime, timezone
from typing import Any

import structlog

# A caller that repeats a mistake a thousand times a second says nothing new after the first few.
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
        structlog.contextvars.merge_contextvars,
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
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.addFilter(_Bounded())
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
    logging.captureWarnings(True)
    sys.stderr = Printed()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
    log: Log = structlog.get_logger()
    return log


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
    """At most so many lines of libraries a second: gRPC writes one, with a traceback, per header it cannot read."""

    def __init__(self, lines_per_second: int = REFUSAL_LINES_PER_SECOND) -> None:
        super().__init__()
        self._lines_per_second = lines_per_second
        self._second = self._written = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        return self._written <= self._lines_per_second


class BoundedLog:
    """At most so many lines a second; the rest are counted, and the count is written when the second is over.

    Belongs to one event loop.
    """

    def __init__(self, log: Log, lines_per_second: int = REFUSAL_LINES_PER_SECOND) -> None:
        self._log = log
        self._lines_per_second = lines_per_second
        self._written = 0
        self._suppressed = 0
        self._second: asyncio.TimerHandle | None = None

    def warning(self, event: str, **fields: Any) -> None:
        """Writes a line, or counts it."""
        if self._has_room():
            self._log.warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Writes a line of severity error, or counts it."""
        if self._has_room():
            self._log.error(event, **fields)

    def flush(self) -> None:
        """Writes how many lines were suppressed since the last count."""
        if self._second is not None:
            self._second.cancel()
            self._second = None
        if self._suppressed:
            self._log.warning("suppressed", lines=self._suppressed)
        self._written = self._suppressed = 0

    def _has_room(self) -> bool:
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1, self.flush)
        if self._written < self._lines_per_second:
            self._written += 1
            return True
        self._suppressed += 1
        return False
