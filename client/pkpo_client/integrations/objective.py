"""What a run optimises and who computes it, as the configuration of a framework says it."""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np

from pkpo_client import options, schedules
from pkpo_client.client import Client
from pkpo_client.errors import InvalidArgument, PermissionDenied, refused
from pkpo_client.identity import NAMES, IdentityFiles
from pkpo_client.local_client import LocalClient
from pkpo_client.operations import Ids, Mask
from pkpo_client.options import WITHOUT_K
from pkpo_client.results import ArrayT, GroupStatus, TransformResult
from pkpo_client.schedules import Schedule

#: What `address` is where there is no service, and this process computes.
LOCAL = "local"
ENVIRONMENT_PREFIX = "PKPO_"


@dataclass(frozen=True)
class Objective:
    """What a run optimises and who computes it.

    Every attribute is a setting of the same name in a framework's configuration, or `PKPO_` and its name in capitals
    in the environment.

    Attributes:
        k: how many samples the best is taken of: an integer, or a schedule over training steps such as "8@0,1@1500".
            Empty for the variants loo, grpo and tzsm.
        variant: which function of the rewards the advantages are.
        scale: "sum" where the loss sums over the samples of a group, "mean" where it averages over them. Each
            integration says what is right for its framework, and fills that in.
        k_policy: "strict" refuses a k outside the variant's range for a group, "clamp" lowers it.
        estimate_k: max@k (pass@k for rewards of 0 and 1) is reported for these: "1,2,4,8", or integers.
        seed: of the variant passk_bootstrap, from 0 to 2^32 - 1; every step draws anew from it.
        address: of the service, as `Client` takes it; "local" computes in this process.
        fallback: "local" computes in this process while the service is unreachable; "none" raises.
        timeout: seconds a call may take, with all retries and parts.
        run_id: names the run in the service's metrics.
        token_file: a file that holds the bearer token; a change counts from the next call on.
        ca_file: certificate authorities in PEM, of a service that is reached by TLS; read when the client is made.
        certificate_file, key_file: this client's own, in PEM, where the service asks for them; read then as well.

    Raises:
        InvalidArgument: a setting that cannot be, named with its value and what it must be.
        LocalComputingMissing: `address="local"` or `fallback="local"` where numba is not installed.
    """

    k: str = ""
    variant: str = "sloo_minus_one"
    scale: str = "sum"
    k_policy: str = "strict"
    estimate_k: tuple[int, ...] = ()
    seed: int = 0
    address: str = "localhost:50051"
    fallback: str = "none"
    timeout: float = 30.0
    run_id: str = ""
    token_file: str = field(default="", repr=False)
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        options.name("variant", self.variant, options.VARIANTS)
        options.name("scale", self.scale, options.SCALES)
        options.name("k_policy", self.k_policy, options.K_POLICIES)
        object.__setattr__(self, "estimate_k", options.k_list("estimate_k", self.estimate_k))
        options.integer("seed", self.seed, 2**32 - 1)
        options.timeout(self.timeout)
        options.run_id(self.run_id)
        if self.fallback not in ("none", "local"):
            raise refused("fallback", f"is {self.fallback!r:.80}; must be none or local")
        if not isinstance(self.k, str):
            raise refused("k", f"is {self.k!r:.80}; must be a string such as '8' or '8@0,1@1500'")
        if self.k or self.variant not in WITHOUT_K:
            self.schedule()

    @classmethod
    def from_settings(
        cls, settings: Mapping[str, Any], *, environment: Mapping[str, str] = os.environ, **usual: Any
    ) -> Objective:
        """The objective that a configuration says; what it leaves out, the environment says, then `usual`.

        Args:
            settings: by name, as the attributes; a value of None is left out. Numbers may come as text.
            environment: of this process.
            usual: what is right for the framework where nobody says anything.

        Raises:
            InvalidArgument: no settings by name, an unknown name, or a value that cannot be.
        """
        if not isinstance(settings, Mapping):
            raise refused("pkpo", f"is {settings!r:.80}; must be settings by name, such as k: 8")
        known = {each.name for each in fields(cls)}
        strange = sorted(str(name) for name in settings if name not in known)
        if strange:
            raise refused(strange[0], f"is no setting of pkpo; must be one of {', '.join(sorted(known))}")
        said = dict(usual)
        for name in known:
            text = environment.get(ENVIRONMENT_PREFIX + name.upper())
            if text:
                said[name] = text
        said.update({name: value for name, value in settings.items() if value is not None})
        read: dict[str, Any] = {name: _READERS.get(name, _text)(name, value) for name, value in said.items()}
        return cls(**read)

    def schedule(self) -> Schedule:
        """k at every training step."""
        try:
            return schedules.from_string(self.k)
        except InvalidArgument as error:
            raise refused(
                "k", f"is {self.k!r:.80}; must be an integer of at least 1, or k@step such as 8@0,1@1500"
            ) from error

    def k_at(self, step: int) -> int | None:
        """k at a training step; None for a variant that takes none.

        Args:
            step: the training step, from 0 on.
        """
        return None if self.variant in WITHOUT_K else self.schedule()(step)

    def known_step(self, step: int | None) -> int:
        """The training step, of a framework that does not always say it; 0 where it is None and does not matter.

        Raises:
            InvalidArgument: it is None, and k follows a schedule or subsets are drawn.
        """
        if step is not None:
            return step
        if self.variant == "passk_bootstrap":
            raise refused("variant", "is 'passk_bootstrap'; must be another where the training step is not known")
        if self.variant not in WITHOUT_K and "@" in self.k:
            raise refused("k", f"is {self.k!r:.80}; must be one integer where the training step is not known")
        return 0

    def transform(
        self, rewards: ArrayT, step: int, *, group_ids: Ids | None = None, mask: Mask | None = None
    ) -> TransformResult[ArrayT]:
        """The advantages of a training step, by the service or in this process; see `Client.transform_detailed`.

        Args:
            rewards: (groups, n), or (samples,) with `group_ids`.
            step: the training step, from 0 on, which decides k.
            group_ids, mask: as in `Client.transform`.

        Raises:
            InvalidArgument: as `Client.transform` does; of a schedule of k, at once for all that is in it.
            PkpoError: as `Client.transform` does.
        """
        if "@" in self.k and self.k_policy == "strict" and self.variant not in WITHOUT_K:
            n = _largest_group(rewards, group_ids)
            if n:
                _require_legal(self, n)
        return _client(self).transform_detailed(
            rewards,
            self.k_at(step),
            estimate_k=self.estimate_k,
            group_ids=group_ids,
            mask=mask,
            seed=(self.seed << 32) + step,
        )

    def measured(self, result: TransformResult[Any], step: int) -> dict[str, float]:
        """What is worth a line in the log of a training step, by name.

        `pkpo/k`, shares of groups by what there is to know of them, and `pkpo/max@K` (of rewards of 0 and 1: pass@K)
        for each K of `estimate_k`, the mean over the groups that have as many samples.
        """
        statuses = result.group_statuses
        k = self.k_at(step)
        figures = {} if k is None else {"pkpo/k": float(k)}
        for status in (GroupStatus.NO_SIGNAL, GroupStatus.K_CLAMPED, GroupStatus.TOO_SMALL):
            share = float((statuses == status).mean()) if len(statuses) else 0.0
            figures[f"pkpo/groups_{status.name.lower()}"] = share
        for estimate in result.estimates:
            values = estimate.values[estimate.values == estimate.values]
            if len(values):
                figures[f"pkpo/max@{estimate.k}"] = float(values.mean())
        return figures


# A run has one objective, and a client keeps its connection.
@lru_cache(maxsize=16)
def _client(objective: Objective) -> Client | LocalClient:
    usual: dict[str, Any] = {
        "variant": objective.variant,
        "scale": objective.scale,
        "k_policy": objective.k_policy,
        "run_id": objective.run_id,
        "timeout": objective.timeout,
    }
    if objective.address == LOCAL:
        return LocalClient(**usual)
    files = IdentityFiles(**{name: getattr(objective, name) for name in NAMES})
    return Client(
        objective.address,
        credentials=files.credentials(),
        token=files.token(),
        fallback=None if objective.fallback == "none" else objective.fallback,
        **usual,
    )


# Else a run would train for days before it is told of a k that its groups do not allow.
@lru_cache(maxsize=16)
def _require_legal(objective: Objective, n: int) -> None:
    """Raises InvalidArgument where a k of the schedule is not legal for groups of n."""
    ks = [int(part.partition("@")[0]) for part in objective.k.split(",")]
    client, groups = _client(objective), np.zeros((len(ks), n))
    try:
        try:
            client.transform(groups, ks, run_id="")  # under no name, since these rewards are not the run's
        except PermissionDenied:  # of a token that is for runs with names
            client.transform(groups, ks)
    except InvalidArgument as error:
        raise refused("k", f"is {objective.k!r:.80}, not all of it legal for groups of {n}: {error}") from error


def _largest_group(rewards: Any, group_ids: Any) -> int:
    if group_ids is None:
        return int(rewards.shape[-1])
    return max(Counter(group_ids.tolist() if hasattr(group_ids, "tolist") else group_ids).values(), default=0)


def _text(name: str, value: Any) -> str:
    return str(value)


def _integer(name: str, value: Any) -> int:
    try:
        return int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        raise refused(name, f"is {value!r:.80}; must be an integer") from None


def _integers(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    elif not isinstance(value, Sequence):
        value = [value]
    return tuple(_integer(name, each) for each in value)


def _seconds(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise refused(name, f"is {value!r:.80}; must be a number of seconds above 0") from None


_READERS = {"estimate_k": _integers, "seed": _integer, "timeout": _seconds}
