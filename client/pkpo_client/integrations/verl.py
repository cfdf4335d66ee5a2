"""verl: the advantage estimator "pkpo". verl finds it by itself where this package is installed.

    algorithm.adv_estimator=pkpo +algorithm.pkpo.k=8 +algorithm.pkpo.address=pkpo:50051

docs/integrations/verl.md tells what each of verl's losses makes of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from pkpo_client.integrations.objective import Objective
from pkpo_client.operations import Ids

logger = logging.getLogger(__name__)
# As verl sets its own: one line a step is little beside those it writes itself.
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


@register_adv_est("pkpo")  # type: ignore[untyped-decorator]
def passk_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Ids, config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Advantages that optimise pass@k, or max@k of continuous rewards, the same for every token of a sample.

    The reward of a sample is the sum of its tokens' rewards. With A_i the advantages of a group of n samples in scale
    "sum", those of its tokens are n A_i, as every loss of verl but token-sum averages over samples or tokens.

    A sample with no token to train on (aborted, rejected, or put there to fill a batch) counts in no group. Where
    there is one, a k above what is left of a group is lowered.

    Args:
        token_level_rewards: (samples, tokens), of any floating dtype.
        response_mask: (samples, tokens), 1 where a token is trained on.
        index: (samples,) which samples share a prompt: verl's uids, in any order, in groups of any sizes.
        config: verl's `algorithm` section. Its `pkpo` is the settings of `Objective`; what it leaves out, PKPO_* of
            the environment say.

    Returns:
        Advantages and returns, which are the same: (samples, tokens), of the dtype of the rewards.

    Raises:
        InvalidArgument: a setting that cannot be, or a reward that is not finite.
        PkpoError: the service cannot be reached, and `fallback` is "none".
    """
    objective = Objective.from_settings(_settings(config), scale="mean")
    step = objective.known_step(_training_step())
    trained = response_mask.bool().any(dim=-1)
    if not trained.all():
        objective = replace(objective, k_policy="clamp")

    result = objective.transform(token_level_rewards.sum(dim=-1), step, group_ids=index, mask=trained)
    logger.info("step %d: %s", step, objective.measured(result, step))
    advantages = result.advantages.unsqueeze(-1) * response_mask
    return advantages, advantages


def _settings(config: Any) -> Mapping[str, Any]:
    section = config.get("pkpo") if config is not None else None
    if isinstance(section, DictConfig):
        section = OmegaConf.to_container(section, resolve=True)
    return section or {}


def _training_step() -> int | None:
    """The training step from 0 on, also after a checkpoint; None in a trainer of verl that does not say it.

    verl gives an estimator no step, but its trainers tell it to whatever may skip rollouts.
    """
    try:
        from verl.utils.skip import SkipManager
    except ImportError:
        return None
    return SkipManager.step - 1 if SkipManager.step > 0 else None


__all__ = ["passk_advantage"]
