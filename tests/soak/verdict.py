"""What a soak finds: everything that must not be, in words. Nothing here looks at a process or a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from soak.faults import Fault
from soak.ledger import Failure
from soak.records import Record, Sample, slope

# Callers that no fault is an excuse for: they retry, compute by themselves, or go on behind a break.
PATIENT = frozenset({"patient", "stream", "fallback"})
# How a call may end where the machine stood still over it.
_STALLED = frozenset({"UNAVAILABLE", "UNREACHABLE", "DEADLINE_EXCEEDED", "CANCELLED", "LATE"})
_AFTER_STALL_SECONDS = 45.0
_SHOWN = 20
# What gRPC itself keeps of cancelled calls is told, and not held against anyone.
_RISES = "cancelling callers"


@dataclass(frozen=True)
class Bounds:
    """What may be.

    Attributes:
        settle_share: of a record, from its start, that is not judged.
        judged_seconds: a record that is shorter, without that, is judged by its ceiling only.
        rise: MiB of memory, from the start to the end of what is judged of a record.
        ceiling: MiB that a process may hold at any time.
        descriptors, threads: more than at the first rest.
        series: of a server's metrics, more than before its first call, by service.
    """

    settle_share: float = 1 / 3
    judged_seconds: float = 150.0
    rise: float = 12.0
    ceiling: float = 700.0
    descriptors: int = 8
    threads: int = 12
    series: int = 4000


@dataclass(frozen=True)
class Rest:
    """What there was while nobody called.

    Attributes:
        at: seconds, by the monotonic clock.
        samples: by role; of several of a role, the larger.
        gauges: of each service, that count what is open.
    """

    at: float
    samples: dict[str, Sample]
    gauges: dict[str, dict[str, float]]


def of_calls(
    failures: Iterable[Failure], faults: Sequence[Fault], stalls: Sequence[tuple[float, float]]
) -> tuple[list[str], Counter[str]]:
    """Failures that nothing excuses, and the number of the others by what excused them."""
    findings: list[str] = []
    excused: Counter[str] = Counter()
    for failure in failures:
        by = _excuse(failure, faults, stalls)
        if by:
            excused[by] += 1
        else:
            during = [fault.kind for fault in faults if fault.touches(failure.started, failure.ended)]
            findings.append(
                f"{failure.caller} call to {failure.service}: {failure.code} after"
                f" {failure.ended - failure.started:.1f} s, {'during ' + ', '.join(during) if during else 'in peace'}:"
                f" {failure.text}"
            )
    return _shortened(findings), excused


def _excuse(failure: Failure, faults: Sequence[Fault], stalls: Sequence[tuple[float, float]]) -> str:
    if failure.caller not in PATIENT:
        for fault in faults:
            if fault.excuses(failure.service, failure.code, failure.started, failure.ended):
                return fault.kind
    for began, ended in stalls:
        during = failure.started <= ended + _AFTER_STALL_SECONDS and failure.ended >= began
        if during and failure.code in _STALLED:
            return "a machine that stood still"
    return ""


def of_memory(records: Iterable[Record], bounds: Bounds) -> Iterator[str]:
    """Records that rise, and those that are too high."""
    for record in records:
        if not record.samples:
            continue
        most = max(sample.resident for sample in record.samples)
        if most > bounds.ceiling:
            yield f"{record.role} held {most:.0f} MiB; must be at most {bounds.ceiling:.0f}"
        risen = rise(record, bounds)
        if risen is not None and risen > bounds.rise and record.role != _RISES:
            seconds = (1 - bounds.settle_share) * record.seconds
            yield f"{record.role}: memory rises by {risen:.1f} MiB in {seconds:.0f} s; must be at most {bounds.rise:g}"


def judged(record: Record, bounds: Bounds) -> list[Sample]:
    """What is judged of a record."""
    return record.after(bounds.settle_share * record.seconds)


def rise(record: Record, bounds: Bounds) -> float | None:
    """MiB by which memory rises over what is judged of a record; None where that is too short."""
    samples = judged(record, bounds)
    if len(samples) < 8 or samples[-1].at - samples[0].at < bounds.judged_seconds:
        return None
    times = [sample.at for sample in samples]
    return slope(times, [sample.resident for sample in samples]) * (times[-1] - times[0])


def of_rests(rests: Sequence[Rest], bounds: Bounds) -> Iterator[str]:
    """What is still held when nobody calls, and was not the first time."""
    first = rests[0]
    for rest in rests:
        for service, gauges in rest.gauges.items():
            for name, value in gauges.items():
                if value:
                    yield f"{service}: {name} is {value:g} at rest; must be 0"
        for role, sample in rest.samples.items():
            before = first.samples.get(role)
            if before is None:
                continue
            for what in ("descriptors", "threads"):
                most = getattr(before, what) + getattr(bounds, what)
                if getattr(sample, what) > most:
                    yield f"{role}: {getattr(sample, what)} {what} at rest; must be at most {most}"


def of_series(before: dict[str, int], most: dict[str, int], bounds: Bounds) -> Iterator[str]:
    """Services that had more series than so many runs can have."""
    for service, number in most.items():
        if number > before[service] + bounds.series:
            yield f"{service}: {number} metric series; must be at most {before[service]} and {bounds.series}"


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th, in milliseconds."""
    median, late = np.percentile(np.asarray(seconds), [50, 99]) * 1e3
    return float(median), float(late)


def _shortened(findings: list[str]) -> list[str]:
    if len(findings) <= _SHOWN:
        return findings
    return [*findings[:_SHOWN], f"and {len(findings) - _SHOWN} more calls"]
