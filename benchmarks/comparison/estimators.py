"""What each estimator says it computes, in exact arithmetic."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

# verl installs a package of its own under the name of `tests`.
if TYPE_CHECKING:
    from tests import reference
else:
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    import reference

# The exact advantages of one group for a k; None where the estimator's own formula has none.
Exact = Callable[[Sequence[float], int], "list[float] | None"]


@dataclass(frozen=True)
class Estimator:
    """One estimator, of a framework, a paper or ours.

    Attributes:
        name: of its framework, and in it.
        computes: the formula, as the tables have it.
        exact: the same, computed.
        takes: "k", "n" where k is always n, or "" where it takes none.
        needs_0_or_1: whether it is for rewards of 0 and 1 only.
        ours: the names of those that it is timed beside; of ours only.
        precision: of the rewards it is given by its framework.
        fixed_n: whether its loss averages over the largest group's n where samples of another one are missing.
    """

    name: str
    computes: str
    exact: Exact
    takes: str = ""
    needs_0_or_1: bool = False
    ours: tuple[str, ...] = ()
    precision: str = "float64"
    fixed_n: bool = False


def variant(name: str, scale: str) -> Exact:
    """One of ours, where it is defined."""

    def exact(rewards: Sequence[float], k: int) -> list[float] | None:
        k = len(rewards) if name == "tzsm" else k
        return reference.advantages(name, rewards, k, scale=scale) if reference.legal(name, len(rewards), k) else None

    return exact


def z_score(epsilon: float) -> Exact:
    """(r - mean) / (deviation of the sample + epsilon)."""

    def exact(rewards: Sequence[float], k: int) -> list[float] | None:
        deviations, deviation = _spread(rewards)
        return None if deviation is None else [float(d / (deviation + Fraction(epsilon))) for d in deviations]

    return exact


def mean_deviation(rewards: Sequence[float], k: int) -> list[float] | None:
    """r - mean."""
    deviations, deviation = _spread(rewards)
    return None if deviation is None else [float(d) for d in deviations]


def best_gap_over_deviation(rewards: Sequence[float], k: int) -> list[float] | None:
    """(best - second) / (deviation of the sample + 1e-6) to the best, 0 to the others."""
    _, deviation = _spread(rewards)
    gaps = variant("tzsm", "sum")(rewards, k)
    if deviation is None or gaps is None:
        return None
    return [float(Fraction(gap) / (deviation + Fraction(1e-6))) for gap in gaps]


def passk_training(rewards: Sequence[float], k: int) -> list[float] | None:
    """Pass@k Training's closed form with its 1e-6, for rewards of 0 and 1."""
    n = len(rewards)
    wrong = n - sum(rewards)
    if not 1 <= k <= n or not set(rewards) <= {0.0, 1.0}:
        return None
    none_right = Fraction(math.comb(int(wrong), k), math.comb(n, k))
    deviation = reference.root(none_right * (1 - none_right)) + Fraction(1e-6)
    given_wrong = Fraction(math.comb(int(wrong) - 1, k - 1), math.comb(n - 1, k - 1)) if wrong else Fraction(0)
    return [float((none_right if reward else none_right - given_wrong) / deviation) for reward in rewards]


def _spread(rewards: Sequence[float]) -> tuple[list[Fraction], Fraction | None]:
    """Each reward less the mean, and the deviation of the sample; None of fewer than two."""
    values = [Fraction(float(reward)) for reward in rewards]
    centre = reference.mean(values)
    deviations = [value - centre for value in values]
    if len(values) < 2:
        return deviations, None
    return deviations, reference.root(sum((d * d for d in deviations), Fraction(0)) / (len(values) - 1))


LEAVE_ONE_OUT = "r_i - mean of the others"
Z_SCORE = "(r_i - mean) / (deviation + {})"
CENTRED = "r_i - mean"
EQUATION_33 = "PKPO eq. 33"
OURS = f"{EQUATION_33}, at k = 1 leave-one-out; times n, for a loss that averages"

ESTIMATORS: dict[str, tuple[Estimator, ...]] = {
    "published": (
        Estimator("PKPO's listing", EQUATION_33, variant("sloo_minus_one", "sum"), takes="k"),
        Estimator("Pass@k Training", "closed form, + 1e-6", passk_training, takes="k", needs_0_or_1=True),
        Estimator(
            "pkpo: sloo_minus_one",
            f"{EQUATION_33}, at k = 1 leave-one-out",
            variant("sloo_minus_one", "sum"),
            takes="k",
            ours=("PKPO's listing",),
        ),
        Estimator(
            "pkpo: passk_analytic",
            "closed form, of any rewards",
            variant("passk_analytic", "mean"),
            takes="k",
            ours=("Pass@k Training",),
        ),
    ),
    "verl": (
        Estimator("grpo", Z_SCORE.format("1e-6"), z_score(1e-6)),
        Estimator("grpo_vectorized", Z_SCORE.format("1e-6"), z_score(1e-6)),
        Estimator(
            "grpo_passk",
            "(best - second) / (deviation + 1e-6) to the best",
            best_gap_over_deviation,
            takes="n",
        ),
        Estimator(
            "grpo_passk, no deviation",
            "best - second, to the best",
            variant("tzsm", "sum"),
            takes="n",
        ),
        Estimator("rloo", LEAVE_ONE_OUT, variant("loo", "mean")),
        Estimator("rloo_vectorized", LEAVE_ONE_OUT, variant("loo", "mean")),
        Estimator(
            "pkpo",
            OURS,
            variant("sloo_minus_one", "mean"),
            takes="k",
            ours=("grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized"),
        ),
    ),
    "trl": (
        Estimator("GRPOTrainer", Z_SCORE.format("1e-4"), z_score(1e-4)),
        Estimator('GRPOTrainer, scale_rewards="none"', CENTRED, mean_deviation),
        Estimator("RLOOTrainer", LEAVE_ONE_OUT, variant("loo", "mean")),
        Estimator(
            "pkpo",
            OURS,
            variant("sloo_minus_one", "mean"),
            takes="k",
            ours=("GRPOTrainer", "RLOOTrainer"),
            fixed_n=True,
        ),
    ),
    "tunix": (
        Estimator("grpo", Z_SCORE.format("1e-6"), z_score(1e-6)),
        Estimator("drgrpo", CENTRED, mean_deviation),
        Estimator("rloo", LEAVE_ONE_OUT, variant("loo", "mean")),
        Estimator("pkpo", OURS, variant("sloo_minus_one", "mean"), takes="k", ours=("grpo", "drgrpo", "rloo")),
    ),
}
# verl and TRL have rewards in float32.
for framework in ("verl", "trl"):
    ESTIMATORS[framework] = tuple(replace(estimator, precision="float32") for estimator in ESTIMATORS[framework])
