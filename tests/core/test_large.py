"""Groups far beyond what binomial coefficients in doubles could serve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.samples import JIT
from pkpo_core import RewardGroups, Scale, Variant, estimate, transform

Array = NDArray[np.float64]

N = 1_000_000 if JIT else 3_000
KS = [1, 2, 3, 1000, N // 2, N - 2, N - 1, N]


def rewards_of(variant: Variant) -> Array:
    rng = np.random.default_rng(1)
    if variant is Variant.BINARY:
        return (rng.random(N) < 3e-4).astype(float)
    return rng.normal(size=N)


class Counted:
    """The papers' sums over subsets, of sorted rewards x, from the ratios of neighbouring binomial coefficients.

    A product of a million ratios is right to about 1e-12, and these rewards lie far enough apart for differences to
    keep most of that: enough to tell that an answer is right, if not to the last digits.
    """

    def __init__(self, x: Array, k: int) -> None:
        n = len(x)
        i = np.arange(1, n)  # below the i-th reward lie i - 1
        self.x, self.k, self.n = x, k, n
        self.last = share_of_last(n, k)
        # As a share of all k-subsets: those that end at j and hold one given sample below it ...
        holding = np.append(0.0, self.last[1:] * (k - 1) / i)
        self.s = x * self.last + above(holding * x)
        self.rho = float(self.last @ x)
        self.deviation = float(np.sqrt(np.maximum(self.last @ (x - self.rho) ** 2, 0)))
        if k < n:
            share = share_of_last(n - 1, k)
            self.rho_without = below(np.append(share, 0.0) * x) + above(np.append(0.0, share) * x)
        # ... and those that end at one given sample above j and have j next to last.
        self.next_to_last = share_of_last(n - 1, k - 1) * k / n if k >= 2 else np.zeros(n - 1)

    def advantages(self, variant: Variant) -> Array:
        n, k, x = self.n, self.k, self.x
        if variant is Variant.LOO or (variant is Variant.SLOO_MINUS_ONE and k == 1):
            return np.asarray((x - x.mean()) / (n - 1))
        if variant is Variant.SLOO_MINUS_ONE:
            return x * self.last - below(np.append(self.next_to_last * x[:-1], 0.0))
        if variant in (Variant.S, Variant.BINARY):
            return self.s
        if variant is Variant.SLOO:
            return self.s - k / (n - 1) * self.rho_without
        if variant is Variant.CENTERED:
            # Two roads to one answer, each of which loses digits at its own end of the range.
            return n / (n - k) * (self.s - self.s.mean()) if 2 * k < n else self.rho - self.rho_without
        if variant is Variant.TZSM:
            return np.append(np.zeros(n - 1), x[-1] - x[-2])
        assert variant is Variant.PASSK_ANALYTIC
        return (n / k * self.s - self.rho) / self.deviation / n if x[k - 1] < x[-1] else np.zeros(n)


def share_of_last(n: int, k: int) -> Array:
    """C(i-1, k-1) / C(n, k) for i = 1 .. n: how many of the k-subsets of n end at i."""
    i = np.arange(n, 1, -1)
    return np.asarray(np.cumprod(np.append(k / n, np.maximum(i - k, 0) / (i - 1)))[::-1])


def below(terms: Array) -> Array:
    return np.append(0.0, np.cumsum(terms)[:-1])


def above(terms: Array) -> Array:
    return below(terms[::-1])[::-1]


GAP_VARIANTS = [
    Variant.SLOO_MINUS_ONE,
    Variant.S,
    Variant.SLOO,
    Variant.CENTERED,
    Variant.LOO,
    Variant.BINARY,
    Variant.TZSM,
    Variant.PASSK_ANALYTIC,
]


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("variant", GAP_VARIANTS, ids=lambda variant: variant.value)
def test_a_group_of_a_million(variant: Variant, k: int) -> None:
    largest = N - 1 if variant in (Variant.SLOO, Variant.CENTERED) else N
    if k > largest or (variant is Variant.TZSM and k < N):
        return
    rewards = rewards_of(variant)
    order = np.argsort(rewards, kind="stable")
    expected = Counted(rewards[order], k).advantages(variant)
    for scale, factor in ((Scale.SUM, 1), (Scale.MEAN, N)):
        measured = transform(RewardGroups(rewards, N), k, variant=variant, scale=scale).advantages[order]
        assert np.isfinite(measured).all()
        np.testing.assert_allclose(measured, factor * expected, rtol=0, atol=1e-8 * factor * np.abs(expected).max())


@pytest.mark.parametrize("k", KS)
def test_max_at_k_of_a_million(k: int) -> None:
    rewards = np.sort(rewards_of(Variant.S))
    counted = Counted(rewards, k)
    (answer,) = estimate(rewards[None, :], k)
    assert answer.values[0] == pytest.approx(counted.rho, rel=0, abs=1e-9)
    if k < N:
        differences = counted.rho - counted.rho_without
        assert answer.standard_errors[0] == pytest.approx(np.sqrt((N - 1) / N * (differences @ differences)), rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "k"),
    [
        (Variant.PASSK_BOOTSTRAP, 16),
        (Variant.PASSK_FULL, 7),
        (Variant.PASSK_FULL, N // 2),
        (Variant.NAIVE_PARTITIONED, 8),
        (Variant.NAIVE_PARTITIONED_BASELINED, N // 2),
        (Variant.LOO_MINUS_ONE_PARTITIONED, 8),
        (Variant.GRPO, 1),
    ],
    ids=str,
)
def test_the_other_variants_stay_finite_and_say_something(variant: Variant, k: int) -> None:
    advantages: Any = transform(RewardGroups(rewards_of(variant), N), k, variant=variant).advantages
    assert np.isfinite(advantages).all()
    assert advantages.any()
