"""The offline default: a hidden rule turns four digits into four others, and only its kind can be learned.

A prompt is a letter and four digits, as "c1234="; the answer is four digits, a rule applied to them. The letter is a
class, and a class has several rules it draws from. Which one a prompt drew is not in the prompt, so that an answer is
a guess at the rule, and a policy that spreads its guesses solves more prompts in k tries than one that does not.

Ambiguous (the default): each class draws from six of the ten simple rules, with unequal chances; a warm start knows
which six, not how likely. Hard: a class draws one simple rule with chance 0.2 and one of two compositions with 0.8,
and the warm start has seen the compositions only with many of their digits wrong, so that the skill is rare.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np

from trainer_example.tasks.task import Problem, Task

Digits = tuple[int, ...]
Rule = Callable[[Digits], Digits]

SIMPLE: dict[str, Rule] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "rotate 1": lambda x: x[1:] + x[:1],
    "rotate 2": lambda x: x[2:] + x[:2],
    "rotate 3": lambda x: x[3:] + x[:3],
    "swap pairs": lambda x: (x[1], x[0], x[3], x[2]),
    "+1": lambda x: tuple((d + 1) % 10 for d in x),
    "-1": lambda x: tuple((d - 1) % 10 for d in x),
    "+5": lambda x: tuple((d + 5) % 10 for d in x),
    "9-x": lambda x: tuple(9 - d for d in x),
}
COMPOSED: dict[str, Rule] = {
    "swap pairs, 9-x": lambda x: SIMPLE["9-x"](SIMPLE["swap pairs"](x)),
    "swap pairs, +5": lambda x: SIMPLE["+5"](SIMPLE["swap pairs"](x)),
}
RULES = SIMPLE | COMPOSED
NAMES = list(RULES)
HINTS = string.ascii_lowercase[:16]

AMBIGUOUS_CHANCES = (0.40, 0.22, 0.14, 0.10, 0.08, 0.06)
UNLIKELY = 0.1  # of a simple rule that a class does not draw from, among its demonstrations; of one it does, 1
_LIKELY = len(AMBIGUOUS_CHANCES)
# Of each rule that a class draws from, among its demonstrations.
DEMONSTRATED_CHANCES = (1 / (_LIKELY + UNLIKELY * (len(SIMPLE) - _LIKELY)),) * _LIKELY
HARD_CHANCES = (0.2, 0.8)
WRONG_DIGITS = 0.65  # the share of random digits in the demonstration of a composition


class Rules(Task):
    """See the module.

    Args:
        hard: whether most prompts want a composition of two rules.
        continuous: whether the reward is the share of right digits, instead of 1 for all four and 0 otherwise.
        slips: the share of random digits in the demonstration of a simple rule.
        seed: of the classes and of the prompts, the same for every run that compares methods.
        train_prompts: how many to train on.
        test_prompts: how many to test on; no prompt is in both.
    """

    max_new_tokens = 4
    alphabet = string.digits + HINTS + "="

    def __init__(
        self,
        hard: bool = False,
        continuous: bool = False,
        slips: float = 0.0,
        seed: int = 0,
        train_prompts: int = 10_000,
        test_prompts: int = 500,
    ) -> None:
        self.continuous = continuous
        self.hard = hard
        self.slips = slips
        self.warm_start_steps = 1800 if hard else 1500
        generator = np.random.default_rng(seed)
        self._classes = _hard_classes(generator) if hard else _ambiguous_classes(generator)
        distinct = len(self._classes) * 10_000
        drawn = generator.choice(distinct, size=train_prompts + test_prompts, replace=False)
        problems = [self._problem(generator, int(number)) for number in drawn]
        self.train, self.test = problems[:train_prompts], problems[train_prompts:]

    def _problem(self, generator: np.random.Generator, number: int) -> Problem:
        hint, digits = number // 10_000, _digits(number % 10_000)
        rule = NAMES[generator.choice(len(NAMES), p=self._classes[hint])]
        return Problem(_prompt(hint, digits), _text(RULES[rule](digits)))

    def reward(self, problem: Problem, answer: str) -> float:
        """1 for the four digits of the rule; with `continuous`, the share of them that are right in their place."""
        right: str = problem.reference
        if self.continuous:
            return sum(a == b for a, b in zip(answer, right, strict=False)) / len(right)
        return float(answer == right)

    def demonstrations(self, generator: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Random prompts, each with an answer by one of the rules that its class may draw."""
        hints = generator.integers(len(self._classes), size=count)
        return [self._demonstration(generator, int(hint)) for hint in hints]

    def _demonstration(self, generator: np.random.Generator, hint: int) -> tuple[str, str]:
        digits = _digits(int(generator.integers(10_000)))
        while _prompt(hint, digits) in self.held_out:
            digits = _digits(int(generator.integers(10_000)))
        if self.hard:
            rule = NAMES[generator.integers(len(NAMES))]
        else:
            chances = np.where(self._classes[hint] > 0, 1.0, UNLIKELY)
            chances[len(SIMPLE) :] = 0.0
            rule = NAMES[generator.choice(len(NAMES), p=chances / chances.sum())]
        answer = RULES[rule](digits)
        share = WRONG_DIGITS if rule in COMPOSED else self.slips
        if share > 0:
            wrong = generator.random(len(answer)) < share
            random = generator.integers(10, size=len(answer))
            answer = tuple(int(r) if w else d for d, r, w in zip(answer, random, wrong, strict=True))
        return _prompt(hint, digits), _text(answer)


def _ambiguous_classes(generator: np.random.Generator) -> np.ndarray:
    """The chance of each rule in each of eight classes."""
    classes = np.zeros((8, len(NAMES)))
    for chances in classes:
        chances[generator.permutation(len(SIMPLE))[: len(AMBIGUOUS_CHANCES)]] = AMBIGUOUS_CHANCES
    return classes


def _hard_classes(generator: np.random.Generator) -> np.ndarray:
    """The chance of each rule in each of four classes."""
    classes = np.zeros((4, len(NAMES)))
    for number, chances in enumerate(classes):
        chances[generator.integers(len(SIMPLE))] = HARD_CHANCES[0]
        chances[len(SIMPLE) + number % len(COMPOSED)] = HARD_CHANCES[1]
    return classes


def _digits(number: int) -> Digits:
    return tuple(int(digit) for digit in f"{number:04d}")


def _text(digits: Digits) -> str:
    return "".join(map(str, digits))


def _prompt(hint: int, digits: Digits) -> str:
    return f"{HINTS[hint]}{_text(digits)}="
