"""Runs every estimator and judges it: python -m benchmarks.comparison [PEER ...] [--quick] [--write PAGE]."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import page
from benchmarks.comparison.cases import CASES, POLICIES
from benchmarks.comparison.estimators import ESTIMATORS, Estimator
from benchmarks.comparison.judgement import Verdict, angle, verdict
from benchmarks.measurement import Ratio
from benchmarks.table import markdown

FOUND = ("wrong", "no number", "crash", "silent")


def main() -> int:
    """Measures what is asked for, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison", description="Compare estimators of advantages with exact ones."
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(ESTIMATORS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="time only long enough to see that it works")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables between the markers of this page")
    parser.add_argument(
        "--venv",
        default=os.environ.get("VENV", ".venv"),
        metavar="PREFIX",
        help="of the environments: PREFIX, PREFIX-verl, PREFIX-trl, PREFIX-tunix (default: %(default)s)",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.peers) - {*ESTIMATORS}
    if unknown:
        parser.error(f"unknown peer {sorted(unknown)[0]}; must be of {', '.join(ESTIMATORS)}")
    if arguments.quick and arguments.write:
        parser.error("--quick measures nothing to write down; must be without --write")
    sections = {}
    for peer in arguments.peers or ESTIMATORS:
        python = python_of(arguments.venv, peer)
        if python.exists():
            sections[peer] = section(peer, measured(python, peer, arguments.quick))
        elif arguments.write:
            parser.error(f"there is no {python}; `make {arguments.venv}-{peer}/installed` makes it")
        else:
            sections[peer] = f"{peer}: not measured, there is no {python}"
        print(sections[peer], flush=True)
    if arguments.write is not None:
        arguments.write.write_text(page.with_tables(arguments.write.read_text(), sections))
    return 0


def python_of(venv: str, peer: str) -> Path:
    """The Python of the environment that has what is measured."""
    return Path(venv if peer == "published" else f"{venv}-{peer}") / "bin" / "python"


def measured(python: Path, peer: str, quick: bool) -> dict[str, Any]:
    """What the peers of one environment answered, and how long they took."""
    command = [str(python), "-m", f"benchmarks.comparison.{peer}", *["--quick"] * quick]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    # Frameworks talk on the way.
    answered: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answered


def section(peer: str, answers: dict[str, Any]) -> str:
    """The tables of one environment."""
    estimators = ESTIMATORS[peer]
    verdicts = {
        estimator.name: {
            case.name: verdict(estimator, case, answers["cases"][estimator.name][case.name]) for case in CASES
        }
        for estimator in estimators
    }
    versions = ", ".join(f"{name} {number}" for name, number in answers["versions"].items())
    return "\n\n".join(
        [
            f"{versions}.",
            markdown(
                ("estimator", "computes", "k", "wrong or no number", "1024 groups of 16", "over ours"),
                [summary(estimator, verdicts[estimator.name], answers["times"]) for estimator in estimators],
            ),
            markdown(
                ("case", *verdicts),
                [(case.name, *(verdicts[name][case.name].text for name in verdicts)) for case in CASES],
            ),
            markdown(
                ("angle to the gradient of", *verdicts),
                [
                    (f"{policy.name}@{k}, n = {policy.n}", *(degrees(each, answers, policy, k) for each in estimators))
                    for policy in POLICIES
                    for k in policy.ks
                ],
            ),
            *raised(answers["cases"]),
        ]
    )


def summary(estimator: Estimator, verdicts: dict[str, Verdict], times: dict[str, Any]) -> tuple[str, ...]:
    """What there is to know of an estimator in one line."""
    found = [name for name, judged in verdicts.items() if judged.kind in FOUND]
    asked = sum(judged.kind != "not asked" for judged in verdicts.values())
    took, over = "", ""
    if estimator.ours:
        measured_beside = [Ratio(*times[name]).floor for name in estimator.ours if name in times]
        took = milliseconds(float(np.median(measured_beside)))
    elif estimator.name in times:
        ratio = Ratio(*times[estimator.name])
        digits = 0 if ratio.median >= 20 else 2
        took = milliseconds(ratio.ours)
        over = f"{ratio.median:.{digits}f} ({ratio.low:.{digits}f} to {ratio.high:.{digits}f})"
    k = {"k": "any", "n": "n", "": "none"}[estimator.takes]
    return estimator.name, estimator.computes, k, f"{len(found)} of {asked}", took, over


def degrees(estimator: Estimator, answers: dict[str, Any], policy: Any, k: int) -> str:
    """The angle of an estimator's expected update."""
    if estimator.needs_0_or_1 and set(policy.levels) - {0.0, 1.0}:
        return "not for these rewards"
    advantages = answers["policies"][estimator.name][policy.name][str(k)]
    found = angle(policy, k, advantages)
    return f"{found:.1f}°" if found == found else "no update"


def raised(cases: dict[str, Any]) -> list[str]:
    """A line for every error that was raised."""
    lines = [
        f"- {name}, {case}: `{answer['raised']}: {answer['said']}`"
        for name, of_name in cases.items()
        for case, answer in of_name.items()
        if isinstance(answer, dict) and "raised" in answer
    ]
    return ["What was raised:", "\n".join(lines)] if lines else []


def milliseconds(seconds: float) -> str:
    """Seconds, as milliseconds to two digits."""
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
