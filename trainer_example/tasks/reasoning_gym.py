"""Any generator of reasoning-gym, with its own scorer: `reasoning_gym:chain_sum,min_terms=2,max_terms=2`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import reasoning_gym

from trainer_example.tasks.task import Problem, Task

INSTRUCTION = "Answer with the answer alone, between <answer> and </answer>."


class ReasoningGym(Task):
    """Problems of one generator.

    Args:
        generator: its name, as "chain_sum", "countdown", "maze".
        seed: of the problems. Generators count up from theirs, one for each problem, so that of two seeds side by side
            they would make the same problems but one: they get one that is drawn from this one.
        train_prompts: how many to train on.
        test_prompts: how many to draw to test on; each counts once, and not if it is also among the first.
        max_new_tokens: how long an answer may get, in tokens.
        instruct: whether to ask for <answer> tags, as an instruct model needs; without, the whole answer counts.
        warm_start_steps: supervised steps for a model of random weights, imitating the generator's own answers.
        options: passed on to the generator.
    """

    def __init__(
        self,
        generator: str,
        seed: int = 0,
        train_prompts: int = 10_000,
        test_prompts: int = 500,
        max_new_tokens: int = 256,
        instruct: bool = False,
        warm_start_steps: int = 0,
        **options: Any,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.warm_start_steps = warm_start_steps
        self._name, self._options, self._instruct = generator, options, instruct
        self._generator = reasoning_gym.create_dataset(
            generator, seed=_drawn_seed(np.random.default_rng(seed)), size=train_prompts + test_prompts, **options
        )
        problems = [self._problem(entry) for entry in self._generator]
        self.train = problems[:train_prompts]
        self.phrases = _common_ends([problem.prompt for problem in self.train])
        seen = {problem.prompt for problem in self.train}
        drawn = {problem.prompt: problem for problem in problems[train_prompts:]}
        self.test = [problem for prompt, problem in drawn.items() if prompt not in seen]

    def _problem(self, entry: dict[str, Any]) -> Problem:
        question = entry["question"].strip()
        return Problem(f"{question}\n{INSTRUCTION}\n" if self._instruct else f"{question}\n", entry)

    def reward(self, problem: Problem, answer: str) -> float:
        """The generator's own score."""
        extracted = reasoning_gym.utils.extract_answer(answer) if self._instruct else answer.strip()
        try:
            return float(self._generator.score_answer(extracted, problem.reference))
        except ValueError:  # some scorers convert what they were given, and it was no number
            return 0.0

    def demonstrations(self, generator: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Fresh problems with the generator's own answers."""
        shown: list[tuple[str, str]] = []
        while len(shown) < count:
            shown += self._drawn(generator, count - len(shown))
        return shown

    def _drawn(self, generator: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Demonstrations, fewer by those whose prompt is held out."""
        entries = reasoning_gym.create_dataset(self._name, seed=_drawn_seed(generator), size=count, **self._options)
        if any(entry["answer"] is None for entry in entries):
            raise ValueError(f"warm_start_steps: must be 0: {self._name} of reasoning-gym says no answers")
        answer = "<answer>{}</answer>" if self._instruct else "{}"
        drawn = [(self._problem(entry).prompt, answer.format(entry["answer"])) for entry in entries]
        return [(prompt, said) for prompt, said in drawn if prompt not in self.held_out]


def _drawn_seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**31))


def _common_ends(prompts: Sequence[str]) -> list[str]:
    """What all prompts begin and end with; nothing where they are all the same."""
    if len(set(prompts)) < 2:
        return []
    begin, end = _common_beginning(prompts), _common_beginning([prompt[::-1] for prompt in prompts])[::-1]
    return [phrase for phrase in (begin, end) if len(phrase) > 1]


def _common_beginning(texts: Sequence[str]) -> str:
    return os.path.commonprefix(texts)  # noqa: RUF071 - by characters is what is meant
