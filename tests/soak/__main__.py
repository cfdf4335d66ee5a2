"""python -m soak: real servers under mixed load and faults, and whether all was as it must be."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import page
from soak.campaign import BOUNDS, Campaign, Plan
from soak.faults import KINDS
from soak.report import report, tables

PASSED, FAILED = 0, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 0 where nothing was found, 1 where something was."""
    arguments = _parser().parse_args(argv)
    # Whoever is asked to end ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Each kind comes about six times, but there is time to recover.
    gap = min(25.0, max(8.0, arguments.minutes * 60 / (6 * len(KINDS)) - 12.0))
    warm = min(60.0, arguments.minutes * 12)
    # What lived for a part of it tells of caches that fill, and little of leaks.
    bounds = replace(BOUNDS, judged_seconds=max(BOUNDS.judged_seconds, arguments.minutes * 60 * 0.4))
    plan = Plan(arguments.minutes, arguments.seed, arguments.cores, warm_seconds=warm, gap=gap, bounds=bounds)
    told = Campaign(plan, lambda line: print(line, file=sys.stderr, flush=True)).run()
    kept = report(plan, told)
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(kept, indent=1) + "\n")
    print(tables(kept))
    for finding in kept["findings"]:
        print(f"found: {finding}")
    if arguments.write is not None:
        arguments.write.write_text(page.with_table(arguments.write.read_text(), "soak", tables(kept)))
    return FAILED if kept["findings"] else PASSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of load with faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: %(default)s)")
    parser.add_argument("--cores", type=float, default=0.6, help="to use, all together (default: %(default)s)")
    parser.add_argument("--report", type=Path, metavar="PATH", help="write all figures there, as JSON")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables between the markers of this page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
