"""`python -m trainer_example.experiments`: runs what has not been run, then writes the page."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from trainer_example.experiments.lock import Locked, locked
from trainer_example.experiments.page import write_page
from trainer_example.experiments.plan import (
    EXPERIMENTS,
    QUICK_SEEDS,
    SEEDS,
    Experiment,
    Run,
    quick,
    runs_of,
    with_seeds,
)
from trainer_example.experiments.results import Result, result_of
from trainer_example.experiments.work import do_all
from trainer_example.observed import running_server
from trainer_example.train import Interrupted

FOLDER = Path("runs/experiments")
PAGE = Path(__file__).parents[2] / "docs" / "results.md"
EX_TEMPFAIL = 75  # of sysexits.h: start it again


def main(arguments: list[str] | None = None) -> int:
    """Does as the command line says, and returns the exit status."""
    options = _options(arguments)
    experiments = [quick(experiment) if options.quick else experiment for experiment in EXPERIMENTS]
    if options.seeds is not None:
        experiments = [with_seeds(experiment, options.seeds) for experiment in experiments]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server ends too
    if not options.page_only:
        try:
            with locked(options.folder):
                _run(experiments, options)
        except Locked as error:
            print(error, file=sys.stderr)
            return EX_TEMPFAIL
        except Interrupted as error:
            print(f"{error}\nthe server is gone; start this again, and it goes on from there", file=sys.stderr)
            return EX_TEMPFAIL
    write_page(experiments, options.folder, options.page)
    print(f"{options.page} is written")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer_example.experiments",
        description="The papers' claims on a small Gemma-2, through a pkpo-server. Started again, it goes on.",
    )
    names = [experiment.name for experiment in EXPERIMENTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few steps: to see that everything works")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help=f"of each run ({SEEDS} or more; with --quick {QUICK_SEEDS})"
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="runs at a time, a core each (2)")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help=f"of results and warm starts ({FOLDER})")
    parser.add_argument("--page", type=Path, metavar="FILE", help="to write; default: docs/results.md")
    parser.add_argument("--page-only", action="store_true", help="run nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"unknown experiment {unknown[0]!r}; must be of {', '.join(names)}")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds: {options.seeds}; must be at least 1")
    options.folder = options.folder or (FOLDER.with_name("experiments-quick") if options.quick else FOLDER)
    options.page = options.page or (options.folder / "results.md" if options.quick else PAGE)
    return options


def _run(experiments: list[Experiment], options: argparse.Namespace) -> None:
    chosen = [experiment for experiment in experiments if not options.names or experiment.name in options.names]
    runs = runs_of(chosen)
    left = sum(result_of(run, options.folder) is None for run in runs)
    print(f"{left} of {len(runs)} runs are to be done; results go to {options.folder}", flush=True)
    if not left:
        return
    start, minutes = time.monotonic(), 60.0
    done = 0

    def tell(run: Run, result: Result, left: int) -> None:
        nonlocal done
        done += 1
        spent = (time.monotonic() - start) / minutes
        figures = ", ".join(f"{name} {100 * result.last(name):.1f}" for name in ("pass@1", "pass@16"))
        print(f"{run.experiment.name}, {run.label}, seed {run.seed}: {figures}; {result.seconds:.0f} s; "
              f"{left} left, about {left * spent / done:.0f} minutes", flush=True)  # fmt: skip

    with running_server(options.folder / "server.log") as (server, _):
        do_all(runs, server, options.folder, options.processes, tell)


if __name__ == "__main__":
    sys.exit(main())
