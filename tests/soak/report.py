"""What a soak tells: as JSON, and as the tables of docs/reliability.md."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.page import machine
from benchmarks.table import markdown
from soak import verdict
from soak.campaign import Plan, Told
from soak.faults import KINDS
from soak.records import Record


def report(plan: Plan, told: Told) -> dict[str, Any]:
    """All figures, in a form that can be kept."""
    records = [_of_record(record, plan) for record in told.records.values() if len(record.samples) > 1]
    quiet = {caller: seconds for caller, seconds in sorted(told.quiet().items()) if len(seconds) >= 20}
    return {
        "verdict": "fail" if told.findings else "pass",
        "findings": told.findings,
        "machine": machine(),
        "minutes": plan.minutes,
        "seed": plan.seed,
        "seconds": round(told.seconds),
        "cores": round(sum(told.cores) / max(1, len(told.cores)), 2),
        "calls": dict(sorted(told.calls.items())),
        "checked": dict(sorted(told.checked.items())),
        "refused": dict(sorted(told.refused.items())),
        "counts": dict(sorted(told.counts.items())),
        "failed": dict(sorted(_failed(told).items())),
        "excused": dict(told.excused),
        "faults": dict(sorted(Counter(fault.kind for fault in told.faults).items())),
        "stalls": len(told.stalls),
        "series": {name: [told.series_before[name], most] for name, most in told.series_most.items()},
        "latencies": {caller: [len(seconds), *verdict.percentiles(seconds)] for caller, seconds in quiet.items()},
        "records": sorted(records, key=lambda record: (record["role"], -record["seconds"])),
        "rests": [
            {role: [sample.descriptors, sample.threads] for role, sample in rest.samples.items()}
            for rest in (told.rests[:1] + told.rests[-1:])
        ],
        "grpc_lines": told.grpc_lines,
    }


def _failed(told: Told) -> Counter[str]:
    return Counter(failure.caller for failure in told.failures)


def _of_record(record: Record, plan: Plan) -> dict[str, Any]:
    samples = verdict.judged(record, plan.bounds)
    risen = verdict.rise(record, plan.bounds)
    return {
        "role": record.role,
        "seconds": round(record.seconds),
        "resident": [round(samples[0].resident, 1), round(samples[-1].resident, 1)],
        "proportional": [round(samples[0].proportional, 1), round(samples[-1].proportional, 1)],
        "most": round(max(sample.resident for sample in record.samples), 1),
        "rise": None if risen is None else round(risen, 1),
        "descriptors": max(sample.descriptors for sample in record.samples),
        "threads": max(sample.threads for sample in record.samples),
    }


def tables(kept: dict[str, Any]) -> str:
    """The report as the page shows it."""
    calls, checked, faults = (sum(kept[what].values()) for what in ("calls", "checked", "faults"))
    found = "nothing" if not kept["findings"] else f"{len(kept['findings'])} findings"
    missing = [kind for kind in KINDS if kind not in kept["faults"]]
    never = f" (never: {', '.join(missing)})" if missing else ""
    return "\n\n".join(
        (
            f"{kept['machine']} {kept['minutes']:g} minutes, seed {kept['seed']}, {kept['cores']:.2f} of a core for"
            f" everything together: {calls:,} calls, {checked:,} answers checked, {faults} faults{never}."
            f" Found: {found}. Verdict: {kept['verdict']}.",
            _of_callers(kept),
            _of_faults(kept),
            _of_processes(kept),
            _of_series(kept),
        )
    )


def _of_callers(kept: dict[str, Any]) -> str:
    rows = []
    for caller, calls in kept["calls"].items():
        median, late = kept["latencies"].get(caller, (0, None, None))[1:]
        rows.append(
            (
                caller,
                f"{calls:,}",
                f"{kept['checked'].get(caller, 0):,}",
                f"{kept['refused'].get(caller, 0):,}",
                f"{kept['failed'].get(caller, 0):,}",
                "" if median is None else f"{median:.1f}, {late:.0f}",
            )
        )
    header = (
        "Callers",
        "Calls",
        "Answers checked",
        "Refused as they must be",
        "Failed by a fault",
        "p50, p99 in peace, ms",
    )
    return markdown(header, rows)


def _of_faults(kept: dict[str, Any]) -> str:
    rows = [(kind, str(number), str(kept["excused"].get(kind, 0))) for kind, number in kept["faults"].items()]
    return markdown(("Fault", "Times", "Calls without retries that failed by it"), rows)


def _of_series(kept: dict[str, Any]) -> str:
    said = (
        f"{most:,} of the {name} service, which began with {before:,}"
        for name, (before, most) in kept["series"].items()
    )
    return f"Metric series, at most: {'; '.join(said)}."


def _of_processes(kept: dict[str, Any]) -> str:
    rows = []
    ends = kept["rests"]
    for role in dict.fromkeys(record["role"] for record in kept["records"]):
        records = [record for record in kept["records"] if record["role"] == role]
        longest = records[0]
        rows.append(
            (
                role,
                str(len(records)),
                f"{longest['seconds'] / 60:.1f}",
                "{:.0f}, {:.0f}".format(*longest["resident"]),
                f"{max(record['most'] for record in records):.0f}",
                ", ".join(str(rest[role][0]) for rest in ends if role in rest),
                ", ".join(str(rest[role][1]) for rest in ends if role in rest),
            )
        )
    header = (
        "Process", "Lives", "Longest, min", "Its MiB after a third, at the end", "Most MiB of any",
        "Descriptors at the first rest, the last", "Threads",
    )  # fmt: skip
    return markdown(header, rows)
