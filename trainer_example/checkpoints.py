"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

log = logging.getLogger("trainer_example")
_NAME = re.compile(r"step-(\d+)")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: the training steps done.
        solved: the numbers of the training prompts that any sample has solved so far.
    """

    step: int = 0
    solved: set[int] = field(default_factory=set)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"step": self.step, "solved": sorted(self.solved)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what a checkpoint kept."""
        self.step, self.solved = state["step"], set(state["solved"])


@dataclass(frozen=True)
class Checkpoints:
    """The newest few checkpoints of a run: weights, optimiser, schedule, progress.

    Of random numbers nothing need be kept: a step's are decided by the seed and its number.

    Attributes:
        folder: where they are, one folder each, named by the steps done.
        accelerator: whose prepared model, optimiser and schedule they are of.
        progress: of the run.
        keep: how many.
    """

    folder: Path
    accelerator: Accelerator
    progress: Progress
    keep: int

    def save(self) -> Path:
        """Keeps the state now; a run that dies here leaves the older checkpoints as they were."""
        path = self.folder / f"step-{self.progress.step:06d}"
        if path.exists():
            return path
        unfinished = path.with_name(f"{path.name}.unfinished")
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            unfinished.rename(path)
            for old in self._all()[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return path

    def save_if_due(self, every: int, last: int) -> None:
        """Keeps the state now if the steps done are a multiple of `every` (0: none is) or the last."""
        if self.progress.step == last or (every and self.progress.step % every == 0):
            self.save()

    def start(self, resume: bool) -> None:
        """Goes back to the newest whole checkpoint, if there is one.

        Raises:
            FileExistsError: there is one, and the run is not to resume.
        """
        newest = next(reversed(self._all()), None)
        if newest is None:
            if resume:
                log.info("there is no checkpoint in %s yet: starting at step 0", self.folder)
            return
        if not resume:
            raise FileExistsError(f"{self.folder} holds checkpoints: --resume true goes on; or name another --run_dir")
        self.accelerator.load_state(str(newest))
        log.info("going on from %s", newest)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name))
