"""What a token is good for: the runs its holder may send for, and the name its calls go by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pkpo_server.refusal import PermissionDenied

_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,64}")
_RUNS = re.compile(r"[A-Za-z0-9._:/*?-]{1,128}")
_CHARACTERS = "letters, digits and . _ : / -"


class MalformedGrant(ValueError):
    """Words that say no grant; the text says which one, and shows none, since it may be half a token."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do.

    Attributes:
        name: whose token it is, for logs and for fair shares; empty where nobody said.
        runs: patterns of the run_ids that may be sent for, where * stands for any characters and ? for one; None for
            every run, and for requests that name none.
    """

    name: str = ""
    runs: tuple[str, ...] | None = None

    def check(self, run_id: str) -> None:
        """Raises PermissionDenied where a request for this run, or for none (""), is not allowed."""
        if self.runs is None:
            return
        if not run_id or not any(fnmatchcase(run_id, pattern) for pattern in self.runs):
            raise PermissionDenied(run_id, self.runs)


#: Of a token without words beside it, and of every caller where no token is asked for.
EVERYTHING = Grant()
#: Of a caller without a token where one is asked for.
NOTHING = Grant(runs=())


def grant_of(words: Iterable[str]) -> Grant:
    """The grant that `name=NAME` and `runs=PATTERN,PATTERN` say, each at most once. Raises MalformedGrant."""
    name, runs = "", None
    for number, word in enumerate(words, start=1):
        key, equals, value = word.partition("=")
        if not equals or key not in ("name", "runs"):
            raise MalformedGrant(f"word {number} after the token is neither name=... nor runs=...")
        if name if key == "name" else runs is not None:
            raise MalformedGrant(f"{key}= is there twice; must be once")
        if key == "runs":
            runs = tuple(value.split(","))
            for each, pattern in enumerate(runs, start=1):
                if not _RUNS.fullmatch(pattern):
                    raise MalformedGrant(f"pattern {each} of runs= must be 1 to 128 of {_CHARACTERS}, * and ?")
        elif _NAME.fullmatch(value):
            name = value
        else:
            raise MalformedGrant(f"name= must be 1 to 64 of {_CHARACTERS}")
    return Grant(name, runs)
