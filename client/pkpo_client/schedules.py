"""Schedules of k: functions of the training step.

Annealing k from high to low explores first and exploits later. A schedule is a callable `training_step -> k` with k a
Python int of at least 1; it compares equal to another with the same numbers, and pickles.

    k_at = schedules.step({0: 8, 1500: 1})
    client.transform(rewards, k=k_at(training_step))
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pkpo_client.errors import refused


@dataclass(frozen=True)
class Schedule(ABC):
    """A k for every training step from 0 on."""

    def __call__(self, training_step: int) -> int:
        """The k of a training step.

        Args:
            training_step: an integer of at least 0.

        Raises:
            InvalidArgument: `training_step` is no such integer.
        """
        return self._k(_integer("training_step", training_step, 0))

    @abstractmethod
    def _k(self, step: int) -> int: ...


@dataclass(frozen=True)
class _Steps(Schedule):
    milestones: tuple[tuple[int, int], ...]

    def _k(self, step: int) -> int:
        return next(k for begins, k in reversed(self.milestones) if begins <= step)


@dataclass(frozen=True)
class _Linear(Schedule):
    start: int
    end: int
    steps: int

    def _k(self, step: int) -> int:
        return _nearest(self.start + (self.end - self.start) * min(step / self.steps, 1.0))


@dataclass(frozen=True)
class _Cosine(Schedule):
    start: int
    end: int
    steps: int

    def _k(self, step: int) -> int:
        left = (1.0 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2.0
        return _nearest(self.end + (self.start - self.end) * left)


def constant(k: int) -> Schedule:
    """The same k at every step.

    Args:
        k: an integer of at least 1.

    Raises:
        InvalidArgument: `k` is no such integer.
    """
    return _Steps(((0, _integer("k", k, 1)),))


def linear(start: int, end: int, steps: int) -> Schedule:
    """From `start` at step 0 in a straight line to `end` at step `steps`, and `end` from there on.

        k = start + (end - start) * min(step / steps, 1), to the nearest integer, halves up

    Args:
        start: the first k, an integer of at least 1.
        end: the last k, an integer of at least 1.
        steps: how many steps it takes, an integer of at least 1.

    Raises:
        InvalidArgument: an argument is no such integer.
    """
    return _Linear(_integer("start", start, 1), _integer("end", end, 1), _integer("steps", steps, 1))


def cosine(start: int, end: int, steps: int) -> Schedule:
    """From `start` at step 0 along half a cosine to `end` at step `steps`, and `end` from there on.

        k = end + (start - end) * (1 + cos(pi * min(step / steps, 1))) / 2, to the nearest integer, halves up

    Args:
        start: the first k, an integer of at least 1.
        end: the last k, an integer of at least 1.
        steps: how many steps it takes, an integer of at least 1.

    Raises:
        InvalidArgument: an argument is no such integer.
    """
    return _Cosine(_integer("start", start, 1), _integer("end", end, 1), _integer("steps", steps, 1))


def step(milestones: Mapping[int, int]) -> Schedule:
    """Each k from its training step on: `step({0: 8, 1500: 1})` is 8 at steps 0 to 1499 and 1 from step 1500.

    Args:
        milestones: training step -> k, in any order; one of them for step 0. Steps are at least 0, each k at least 1.

    Raises:
        InvalidArgument: `milestones` does not say the k of step 0, or holds something else than such integers.
    """
    if not isinstance(milestones, Mapping):
        raise refused("milestones", f"is {milestones!r:.80}; must map training steps to k, such as {{0: 8, 1500: 1}}")
    pairs = [(_integer("milestones", begins, 0), _integer("milestones", k, 1)) for begins, k in milestones.items()]
    return _steps("milestones", milestones, pairs)


def from_string(text: str) -> Schedule:
    """The schedule that a configuration file says in one string.

    Args:
        text: "8" for a constant k, or `k@step` joined by commas: "8@0,1@1500" is `step({0: 8, 1500: 1})`.

    Raises:
        InvalidArgument: `text` says no schedule.
    """
    if not isinstance(text, str):
        raise refused("text", f"is {text!r:.80}; must be a string such as '8@0,1@1500'")
    pairs: list[tuple[int, int]] = []
    for part in text.split(","):
        k, at, begins = part.strip().partition("@")
        if not at and "," not in text:
            begins = "0"
        if not (_is_number(k) and _is_number(begins)):
            raise refused("text", f"holds {part.strip()!r:.80}; must be k@step such as 8@0, several joined by commas")
        pairs.append((_integer("text", int(begins), 0), _integer("text", int(k), 1)))
    return _steps("text", text, pairs)


def _steps(name: str, given: Any, pairs: list[tuple[int, int]]) -> Schedule:
    pairs.sort()
    steps = [begins for begins, _ in pairs]
    if len(set(steps)) < len(steps):
        raise refused(name, f"is {given!r:.80}; must say one k for a step")
    if not pairs or pairs[0][0] != 0:
        raise refused(name, f"is {given!r:.80}; must say the k of step 0")
    return _Steps(tuple(pairs))


def _is_number(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise refused(name, f"is {value!r:.80}; must be an integer") from None
    if number < least:
        raise refused(name, f"is {number}; must be at least {least}")
    return number


__all__ = ["Schedule", "constant", "cosine", "from_string", "linear", "step"]
