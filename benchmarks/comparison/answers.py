"""Asks estimators, and writes down what they answered: the part that runs beside each framework."""

from __future__ import annotations

import argparse
import json
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison.cases import CASES, POLICIES, Rewards
from benchmarks.measurement import Effort, Ratio

# Advantages of groups, for a k; raises NotAsked.
Ask = Callable[[Rewards, int], Sequence[NDArray[Any]]]
Answers = dict[str, Any]


class NotAsked(Exception):
    """A framework has no way to ask this."""


def asked(ask: Ask, rewards: Rewards, k: int) -> Any:
    """The advantages as lists, or what was raised in their place."""
    try:
        # A warning is no refusal: training goes on.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [np.asarray(group, np.float64).tolist() for group in ask(rewards, k)]
    except NotAsked as error:
        return {"not_asked": str(error)}
    except Exception as error:
        return {"raised": type(error).__name__, "refusal": isinstance(error, ValueError), "said": str(error)[:200]}


def answers(estimators: Mapping[str, Ask]) -> Answers:
    """What every estimator makes of every case, and of every group of every policy."""
    return {
        "cases": {
            name: {case.name: asked(ask, case.rewards(), case.k) for case in CASES} for name, ask in estimators.items()
        },
        "policies": {
            name: {policy.name: {str(k): asked(ask, policy.rewards(), k) for k in policy.ks} for policy in POLICIES}
            for name, ask in estimators.items()
        },
    }


def report(estimators: Mapping[str, Ask], times: Callable[[Effort], Mapping[str, Ratio]], *packages: str) -> None:
    """Prints everything as JSON: `python -m benchmarks.comparison.verl [--quick]`."""
    parser = argparse.ArgumentParser(description="What estimators answer, as JSON, for benchmarks.comparison.")
    parser.add_argument("--quick", action="store_true", help="time only long enough to see that it works")
    effort = Effort(parser.parse_args().quick)
    print(
        json.dumps(
            {
                "versions": {"Python": platform.python_version(), **{name: version(name) for name in packages}},
                **answers(estimators),
                "times": {name: astuple(ratio) for name, ratio in times(effort).items()},
            }
        )
    )
