"""Measures and prints: python -m benchmarks [SECTION ...] [--quick] [--strict] [--minutes M] [--write PAGE]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import budget, fleet, growth, in_process, memory, overload, page, served, servers, start, workers
from benchmarks.measurement import Effort
from benchmarks.table import BAR_HEADER, Result, markdown

BARS: dict[str, Callable[[Effort], Iterator[Result]]] = {
    "in_process": in_process.results,
    "served": served.results,
    "workers": workers.results,
    "start": start.results,
    "memory": memory.results,
}
REPORTS: dict[str, Callable[[Effort], str]] = {
    "budget": budget.report,
    "servers": servers.report,
    "growth": growth.report,
    "fleet": fleet.report,
    "overload": overload.report,
}


def main() -> int:
    """Measures what is asked for, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what pkpo costs.")
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join((*BARS, *REPORTS))} (default: the bars)"
    )
    parser.add_argument("--quick", action="store_true", help="only long enough to see that everything works")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a bar is not met")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long a server is overloaded (default: 3)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables between the markers of this page")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - {*BARS, *REPORTS}
    if unknown:
        parser.error(f"unknown section {sorted(unknown)[0]}; must be of {', '.join((*BARS, *REPORTS))}")
    if arguments.quick and (arguments.strict or arguments.write):
        parser.error("--quick measures nothing to judge or to write down; must be without --strict and --write")
    effort = Effort(arguments.quick, 0.03 if arguments.quick else arguments.minutes)

    def verdict(result: Result) -> str:
        return "tried" if arguments.quick else result.cells()[-1] or "n/a"

    tables: dict[str, str] = {}
    wanted = arguments.sections or [*BARS]
    results: list[Result] = []
    for section in BARS:
        if section in wanted:
            for result in BARS[section](effort):
                print(f"{verdict(result):5} {' | '.join(result.cells()[:-1])}", file=sys.stderr, flush=True)
                results.append(result)
    if results:
        tables["bars"] = markdown(BAR_HEADER, [(*result.cells()[:-1], verdict(result)) for result in results])
        print(tables["bars"], flush=True)
    for section in REPORTS:
        if section in wanted:
            tables[section] = REPORTS[section](effort)
            print(tables[section], flush=True)
    if arguments.write is not None:
        arguments.write.write_text(page.with_tables(arguments.write.read_text(), tables))
    return 1 if arguments.strict and not all(result.passes for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
