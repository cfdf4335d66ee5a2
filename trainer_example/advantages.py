"""A step's rewards in, its advantages out: one call to the service, whichever process the groups are in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather
from numpy.typing import NDArray
from torch import Tensor

from pkpo_client import Client, GroupStatus
from pkpo_client.errors import PkpoError
from trainer_example.configuration import Configuration
from trainer_example.methods import Method


@dataclass(frozen=True)
class Signal:
    """What a step's rewards say.

    Attributes:
        advantages: of this process's answers, of shape (answers,), float32; for a loss that sums over a group.
        rewards: of all processes' answers, of shape (prompts, n).
        k: that was asked for, n for tzsm; 0 where the variant takes none.
        groups_without_signal: how many of all prompts teach nothing.
    """

    advantages: Tensor
    rewards: NDArray[np.float64]
    k: int
    groups_without_signal: int


class Service(AbstractContextManager["Service"]):
    """The pkpo server, as this run sees it: the main process calls, and the others learn what it was told.

    Args:
        configuration: where it is, and what to do without it.
        method: which variant and k to ask for.
        accelerator: the processes.

    Raises:
        PkpoError: by each method, in every process, what the main process's call raised.
    """

    def __init__(self, configuration: Configuration, method: Method, accelerator: Accelerator) -> None:
        self._configuration, self._method, self._accelerator = configuration, method, accelerator
        self._client: Client | None = None
        if accelerator.is_main_process:
            self._client = Client(
                configuration.server,
                fallback="local" if configuration.on_outage == "local" else None,
                run_id=configuration.name,
                scale="sum",
                timeout=configuration.server_timeout,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()

    def check(self) -> None:
        """Asks for every k that the run will use, so that one that is not legal is refused before anything is done."""
        ks = {self._method.k(step) for step in range(self._configuration.steps)}
        equal = np.zeros((1, self._configuration.samples_per_prompt))
        self._asked(lambda client: [client.transform(equal, k, variant=self._method.variant) for k in ks])

    def gathered(self, rewards: Sequence[float]) -> NDArray[np.float64]:
        """All processes' rewards, of shape (prompts, n), of each one's own, those of a prompt together."""
        device = self._accelerator.device
        everyones: NDArray[np.float64] = gather(torch.tensor(rewards, dtype=torch.float64, device=device)).cpu().numpy()
        return everyones.reshape(-1, self._configuration.samples_per_prompt)

    def signal(self, everyones: NDArray[np.float64], step: int) -> Signal:
        """The advantages of a step.

        Args:
            everyones: the rewards of all processes, of shape (prompts, n).
            step: the training step, which decides k, and with the run's seed what variants draw.
        """
        advantages, statuses = self._asked(lambda client: self._transformed(client, everyones, step))
        mine = np.split(advantages, self._accelerator.num_processes)[self._accelerator.process_index]
        k = self._method.k(step) or (everyones.shape[1] if self._method.variant == "tzsm" else 0)
        silent = int((statuses == GroupStatus.NO_SIGNAL).sum())
        device = self._accelerator.device
        return Signal(torch.tensor(mine.ravel(), dtype=torch.float32, device=device), everyones, k, silent)

    def max_at_k(self, rewards: NDArray[np.float64], ks: Sequence[int]) -> list[tuple[float, float]]:
        """max@k (pass@k of rewards that are 0 or 1) of all prompts, and its standard error over prompts, for each k.

        Args:
            rewards: of shape (prompts, n), the same in every process.
            ks: each at most n.
        """
        estimates = self._asked(lambda client: [e.values for e in client.estimate(rewards, list(ks))])
        return [(float(v.mean()), float(v.std(ddof=1) / len(v) ** 0.5) if len(v) > 1 else 0.0) for v in estimates]

    def _asked(self, call: Any) -> Any:
        """What the main process's call returned, or raised, in every process."""
        said: list[Any] = [None]
        if self._client is not None:
            try:
                said = [call(self._client)]
            except PkpoError as error:
                said = [error]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(said)
        if isinstance(said[0], PkpoError):
            raise said[0]
        return said[0]

    def _transformed(
        self, client: Client, rewards: NDArray[np.float64], step: int
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        seed = (self._configuration.seed << 32) + step
        result = client.transform_detailed(rewards, self._method.k(step), variant=self._method.variant, seed=seed)
        return result.advantages, result.group_statuses
