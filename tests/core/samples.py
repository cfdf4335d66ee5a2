"""What the tests of the mathematics share: rewards of every kind, the variants by what is true of them, and sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from pkpo_core import RewardGroups, Variant, transform

# With the compiler off the same code runs some hundred times slower, so that everything large shrinks: here, once.
JIT = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]

EXACT = 2e-14  # the largest error allowed, as a share of the group's largest advantage

SIZES = (*range(2, 17), 17, 31, 32, 33, 63, 64, 65, 100, 128, 257) if JIT else (2, 3, 4, 5, 8, 16, 17, 33, 65)

properties = settings(
    max_examples=100 if JIT else 20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

BLOCKWISE = {
    Variant.PASSK_FULL,
    Variant.NAIVE_PARTITIONED,
    Variant.NAIVE_PARTITIONED_BASELINED,
    Variant.LOO_MINUS_ONE_PARTITIONED,
}
ORDER_FREE = [v for v in Variant if v not in BLOCKWISE and v is not Variant.PASSK_BOOTSTRAP]
NOT_FROM_DIFFERENCES = {Variant.S, Variant.SLOO, Variant.BINARY, Variant.NAIVE_PARTITIONED}
ZERO_WHERE_EQUAL = [v for v in Variant if v not in NOT_FROM_DIFFERENCES]
IGNORES_K = {Variant.LOO, Variant.GRPO}

KINDS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "binary": lambda rng, n: (rng.random(n) < rng.random()).astype(float),
    "tied": lambda rng, n: rng.choice([-1.5, 0.1, 0.25, 7.0], n),
    "all_equal": lambda rng, n: np.full(n, rng.choice([0.0, 0.1, 1.0, -3.7])),
    "offset": lambda rng, n: 1e6 + 1e-3 * rng.normal(size=n),
    "tiny": lambda rng, n: 1e-300 * rng.normal(size=n),
    "last bits": lambda rng, n: 1.0 + rng.integers(0, 3 * n, n) * 2.0**-52,
}
BINARY_KINDS: dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]] = {
    "binary": KINDS["binary"],
    "all_equal": lambda rng, n: np.full(n, float(rng.integers(2))),
}


def kinds(variant: Variant) -> dict[str, Callable[[np.random.Generator, int], NDArray[np.float64]]]:
    return BINARY_KINDS if variant is Variant.BINARY else KINDS


def of_one_group(rewards: Any, k: int | None, variant: Variant, **options: Any) -> NDArray[Any]:
    """The advantages of a single group."""
    rewards = np.asarray(rewards)
    return transform(RewardGroups(rewards, len(rewards)), k, variant=variant, **options).advantages


def rewards_of(variant: Variant) -> st.SearchStrategy[float]:
    """Any reward the variant takes and whose differences a double can hold, most of them meant to cause trouble."""
    if variant is Variant.BINARY:
        return st.sampled_from([0.0, 1.0])
    return st.one_of(
        st.integers(-3, 3).map(float),
        st.sampled_from([0.0, -0.0, 0.1, 0.2, 0.3, 1e-250, -1e-250, 1e100, -1e100]),
        st.floats(-1, 1).filter(lambda x: x == 0 or abs(x) > 1e-250),
        st.floats(1e-250, 1e100),
        st.floats(-1e100, -1e-250),
        st.integers(0, 9).map(lambda i: 1e6 * (1 + i * 2.0**-52)),
    )


@st.composite
def groups_of(draw: st.DrawFn, variant: Variant, min_size: int = 2, max_size: int = 40) -> list[float]:
    return draw(st.lists(rewards_of(variant), min_size=min_size, max_size=max_size))


def bits(array: NDArray[Any]) -> bytes:
    """What two results share only if they agree in every bit."""
    return bytes(array.dtype.str, "ascii") + bytes(array.tobytes())


def names(variants: Sequence[Variant]) -> list[str]:
    return [variant.value for variant in variants]


THRESHOLDS = (2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129) if JIT else (2, 3, 15, 16, 17, 33, 65)


def ragged(variant: Variant, rng: np.random.Generator, sizes: Sequence[int]) -> tuple[RewardGroups, list[int]]:
    """Groups of these sizes, rewards of all kinds among them, and a legal k for each."""
    choices = list(kinds(variant).values())
    rewards = [choices[rng.integers(len(choices))](rng, size) for size in sizes]
    ks = [int(rng.choice(reference.legal_ks(variant.value, size) or [0])) for size in sizes]
    return RewardGroups(np.concatenate(rewards), np.array(sizes)), ks


def sizes_for(variant: Variant) -> list[int]:
    """THRESHOLDS, less the sizes for which the variant has no k."""
    return [size for size in THRESHOLDS if reference.legal_ks(variant.value, size)]


def digest() -> str:
    """What everything returns for one fixed batch, in 64 characters."""
    together = hashlib.sha256()
    for variant in Variant:
        # The same sizes with the compiler off.
        sizes = [n for n in (2, 3, 7, 15, 16, 17, 31, 32, 33) if reference.legal_ks(variant.value, n)]
        groups, ks = ragged(variant, np.random.default_rng(11), sizes)
        for rewards in (groups.rewards, groups.rewards.astype(np.float32)):
            answer = transform(RewardGroups(rewards, groups.sizes), ks, variant=variant, estimate_k=[1, 2, 5], seed=5)
            together.update(answer.advantages.tobytes())
            together.update(answer.group_statuses.tobytes())
            for estimated in answer.estimates:
                together.update(estimated.values.tobytes())
                together.update(estimated.standard_errors.tobytes())
    return together.hexdigest()
