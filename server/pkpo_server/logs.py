"""One JSON line per event, to stderr."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

import structlog

# A caller that repeats a mistake a thousand times a second says nothing new after the first few.
REFUSAL_LINES_PER_SECOND = 10

Log = structlog.typing.FilteringBoundLogger


def configure(level: str, **context: Any) -> Log:
    """The process's log, from `level` up; every line carries `context`.

    Lines of libraries (logging) come out in the same form.
    """
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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
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
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
    log: Log = structlog.get_logger()
    return log


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
