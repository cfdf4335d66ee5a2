"""How long work may wait for a thread before it is better told to come back.

At 80 % load little work would wait as long as MOST_USUAL_PIECES of usual work take, so that few calls in a hundred are
refused. Where work has waited all the time for a while there is more than can be done, and a long queue would only make
everyone wait: then the bound shrinks to FEWEST_USUAL_PIECES, and grows again slowly.

It is much the same for all: one by what each takes itself would let in the long or the short ones alone. For the same
reason what is usual moves slowly where many come: with what waits just at the bound, whoever moved it would decide who
is let in.
"""

from __future__ import annotations

from math import expm1, inf

MOST_USUAL_PIECES, FEWEST_USUAL_PIECES = 20.0, 5.0
STANDING_SECONDS, SHORTENING_SECONDS, LENGTHENING_SECONDS = 0.5, 0.5, 5.0
# Work that takes long may wait for half as many pieces like itself.
OWN_SHARE = 0.5
LEAST_SECONDS = 0.02
# What is usual is what was asked for during this time.
USUAL_SECONDS = 2.0


class WaitBound:
    """Learns from each piece of work that is asked for. Belongs to one event loop."""

    def __init__(self) -> None:
        self._usual = 0.0
        self._pieces = MOST_USUAL_PIECES
        self._asked = -inf

    def seconds(self, own: float, now: float, waiting_since: float) -> float:
        """How long work that is asked for now may wait.

        Args:
            own: seconds that it takes of a processor.
            now: on time.monotonic's clock.
            waiting_since: since when something has been waiting all the time, on the same clock; infinity where nothing
                waits.
        """
        since = now - self._asked
        self._usual += -expm1(-since / USUAL_SECONDS) * (own - self._usual)
        standing = now - waiting_since > STANDING_SECONDS
        speed = -1 / SHORTENING_SECONDS if standing else 1 / LENGTHENING_SECONDS
        change = (MOST_USUAL_PIECES - FEWEST_USUAL_PIECES) * speed * since
        self._pieces = min(max(self._pieces + change, FEWEST_USUAL_PIECES), MOST_USUAL_PIECES)
        self._asked = now
        return max(self._pieces * max(self._usual, OWN_SHARE * own), LEAST_SECONDS)
