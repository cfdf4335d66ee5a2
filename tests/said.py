"""A log that keeps what it is told, for tests of what is written without a process that writes it."""

from __future__ import annotations

from typing import Any


class Said:
    """Stands in for pkpo_server.logs.Log.

    Attributes:
        lines: the event and the fields of each line.
    """

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warning = error = info
