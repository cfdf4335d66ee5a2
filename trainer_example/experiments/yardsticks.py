"""What policies reach that no training makes: beside them a table tells what there is left to learn.

All of them draw each answer by itself, as a trained policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from trainer_example.experiments.plan import AGAIN, AMBIGUOUS, FOG, Experiment, K
from trainer_example.experiments.results import Result
from trainer_example.experiments.statistics import Mean
from trainer_example.tasks import task_named
from trainer_example.tasks.fog import Fog
from trainer_example.tasks.rules import AMBIGUOUS_CHANCES, DEMONSTRATED_CHANCES

_HALVINGS = 100


def yardsticks(experiment: Experiment, results: Sequence[Result]) -> dict[str, dict[int, Mean]]:
    """pass@k of each policy, by k; of mazes over the seeds that there are. Empty for other tasks."""
    if experiment.name in (AMBIGUOUS.name, AGAIN.name):
        return {
            "every rule, as likely as it was demonstrated": _everywhere(lambda k: solved(DEMONSTRATED_CHANCES, k)),
            "every rule, as likely as is best for that k": _everywhere(lambda k: solved(best_chances(k), k)),
        }
    if experiment.name != FOG.name:
        return {}
    of_seeds = [_of_mazes(task) for task in dict.fromkeys(result.options["task"] for result in results)]
    return {
        name: {k: Mean.of([of[name, k] for of in of_seeds]) for k in K}
        for name in dict.fromkeys(name for of in of_seeds for name, _ in of)
    }


def solved(chances: Sequence[float], k: int) -> float:
    """pass@k of a policy that answers by each rule of a class with some chance, without a slip."""
    return sum(p * (1 - (1 - q) ** k) for p, q in zip(AMBIGUOUS_CHANCES, chances, strict=True))


def best_chances(k: int) -> list[float]:
    """Of answering by each rule of a class, so that pass@k is best.

    What a little more of a rule is worth, p k (1 - q)^(k - 1), is then the same for all that are answered by.
    """
    if k == 1:
        return [float(p == max(AMBIGUOUS_CHANCES)) for p in AMBIGUOUS_CHANCES]
    low, high = 0.0, k * max(AMBIGUOUS_CHANCES)
    for _ in range(_HALVINGS):
        worth = (low + high) / 2
        chances = [max(0.0, 1 - (worth / (k * p)) ** (1 / (k - 1))) for p in AMBIGUOUS_CHANCES]
        low, high = (worth, high) if sum(chances) > 1 else (low, worth)
    return chances


def _everywhere(pass_at: Callable[[int], float]) -> dict[int, Mean]:
    """The same for every seed."""
    return {k: Mean(pass_at(k), float("nan"), 1) for k in K}


def _of_mazes(name: str) -> dict[tuple[str, int], float]:
    """pass@k on the held-out mazes of a seed, by policy and k."""
    task = task_named(name)
    assert isinstance(task, Fog)
    chances = [task.chances(problem) for problem in task.test]
    return {
        (policy, k): sum(1 - (1 - of[policy]) ** k for of in chances) / len(chances)
        for policy, k in product(chances[0], K)
    }
