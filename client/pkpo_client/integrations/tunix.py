"""pass@k in google-tunix: an advantage estimator for its GRPO learners, by name.

    estimator = register(cluster, k="8@0,1@1500", run_id="gemma2-sums")
    config = GRPOConfig(advantage_estimator="pkpo", num_generations=16)
    GRPOLearner(cluster, config, reward_fns, metric_fns=[estimator.metrics]).train(dataset)

docs/integrations/tunix.md tells what each of tunix's losses makes of it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tunix.rl.function_registry import register_advantage_estimator
from tunix.rl.rl_cluster import RLCluster

from pkpo_client.errors import refused
from pkpo_client.integrations.objective import Objective

#: Every loss of tunix averages over the samples of a batch.
SCALE = "mean"


def register(cluster: RLCluster, name: str = "pkpo", **settings: Any) -> Estimator:
    """The estimator that `GRPOConfig(advantage_estimator=name)` chooses from now on.

    Args:
        cluster: the one the learner gets; it counts the training steps.
        name: as the configuration says it.
        settings: attributes of `Objective`, such as k="8@0,1@1500" and address="dns:///pkpo-headless:50051". What is
            not given here, the environment says (PKPO_K, PKPO_ADDRESS, ...).

    Raises:
        InvalidArgument: a setting that cannot be, named with its value and what it must be.
    """
    estimator = Estimator(Objective.from_settings(settings, scale=SCALE), cluster)
    register_advantage_estimator(name)(estimator)
    return estimator


class Estimator:
    """What a learner asks for the advantages of the samples it has scored.

    k is that of the learner's training step, `cluster.global_steps`, which a resumed run has from its checkpoint. The
    checkpoint that tunix makes at the very end of training does not say it: there the run goes on from its updates.

    Attributes:
        objective: what is optimised, and who computes it.
    """

    def __init__(self, objective: Objective, cluster: RLCluster) -> None:
        self.objective = objective
        self._cluster = cluster
        trainer = cluster.actor_trainer
        self._untold = 0 if trainer.restored_global_step() else int(trainer.train_steps)
        # A learner may sample for training in one thread while it evaluates in another.
        self._latest = threading.local()

    def __call__(self, rewards: Any, num_generations: int) -> NDArray[np.float64]:
        """The advantages of a batch.

        Args:
            rewards: (prompts * num_generations,), the samples of a prompt one after the other.
            num_generations: n, the size of every group.

        Returns:
            (prompts * num_generations,) float64.

        Raises:
            InvalidArgument: the rewards make no whole groups, or the service refuses them.
            PkpoError: as `Client.transform` does. It ends `train`.
        """
        values = np.asarray(rewards, np.float64)
        if values.ndim != 1 or values.size % num_generations:
            raise refused("rewards", f"has shape {values.shape}; must be groups of {num_generations} end to end")
        step = self._untold + int(self._cluster.global_steps)
        result = self.objective.transform(values.reshape(-1, num_generations), step)
        self._latest.figures = self.objective.measured(result, step)
        return result.advantages.reshape(-1)

    def metrics(self, **batch: Any) -> dict[str, tuple[float, Any]]:
        """What there is to log of the batch just answered, as one of a learner's `metric_fns`.

        Args:
            batch: what the learner tells every such function; of no use here.
        """
        return {name: (figure, np.mean) for name, figure in getattr(self._latest, "figures", {}).items()}


__all__ = ["Estimator", "register"]
