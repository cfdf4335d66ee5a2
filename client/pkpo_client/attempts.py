"""Whether a call that failed is made again, and when.

Any call may be: it changes nothing on the server, and its answer depends on the request alone. gRPC would make one
five times at most, and never again once an answer has begun; but a server takes longer than that to start, and one that
is killed leaves answers in the middle.
"""

from __future__ import annotations

import math
import random
import time

from pkpo_client import status
from pkpo_client.errors import Cancelled, DeadlineExceeded, Overloaded, PkpoError, Unavailable

#: At a call that is not tried until its time is up.
ATTEMPTS = 5
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.1, 2.0, 3.0


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
        self._failed = 0

    @property
    def waited(self) -> float:
        """Seconds since the first began."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float:
        """Seconds that the next may take."""
        return self._seconds - self.waited

    def pause_after(self, error: PkpoError) -> float | None:
        """Seconds from the failure of an attempt to the next one; None where there is to be none."""
        self._failed += 1
        if self._failed >= self._most(error):
            return None
        own = min(_FIRST_PAUSE * _GROWTH ** (self._failed - 1), _LONGEST_PAUSE) * random.uniform(0.8, 1.2)
        # A service that says when does not know how often it has said so.
        pause = max(status.pushback(error.__cause__) or 0.0, own)
        return pause if pause < self.seconds_left else None

    def _most(self, error: PkpoError) -> float:
        """How many attempts may end like this."""
        if isinstance(error, DeadlineExceeded):
            return 0
        if isinstance(error, Unavailable):
            return math.inf if self._patient else ATTEMPTS
        if isinstance(error, Overloaded):
            # One that does not say when to come back may mean a message that will never fit.
            return ATTEMPTS if status.pushback(error.__cause__) is None else math.inf
        # A server that stops cancels a call that arrives at that very moment. What we cancel does not come here.
        if isinstance(error, Cancelled) or status.is_break(error.__cause__):
            return ATTEMPTS
        return 0


__all__ = ["ATTEMPTS", "Attempts"]
