"""Makes the figures and the tables behind them: python -m examples.figures [NAME ...] [--quick] [--output FOLDER]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from examples.figures import bias, effective_rewards, estimates, objective, prompts, variance, weights
from examples.figures.gradients import Effort
from examples.figures.pictures import LOOK, write_picture
from examples.figures.table import Tables, write_csv
from pkpo_client import LocalClient

FOLDER = Path(__file__).parents[2] / "docs" / "estimators"
Drawing = Callable[[Tables], Figure]

#: What is made: the tables of a subject, and the pictures of them by name.
SUBJECTS: dict[str, tuple[Callable[[LocalClient, Effort], Tables], dict[str, Drawing]]] = {
    "objective": (objective.tables, {"objective": objective.drawn}),
    "weights": (weights.tables, {"weights": weights.drawn}),
    "variance": (variance.tables, {"variance_by_n": variance.drawn, "variance_by_k": variance.drawn_by_k}),
    "effective_rewards": (effective_rewards.tables, {"effective_rewards": effective_rewards.drawn}),
    "estimates": (estimates.tables, {"estimates": estimates.drawn}),
    "prompts": (prompts.tables, {"prompts": prompts.drawn}),
    "bias": (bias.tables, {"bias": bias.drawn}),
}


def make(names: list[str], folder: Path, effort: Effort) -> None:
    """Writes the CSV, PNG and SVG of these subjects into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with LocalClient() as pkpo, plt.rc_context(LOOK):
        for name in names:
            print(name, file=sys.stderr, flush=True)
            make_tables, drawings = SUBJECTS[name]
            tables = make_tables(pkpo, effort)
            for table_name, table in tables.items():
                write_csv(folder / f"{table_name}.csv", table)
            for picture, drawn in drawings.items():
                write_picture(drawn(tables), folder, picture)


def main(arguments: list[str] | None = None) -> int:
    """Makes what is asked for, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.figures", description="Make the figures of the papers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: docs/estimators")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the samples, to see that everything works")
    parsed = parser.parse_args(arguments)
    unknown = [name for name in parsed.names if name not in SUBJECTS]
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}; must be of {', '.join(SUBJECTS)}")
    if parsed.quick and parsed.output.resolve() == FOLDER:
        parser.error("--quick makes nothing to keep; must have an --output other than docs/estimators")
    make(parsed.names or [*SUBJECTS], parsed.output, Effort(parsed.quick))
    return 0


if __name__ == "__main__":
    sys.exit(main())
