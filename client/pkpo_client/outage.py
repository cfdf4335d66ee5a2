"""Whether the service is away, for clients made with `fallback="local"`.

An outage begins when a call finds the service unreachable, and ends when the service answers again. In between nobody
waits for it: batches are computed in this process, and a probe of the client's keeps asking in the background.
Both ends are said once, on the logger "pkpo_client" as warnings, which Python shows on stderr unless told otherwise.
(`warnings.warn` would keep quiet about a second outage, and under `-W error` would make the fallback an error.)
"""

from __future__ import annotations

import logging
import threading
import time

logger = logging.getLogger("pkpo_client")

# Between probes: a service that is starting says no at once, and every batch that is computed here would ask again.
_PAUSE_SECONDS = 0.2


class Outage:
    """Whether the service is away. Safe to use from any thread.

    Args:
        address: of the service, for the log.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._since: float | None = None
        self._batches = 0
        self._probing = False
        self._probe_at = 0.0

    @property
    def ongoing(self) -> bool:
        """Whether the service is away."""
        return self._since is not None

    def begin(self, waited: float, seen: str) -> None:
        """The service was found unreachable.

        Args:
            waited: seconds until then.
            seen: what went wrong, as far as anyone said; may be empty.
        """
        with self._lock:
            if self._since is not None:
                return
            self._since, self._batches = time.monotonic(), 0
            self._probe_at = 0.0
        logger.warning(
            "%s cannot be reached (tried for %.1f s%s); computing in this process until it is back",
            self._address,
            waited,
            seen and f"; {seen}",
        )

    def computed_here(self) -> None:
        """A batch was computed in this process."""
        with self._lock:
            self._batches += 1

    def end(self) -> None:
        """The service has answered."""
        with self._lock:
            if self._since is None:
                return
            lasted, batches, self._since = time.monotonic() - self._since, self._batches, None
        logger.warning(
            "%s is back after %.1f s; %d batches were computed in this process", self._address, lasted, batches
        )

    def may_probe(self) -> bool:
        """Whether to start a probe now: once in an outage, and again a moment after one has ended in vain."""
        with self._lock:
            if self._since is None or self._probing or time.monotonic() < self._probe_at:
                return False
            self._probing = True
            return True

    def probe_ended(self, answered: bool) -> None:
        """A probe has ended: with an answer of the service, whatever it was, or without."""
        with self._lock:
            self._probing = False
            self._probe_at = time.monotonic() + _PAUSE_SECONDS
        if answered:
            self.end()


__all__ = ["Outage", "logger"]
