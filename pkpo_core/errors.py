"""What pkpo_core raises.

CoreError
└── InvalidArgument     also a ValueError; names each offending field, its value and the bound it breaks
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MOST_VIOLATIONS = 8


@dataclass(frozen=True, slots=True)
class Violation:
    """One offending field: its path in the words of the wire contract, and its value with the bound it breaks."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class CoreError(Exception):
    """The root of everything pkpo_core raises on purpose."""


class InvalidArgument(CoreError, ValueError):
    """The arguments break a rule; nothing was computed.

    Attributes:
        violations: the offending fields, one violation for each, at most `MOST_VIOLATIONS`.
    """

    def __init__(self, violations: Iterable[Violation]) -> None:
        by_field = {violation.field: violation for violation in reversed(tuple(violations))}
        self.violations = tuple(reversed(by_field.values()))[:MOST_VIOLATIONS]
        super().__init__("; ".join(map(str, self.violations)))

    @classmethod
    def of(cls, field: str, description: str) -> InvalidArgument:
        """The error of one offending field."""
        return cls([Violation(field, description)])


def refuse_any(violations: Iterable[Violation]) -> None:
    """Raises InvalidArgument where there is a violation."""
    found = tuple(violations)
    if found:
        raise InvalidArgument(found)
