"""Which training runs have metric series of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

from pkpo_server.logs import Log
from pkpo_server.run_files import RunFile

# What a request counts under that names no run, and one of a run without a slot. Runs of these names have none.
NO_RUN, OTHER_RUN = "none", "other"


class Runs:
    """As many runs as there are slots, each from its first batch until it has sent none for some time.

    Belongs to one event loop.

    Args:
        slots: how many runs there may be; those that find none free share `other`.
        idle_seconds: after this long without a batch a run gives its slot back.
        log: where it is written that none was free, once until one is.
        file: that holds the counters of runs where several processes share their metrics; those in it have slots.
        clock: seconds, from any beginning.
    """

    def __init__(
        self,
        slots: int,
        idle_seconds: float,
        log: Log,
        file: RunFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self._idle_seconds = idle_seconds
        self._log = log
        self._file = file
        self._clock = clock
        # When each sent its last batch; whoever has been idle longest is first.
        self._last: dict[str, float] = dict.fromkeys(file.runs() - {NO_RUN, OTHER_RUN} if file else (), clock())
        self._told = False

    def __len__(self) -> int:
        return len(self._last)

    def name(self, run_id: str) -> str:
        """What a batch of this run that comes now is counted under."""
        if not run_id or run_id == NO_RUN or not self.slots:
            return NO_RUN
        if run_id == OTHER_RUN:
            return OTHER_RUN
        if self._last.pop(run_id, None) is None and len(self._last) >= self.slots:
            self._tell(run_id)
            return OTHER_RUN
        self._last[run_id] = self._clock()
        return run_id

    def let_go(self) -> list[str]:
        """Takes the slots of those that have been idle for long enough, and forgets their counters in the file."""
        until = self._clock() - self._idle_seconds
        idle = [run for run, last in self._last.items() if last <= until]
        if idle and self._file is not None:
            self._file.forget(idle)
        for run in idle:
            del self._last[run]
        self._told = self._told and not idle
        return idle

    def seconds_left(self) -> float | None:
        """Until one may have been idle for long enough; None where no run has a slot."""
        if not self._last:
            return None
        return max(0.0, next(iter(self._last.values())) + self._idle_seconds - self._clock())

    def _tell(self, run_id: str) -> None:
        if not self._told:
            self._told = True
            self._log.warning("runs_full", run_id=run_id, max_run_ids=self.slots)
