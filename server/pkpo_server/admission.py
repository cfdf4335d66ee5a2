"""Who gets in: a bound on the calls open at once."""

from __future__ import annotations

from pkpo_server.refusal import Overloaded


class Admission:
    """Counts open calls; belongs to one event loop.

    Args:
        most: how many may be open at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    def enter(self) -> None:
        """Lets one call in. Raises Overloaded where no more are taken."""
        if self._open >= self._most:
            raise Overloaded(
                f"{self._open} calls are open; at most max_concurrent_rpcs = {self._most} are taken at once"
            )
        self._open += 1

    def leave(self) -> None:
        """One call is over."""
        self._open -= 1
