"""What is kept of a run: a JSON file, and nothing else once it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer_example.experiments.plan import Experiment, Run

FOLDER = "results"
SOLVED = "solved_in_training"
CURVES = ("entropy", "diversity")  # and SOLVED
POINTS = 60  # of a curve of training
LEFT_TO_SOLVE = 0.02
STALLED, UNSOLVED = 0.01, 0.9


@dataclass(frozen=True)
class Result:
    """What a run showed.

    Attributes:
        label: of its method.
        seed: of everything.
        options: what the trainer was told.
        provenance: the code that made it.
        seconds: of the training steps, across all starts.
        groups: of rewards that the server made into advantages.
        passes: over the training prompts.
        gradient_norm: the mean over steps, before it is clipped.
        clipped: the share of steps whose gradient was scaled down.
        evaluations: on held-out prompts, a record each, the first before any training.
        training: a record for each stretch of steps, the means over it.
    """

    label: str
    seed: int
    options: dict[str, Any]
    provenance: dict[str, str]
    seconds: float
    groups: int
    passes: float
    gradient_norm: float
    clipped: float
    evaluations: list[dict[str, float]]
    training: list[dict[str, float]]

    def base(self, figure: str) -> float:
        """A figure of the model before training."""
        return self.evaluations[0][figure]

    def last(self, figure: str) -> float:
        """A figure of the trained model; SOLVED is of training, at its end."""
        return self.training[-1][figure] if figure == SOLVED else self.evaluations[-1][figure]

    def stalls(self) -> bool:
        """Whether under 90 % are solved in training, and less than 1 point of that in the last half of the steps."""
        last = self.training[-1]
        half = next(record for record in self.training if record["step"] >= last["step"] / 2)
        return last[SOLVED] < UNSOLVED and last[SOLVED] - half[SOLVED] < STALLED

    def annealed_at(self) -> int:
        """The step at which k became what it was at the end, for the result of a method with a schedule."""
        return int(str(self.options["method"]).rpartition("@")[2])

    def switch(self) -> int:
        """The step after which this run solved only the last 2 % of the training prompts that it did solve."""
        last = self.training[-1]
        wanted = last[SOLVED] - LEFT_TO_SOLVE
        found = next(record["step"] for record in self.training if record[SOLVED] >= wanted)
        return int(min(found, 0.8 * last["step"]))


def result_path(folder: Path, key: str) -> Path:
    """Where the result of a run is."""
    return folder / FOLDER / f"{key}.json"


def key_of(run: Run, folder: Path) -> str | None:
    """The key of a run; None while the run that it follows is not done."""
    if run.follows is None:
        return run.key()
    switch = switch_of(run, folder)
    return None if switch is None else run.key(switch)


def switch_of(run: Run, folder: Path) -> int | None:
    """The step at which a run changes its k, once that is known; None for one that follows none."""
    if run.follows is None:
        return None
    followed = result_of(run.follows, folder)
    return None if followed is None else followed.switch()


def result_of(run: Run, folder: Path) -> Result | None:
    """The result of a run; None while there is none."""
    key = key_of(run, folder)
    path = result_path(folder, key) if key is not None else None
    return Result(**json.loads(path.read_text())) if path is not None and path.exists() else None


def results_of(experiment: Experiment, folder: Path) -> list[Result]:
    """The results that there are."""
    found = (result_of(run, folder) for run in experiment.runs())
    return [result for result in found if result is not None]


def save_result(result: Result, path: Path) -> None:
    """Writes a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(vars(result)))
    unfinished.replace(path)


def thinned(records: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The curves of training with a point for each stretch of steps: at its last step, the mean over it.

    What has been solved so far is that of the last step.
    """
    width = max(1, len(records) // POINTS)
    stretches = [records[max(0, end - width) : end] for end in range(len(records), 0, -width)][::-1]
    return [
        {
            "step": stretch[-1]["step"],
            **{name: fmean(record[name] for record in stretch) for name in CURVES},
            SOLVED: stretch[-1][SOLVED],
        }
        for stretch in stretches
    ]
