"""Whether a call that failed is made again, and when.

Any call may be: it changes nothing on the server, and its answer depends on the request alone. gRPC would make one
five times at most, and never again once an answer has begun; but a server takes longer than that to start, and one that
is killed leaves answers in the middle.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter

from pkpo_client import status
from pkpo_client.errors import Cancelled, DeadlineExceeded, Overloaded, PkpoError, Unavailable

#: At a call that is not tried until its time is up.
ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.1, 2.0, 3.0


class Failures:
    """Attempts that failed one after another.

    Attributes:
        count: how many.
        refusals: how many of them were refusals that do not say when to come back.
        pause: seconds from the last of them to the next attempt.
    """

    def __init__(self) -> None:
        self.count = 0
        self.refusals = 0
        self.pause = 0.0
        self._own_pause = 0.0
        self._said: PkpoError | None = None

    def add(self, error: PkpoError | None) -> float:
        """Another has failed, with an error or without a word; the pause after it."""
        self.count += 1
        if isinstance(error, Overloaded) and _asked(error) is None:
            self.refusals += 1
        self._own_pause = min(self._own_pause * _GROWTH or _FIRST_PAUSE, _LONGEST_PAUSE)
        self._said = error or self._said
        asked = 0.0 if error is None or never_again(error) else _asked(error) or 0.0
        # A service that says when does not know how often it has said so.
        self.pause = max(asked, self._own_pause * random.uniform(0.8, 1.2))
        return self.pause

    @property
    def seen(self) -> str:
        """What was last seen go wrong, in a word for the log; empty where nothing was said."""
        return self._said.seen if isinstance(self._said, Unavailable) else str(self._said or "")

    def reason(self, seconds: float) -> PkpoError | None:
        """The last error of theirs, where an attempt after it that had `seconds`, and no answer, says less than that.

        It does if it had less time than the pause before it.
        """
        return self._said if seconds < self.pause else None


class Attempts:
    """Those at one call.

    Args:
        seconds: that the call may take, with all attempts and what lies between them.
        patient: whether to go on for as long while the service is unavailable, and not for ATTEMPTS only.
    """

    def __init__(self, seconds: float, patient: bool) -> None:
        self._seconds = seconds
        self._patient = patient
        self._started = time.monotonic()
        self._failures = Failures()
        self._counted: Counter[type[PkpoError]] = Counter()
        self._had = seconds

    @property
    def waited(self) -> float:
        """Seconds since the first began."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float:
        """Seconds that the next may take."""
        return self._seconds - self.waited

    def ends_with(self, error: PkpoError) -> PkpoError:
        """The error of the call whose last attempt failed with `error`."""
        said = self._failures.reason(self._had) if type(error) is DeadlineExceeded else None
        return said or error

    def pause_after(self, error: PkpoError) -> float | None:
        """Seconds from the failure of an attempt to the next one; None where there is to be none."""
        most = self._most(error)
        if most < math.inf:
            # Each kind apart: a call that was refused a hundred times while the server started has not broken off yet.
            self._counted[type(error)] += 1
            if self._counted[type(error)] >= most:
                return None
        pause = self._failures.add(error)
        left = self.seconds_left
        self._had = left - pause
        return pause if pause < left else None

    def _most(self, error: PkpoError) -> float:
        """How many attempts may end like this."""
        if isinstance(error, DeadlineExceeded) or never_again(error):
            return 0
        if isinstance(error, Unavailable):
            return math.inf if self._patient else ATTEMPTS
        if isinstance(error, Overloaded):
            return most_refusals(error)
        # A server that stops cancels a call that arrives at that very moment. What we cancel does not come here.
        if isinstance(error, Cancelled) or status.is_break(error.__cause__):
            return ATTEMPTS
        return 0


def most_refusals(error: Overloaded) -> float:
    """How many attempts may be refused like this."""
    if never_again(error):
        return 0
    # One that does not say when to come back may mean a message that will never fit.
    return ATTEMPTS if _asked(error) is None else math.inf


def never_again(error: PkpoError) -> bool:
    """Whether the service asks not to be tried again."""
    return _asked(error) == math.inf


def _asked(error: PkpoError) -> float | None:
    """Seconds after which the service asks to be tried again: inf for never, None where it does not say."""
    pushback = status.pushback(error.__cause__)
    return error.retry_after if pushback is None and isinstance(error, Overloaded) else pushback


__all__ = ["ATTEMPTS", "Attempts", "Failures", "most_refusals", "never_again"]
