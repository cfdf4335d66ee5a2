"""A maze half in fog: a robot is told its whole way before it starts, and nobody has seen what the fog hides.

A prompt is a square of cells, row by row, as "..#?..": free, a wall, or fog, which hides a wall as often as not. The
answer is a way from the upper left to the lower right corner in steps right and down, as "RRDDRDRD", and is right if
it meets no wall, seen or hidden. One robot should take the way with the least fog. Of several, which all start at
once, one should get through: they should take ways that do not share their fog.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trainer_example.tasks.task import Problem, Task

FREE, WALL, FOG = ".#?"


class Fog(Task):
    """See the module.

    Args:
        size: cells along a side.
        walls: the chance that a cell is a wall that is seen.
        fog: the chance that a cell is in fog.
        hidden: the chance that there is a wall in it.
        seed: of the mazes.
        train_prompts: how many to train on.
        test_prompts: how many to test on; no prompt is in both.
    """

    alphabet = FREE + WALL + FOG + "RD="

    def __init__(
        self,
        size: int = 5,
        walls: float = 0.1,
        fog: float = 0.5,
        hidden: float = 0.5,
        seed: int = 0,
        train_prompts: int = 10_000,
        test_prompts: int = 500,
    ) -> None:
        self.max_new_tokens = 2 * (size - 1)
        self.warm_start_steps = 200
        self._size, self._chances, self._hidden = size, (1 - walls - fog, walls, fog), hidden
        self._ways = _all_ways(size)
        self._cells = np.array([_cells(way, size) for way in self._ways])
        self._number = {way: number for number, way in enumerate(self._ways)}
        generator = np.random.default_rng(seed)
        problems: dict[str, Problem] = {}
        while len(problems) < train_prompts + test_prompts:
            seen, blocked = self._maze(generator)
            problems.setdefault(_prompt(seen), Problem(_prompt(seen), blocked.tolist()))
        drawn = list(problems.values())
        self.train, self.test = drawn[:train_prompts], drawn[train_prompts:]

    def _maze(self, generator: np.random.Generator) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
        """What is seen of a maze with a way through it, and where its walls are."""
        while True:
            seen = generator.choice([FREE, WALL, FOG], size=self._size**2, p=self._chances)
            seen[[0, -1]] = FREE
            blocked = (seen == WALL) | ((seen == FOG) & (generator.random(len(seen)) < self._hidden))
            if not blocked[self._cells].any(1).all():
                return seen, blocked

    def reward(self, problem: Problem, answer: str) -> float:
        """1 for a way that meets no wall."""
        number = self._number.get(answer)
        return 0.0 if number is None else float(not np.array(problem.reference)[self._cells[number]].any())

    def demonstrations(self, generator: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """Random mazes, each with any way that meets no wall that is seen, however much fog is on it."""
        return [self._demonstration(generator) for _ in range(count)]

    def _demonstration(self, generator: np.random.Generator) -> tuple[str, str]:
        seen, _ = self._maze(generator)
        while _prompt(seen) in self.held_out:
            seen, _ = self._maze(generator)
        clear = np.flatnonzero(self._clear(seen))
        return _prompt(seen), self._ways[generator.choice(clear)]

    def chances(self, problem: Problem) -> dict[str, float]:
        """Of being right, for policies that no training makes: blind to the maze, or with an eye for some of it."""
        seen = np.array(list(problem.prompt[: self._size**2]))
        right = ~np.array(problem.reference)[self._cells].any(1)
        clear, fog = self._clear(seen), (seen == FOG)[self._cells].sum(1)
        least = clear & (fog == fog[clear].min())
        drawn_from = {
            "any way": np.ones_like(clear),
            "any way that meets no wall that is seen": clear,
            "such a way with the least fog": least,
        }
        return {name: float(right[ways].mean()) for name, ways in drawn_from.items()}

    def _clear(self, seen: NDArray[np.str_]) -> NDArray[np.bool_]:
        """Which ways meet no wall that is seen."""
        clear: NDArray[np.bool_] = ~(seen == WALL)[self._cells].any(1)
        return clear


def _all_ways(size: int) -> list[str]:
    """Every way from corner to corner, as its steps."""
    steps = 2 * (size - 1)
    return [
        "".join("R" if step in right else "D" for step in range(steps))
        for right in combinations(range(steps), size - 1)
    ]


def _cells(way: str, size: int) -> list[int]:
    """The numbers of the cells on a way."""
    return [way[:steps].count("D") * size + way[:steps].count("R") for steps in range(len(way) + 1)]


def _prompt(seen: NDArray[np.str_]) -> str:
    return "".join(seen) + "="
