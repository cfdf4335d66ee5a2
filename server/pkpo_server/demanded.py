"""How much work each tenant has asked for lately, so that whoever floods is known from who does not."""

from __future__ import annotations

from math import exp

# What was asked for longer ago counts for less: by e for each of so many seconds.
FADING_SECONDS = 2.0
# Who asks for less than this share of what tenants ask for on average is light. Of the average, and not of what the one
# asks for who asks for the most: a caller that invents a tenant for each call would have them all light beside an
# honest one.
LIGHT_SHARE = 1 / 2
# Sums are kept times e for each FADING_SECONDS since a beginning, so that none has to be looked at to fade; and now and
# then begun anew, without those of which nearly nothing is left.
_LONGEST_FADINGS = 10.0
_NEARLY_NOTHING = 1e-3
# A caller can invent tenants; this many are kept.
MOST_TENANTS = 4096


class Demanded:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._total = 0.0
        self._begin = 0.0

    def ask(self, tenant: str, seconds: float, now: float) -> None:
        """A tenant has asked for work that takes so long, whether or not it gets it.

        Args:
            tenant: who.
            seconds: of a thread.
            now: on time.monotonic's clock; never less than before.
        """
        fadings = (now - self._begin) / FADING_SECONDS
        if fadings > _LONGEST_FADINGS or (tenant not in self._sums and len(self._sums) >= MOST_TENANTS):
            self._begin_anew(fadings, now)
            fadings = 0.0
        asked = seconds * exp(fadings)
        self._sums[tenant] = self._sums.get(tenant, 0.0) + asked
        self._total += asked

    def is_light(self, tenant: str) -> bool:
        """Whether a tenant has asked for less than half as much as tenants have on average."""
        return self._sums.get(tenant, 0.0) * len(self._sums) < LIGHT_SHARE * self._total

    def _begin_anew(self, fadings: float, now: float) -> None:
        """Fades every sum, and keeps those of the tenants that have asked for the most."""
        faded = exp(-fadings)
        least = _NEARLY_NOTHING * self._total / max(1, len(self._sums))
        kept = sorted(self._sums.items(), key=lambda item: item[1], reverse=True)[: MOST_TENANTS // 2]
        self._sums = {name: total * faded for name, total in kept if total > least}
        self._total = sum(self._sums.values())
        self._begin = now
