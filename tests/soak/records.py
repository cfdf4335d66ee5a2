"""What a process holds, over its life: memory, descriptors, threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """What a process holds at a time.

    Attributes:
        at: seconds, by the monotonic clock.
        resident, proportional: MiB; of the latter, pages that it shares count in part.
        descriptors, threads: how many.
    """

    at: float
    resident: float
    proportional: float
    descriptors: int
    threads: int


@dataclass
class Record:
    """The samples of one process, in order.

    Attributes:
        role: what it is; one that was restarted has a record of its own.
        process: its id.
    """

    role: str
    process: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From the first to the last."""
        return self.samples[-1].at - self.samples[0].at if self.samples else 0.0

    def after(self, seconds: float) -> list[Sample]:
        """Those from so long after the first."""
        return [sample for sample in self.samples if sample.at >= self.samples[0].at + seconds]


def sample_of(process: psutil.Process, at: float) -> Sample:
    """What it holds now. Raises psutil.Error where it is gone."""
    with process.oneshot():
        memory = process.memory_full_info()
        return Sample(at, memory.rss / MIB, memory.pss / MIB, process.num_fds(), process.num_threads())


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen): a few that jump do not tilt it."""
    at, of = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    first, second = np.triu_indices(len(at), 1)
    apart = at[second] - at[first]
    return float(np.median((of[second] - of[first])[apart > 0] / apart[apart > 0]))
