"""TRL: a GRPOTrainer whose advantages are those of pass@k.

    trainer = PassAtKTrainer(model, reward, pkpo={"k": "8@0,1@1500"}, args=..., train_dataset=...)

    class Trainer(PassAtKTrainer, TrainerOfMine): ...     # a GRPOTrainer of one's own

TRL has no hook for advantages, so this goes by names that TRL may change; docs/integrations/trl.md has the versions it
was tested with. Where a name is missing, or is not used as it was, it raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
import trl
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor
from trl import GRPOTrainer

from pkpo_client.errors import PkpoError, refused
from pkpo_client.integrations.objective import Objective

Figures: TypeAlias = dict[str, float]

_METHODS = ("_generate_and_score_completions", "_calculate_rewards")
_ATTRIBUTES = ("_logs", "_metrics", "accelerator", "num_generations", "num_generations_eval", "reward_weights")


class PassAtKTrainer(GRPOTrainer):  # type: ignore[misc]
    """A GRPOTrainer that optimises pass@k, or max@k of continuous rewards.

    The reward of a completion is the weighted sum of its reward functions, as TRL's own. With A_i the advantages of a
    group of n = num_generations in scale "sum", what is trained on is n A_i: every loss of TRL averages over
    completions. Nothing is subtracted from that, and nothing divided by, whatever `scale_rewards` is.

    A completion for which every reward function returned None counts in no group and has the advantage 0; a group in
    which m < n count weighs as much as any other, and gets the largest k it allows.

    The main process asks, for the groups of all processes; what it was told, each process is told.

    Args:
        pkpo: the objective, or its settings by name, as `Objective` has them; what is left out, PKPO_* of the
            environment say. `scale` is "mean", and `estimate_k` the powers of 2 up to num_generations, unless they say
            otherwise; an `Objective` is taken as it is, and its own `scale` is "sum" where nobody says any.
        args, kwargs: of the GRPOTrainer, or of the next class in a subclass's order.

    Raises:
        InvalidArgument: a setting that cannot be, or several rewards that are normalised before they are summed.
        RuntimeError: this version of TRL has not what is needed here.
    """

    _calculate_rewards: Any

    def __init__(self, *args: Any, pkpo: Objective | Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        _require(super(), _METHODS)
        super().__init__(*args, **kwargs)
        _require(self, _ATTRIBUTES)
        if isinstance(pkpo, Objective):
            self.objective = pkpo
        else:
            powers = [2**i for i in range(self.num_generations.bit_length())]
            self.objective = Objective.from_settings(pkpo or {}, scale="mean", estimate_k=powers)
        aggregation = getattr(self, "multi_objective_aggregation", "sum_then_normalize")
        if aggregation != "sum_then_normalize":
            raise refused(
                "multi_objective_aggregation",
                f"is {aggregation!r}; must be 'sum_then_normalize': the best of k is that of one reward",
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        given: list[Tensor] = []
        calculate = self._calculate_rewards

        def remembered(*args: Any, **kwargs: Any) -> Tensor:
            given.append(calculate(*args, **kwargs))
            return given[-1]

        # Not by a method of this class: a subclass may have another one over it.
        self._calculate_rewards = remembered
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            del self._calculate_rewards

        mine = output.get("advantages")
        processes = self.accelerator.num_processes
        if len(given) != 1 or mine is None or mine.shape != (len(given[0]) // processes,):
            raise _unknown("scores completions in another way, or leaves some out")
        everyones, figures = self._told(given[0])
        local = slice(self.accelerator.process_index * len(mine), (self.accelerator.process_index + 1) * len(mine))

        # What TRL made of these rewards, in the order of the rewards; the newest ones only, of an evaluation's batch.
        table = self._logs["advantages"]
        replaced = [table.pop() for _ in range(min(len(everyones), len(table)))][::-1]
        if len(replaced) == len(everyones) and replaced[local] != mine.tolist():
            raise _unknown("puts other completions or advantages in the place of those that were scored")
        table.extend(everyones.tolist())
        output["advantages"] = everyones[local].to(mine)

        mode = "train" if self.model.training else "eval"
        for name, figure in figures.items():
            self._metrics[mode][name].append(figure)
        return output

    def _told(self, rewards_per_function: Tensor) -> tuple[Tensor, Figures]:
        """The advantages of all processes' completions, and figures to log: in every process, or its error in each."""
        said: list[Any] = [None]
        failure: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                said = [self._asked(rewards_per_function)]
            except Exception as error:
                failure = error
                said = [error if isinstance(error, PkpoError) else RuntimeError(f"the main process: {error!r}")]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(said)
        if isinstance(said[0], Exception):
            raise failure or said[0]
        advantages, figures = said[0]
        return torch.from_numpy(advantages).flatten().float(), figures

    def _asked(self, rewards_per_function: Tensor) -> tuple[NDArray[np.float64], Figures]:
        training, step = self.model.training, self.state.global_step
        n = self.num_generations if training else self.num_generations_eval
        each = rewards_per_function.cpu().double()
        valid = (~each.isnan().all(dim=1)).view(-1, n).numpy()
        rewards = (each * self.reward_weights.cpu().double()).nansum(dim=1).view(-1, n).numpy()

        # In scale "mean" a group's advantages grow with the m that count; the loss averages over all n.
        asked = replace(self.objective, scale="sum")
        if not training and asked.run_id:
            asked = replace(asked, run_id=f"{asked.run_id[:123]}/eval")
        if not (training and valid.all()):
            asked = replace(asked, k_policy="clamp")
        result = asked.transform(rewards, step, mask=valid)
        figures = asked.measured(result, step) | {"pkpo/unscorable": float(1 - valid.mean())}
        return result.advantages * (n if self.objective.scale == "mean" else 1), figures


def _require(owner: Any, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise _unknown(f"has no {', '.join(missing)}")


def _unknown(what: str) -> RuntimeError:
    return RuntimeError(
        f"trl {trl.__version__}: its GRPOTrainer, or a class over it, {what}; docs/integrations/trl.md has the "
        "versions that pkpo works with"
    )


__all__ = ["PassAtKTrainer"]
