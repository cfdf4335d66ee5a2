"""What a task is: prompts to train and to test on, and a verifier."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Problem:
    """A prompt, and what the verifier holds its answers against."""

    prompt: str
    reference: Any


class Task(ABC):
    """Problems with verifiable answers.

    Attributes:
        train: the problems to train on.
        test: held-out problems, none of them in `train`.
        max_new_tokens: how long an answer may get, in tokens.
        alphabet: the characters of prompts and answers, for the tokenizer of the tiny models.
        phrases: what is one token for them, because every prompt says it.
        warm_start_steps: supervised steps that give a model of random weights something to explore from.
    """

    train: Sequence[Problem]
    test: Sequence[Problem]
    max_new_tokens: int
    alphabet: str = string.printable
    phrases: Sequence[str] = ()
    warm_start_steps: int = 0

    @cached_property
    def held_out(self) -> frozenset[str]:
        """The prompts of `test`."""
        return frozenset(problem.prompt for problem in self.test)

    @abstractmethod
    def reward(self, problem: Problem, answer: str) -> float:
        """How right an answer is, from 0 to 1; 1 is solved.

        An answer that cannot be read is wrong, and gets 0. A verifier that does not work raises.
        """

    def rewards(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        """The reward of each answer to the problem beside it."""
        return [self.reward(problem, answer) for problem, answer in zip(problems, answers, strict=True)]

    def demonstrations(self, generator: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Prompts with answers to imitate, for a warm start; none of them is held out.

        Raises:
            NotImplementedError: the task has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no demonstrations to warm a model of random weights")


def disjoint_split(items: Sequence[_Item], test_share: float, seed: int) -> tuple[list[_Item], list[_Item]]:
    """The items in two parts, to train and to test on, by a permutation that the seed decides."""
    order = np.random.default_rng(seed).permutation(len(items))
    tested = round(test_share * len(items))
    return [items[i] for i in order[tested:]], [items[i] for i in order[:tested]]
