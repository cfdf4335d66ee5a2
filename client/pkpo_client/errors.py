"""What can go wrong, and what to catch.

    PkpoError
    ├── InvalidArgument (ValueError)          an argument the service refuses; names it, its value and the bound
    ├── Unavailable (ConnectionError)         the service answered UNAVAILABLE until the retries were used up
    │   └── Unreachable (DeadlineExceeded)    no connection to the service within the call's timeout
    ├── DeadlineExceeded (TimeoutError)       the service is there, and did not answer within the call's timeout
    ├── Overloaded                            the service has too much to do; says when to come back
    ├── Unauthenticated                       the service wants a token, or another one
    ├── PermissionDenied                      the token is known and may not do this
    ├── Cancelled                             the call was given up, here or by the service
    ├── ServerError                           any other gRPC status, or an answer that does not fit its request
    ├── ClientClosed (RuntimeError)           the client was closed, or belongs to another process or event loop
    └── LocalComputingMissing (ImportError)   computing in this process needs `pip install 'pkpo[local]'`

An error that came from gRPC has it as its `__cause__`. Nothing here is ever turned into an advantage of zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import TypeVar


class PkpoError(Exception):
    """The root: catch it to catch everything this package raises on purpose.

    Attributes:
        advice: the end of the message, which tells a program what it may change in its own code; empty for most.
    """

    advice: str = ""

    def __str__(self) -> str:
        return super().__str__() + self.advice


ErrorT = TypeVar("ErrorT", bound=PkpoError)


def copy_of(error: ErrorT) -> ErrorT:
    """Another error that says the same of the same cause: one that is raised for each batch is one for each."""
    another = copy(error)
    another.__cause__ = error.__cause__
    return another


@dataclass(frozen=True)
class Violation:
    """One thing wrong with a request.

    Attributes:
        field: in the words of the wire contract, such as "groups.rewards[17]" or "k[3]".
        description: the value and the bound it breaks.
        where: the same place in the caller's arguments, such as "rewards[1, 5]", where that helps; else empty.
    """

    field: str
    description: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" + (f" (at {self.where})" if self.where else "")


class InvalidArgument(PkpoError, ValueError):
    """An argument the service refuses.

    Attributes:
        violations: what is wrong, each with its `field` and `description`; a bounded number of them.
    """

    violations: tuple[Violation, ...]

    def __init__(self, message: str, violations: Iterable[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, *violations: Violation) -> InvalidArgument:
        """The error that says these violations and nothing else."""
        return cls("; ".join(map(str, violations)), violations)


def refused(field: str, description: str) -> InvalidArgument:
    """The error that says one thing is wrong: "field: is VALUE; must be BOUND"."""
    return InvalidArgument.of(Violation(field, description))


class Unavailable(PkpoError, ConnectionError):
    """The service answered UNAVAILABLE until the retries were used up.

    Attributes:
        seen: what it said, or what gRPC last saw go wrong; empty if nothing.
    """

    seen: str = ""


class DeadlineExceeded(PkpoError, TimeoutError):
    """The service is there, and did not answer within the call's timeout."""


class Unreachable(Unavailable, DeadlineExceeded):
    """No connection to the service within the call's timeout."""


class Overloaded(PkpoError):
    """The service has too much to do.

    Attributes:
        retry_after: seconds after which it asks to be tried again, or None where it does not say.
    """

    retry_after: float | None

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unauthenticated(PkpoError):
    """The service wants a token, or another one."""


class PermissionDenied(PkpoError):
    """The token is known and may not do this."""


class Cancelled(PkpoError):
    """The call was given up, here or by the service."""


class ServerError(PkpoError):
    """Any other gRPC status, or an answer that does not fit its request.

    Attributes:
        code: the name of the gRPC status, such as "INTERNAL"; "DATA_LOSS" for an answer that does not fit.
    """

    code: str

    def __init__(self, message: str, code: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.code = code


class ClientClosed(PkpoError, RuntimeError):
    """The client was closed, or belongs to another process or event loop."""


class LocalComputingMissing(PkpoError, ImportError):
    """Computing in this process needs `pip install 'pkpo[local]'`."""


__all__ = [
    "Cancelled",
    "ClientClosed",
    "DeadlineExceeded",
    "InvalidArgument",
    "LocalComputingMissing",
    "Overloaded",
    "PermissionDenied",
    "PkpoError",
    "ServerError",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Violation",
]
