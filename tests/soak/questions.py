"""What callers ask, with the answer that they must get.

The answers are those of `LocalClient`, to the bit, and those to small questions are compared with exact arithmetic
before anyone is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reference
from pkpo_client import Client, InvalidArgument, LocalClient, MaxAtK, TransformResult, schedules
from pkpo_core.weights import CACHE_BYTES

VARIANTS = (
    "sloo_minus_one", "s", "sloo", "centered", "loo", "binary", "tzsm", "passk_analytic", "passk_bootstrap",
    "passk_full", "naive_partitioned", "naive_partitioned_baselined", "loo_minus_one_partitioned", "grpo",
)  # fmt: skip
WITHOUT_K = ("loo", "grpo", "tzsm")
# Rewards in all, and in a group at most.
SMALL, MIDDLE, LARGE = (32, 12), (20_000, 512), (400_000, 300_000)
# How many of each a pool has: large ones are few, for their memory is the callers' own.
SIZES = (SMALL,) * 16 + (MIDDLE,) * 10 + (LARGE,) * 2
# How often each is asked, in the order of the sizes.
WEIGHTS = (4.0,) * 16 + (2.0,) * 10 + (0.4,) * 2
# Roundings of a double, and of a float32.
TOLERANCES = {"float64": 1e-12, "float32": 3e-7}

_LARGE_GROUP = 2**18

_k_at = schedules.from_string("8@0,4@200,2@400,1@600")


@dataclass(frozen=True, eq=False)
class Question:
    """A call, and what it must give.

    Attributes:
        method: of a client: "transform_detailed" or "estimate".
        arguments: its keyword arguments.
        answer: what `LocalClient` gives.
        exact: whether that was compared with exact arithmetic.
    """

    method: str
    arguments: dict[str, Any]
    answer: Any
    exact: bool = False

    def is_answered_by(self, given: Any) -> bool:
        """Whether these are the same bits, and of the same kind."""
        return same_bits(given, self.answer)


class Pool:
    """Questions to choose from; now and then one makes room for another.

    Args:
        rng: everything is drawn from it.
        sizes: one of each of these; the default is what an hour is asked.
    """

    def __init__(self, rng: Random, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
        self._rng = rng
        self._here = LocalClient()
        self._sizes = sizes
        self._questions = [drawn(rng, self._here, size) for size in sizes]
        self._weights = [dict(zip(SIZES, WEIGHTS, strict=True))[size] for size in sizes]
        self._asked = 0

    def question(self) -> Question:
        """One of them."""
        self._asked += 1
        if self._asked % 50 == 0:
            place = self._rng.randrange(len(self._sizes))
            self._questions[place] = drawn(self._rng, self._here, self._sizes[place])
        return self._rng.choices(self._questions, self._weights)[0]

    def transforms(self, number: int) -> list[Question]:
        """So many of them that a stream takes."""
        found: list[Question] = []
        while len(found) < number:
            found += [question for question in (self.question(),) if question.method == "transform_detailed"]
        return found


def fill_caches(client: Client | LocalClient) -> None:
    """Asks for so many weights that whoever computes keeps as many from now on as it ever will."""
    rewards = np.random.default_rng(1).random((1, _LARGE_GROUP))
    for k in range(2, 2 + int(1.1 * CACHE_BYTES / (8 * _LARGE_GROUP))):
        client.transform(rewards, k)


def drawn(rng: Random, here: LocalClient, size: tuple[int, int]) -> Question:
    """A question of about this size.

    Raises:
        AssertionError: what this process computes is not what exact arithmetic says.
    """
    while True:
        method = "estimate" if rng.random() < 0.2 else "transform_detailed"
        arguments = _arguments(rng, size, method)
        try:
            answer = getattr(here, method)(**arguments)
        except InvalidArgument:
            continue  # float32 that would overflow, say
        exact = size == SMALL and method == "transform_detailed" and "mask" not in arguments
        if exact:
            assert_exact(arguments, answer)
        return Question(method, arguments, answer, exact)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two answers are the same, NaN and the signs of zeros included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, TransformResult):
        parts = ("advantages", "group_statuses", "estimates")
        return all(same_bits(getattr(one, part), getattr(other, part)) for part in parts)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    if isinstance(one, MaxAtK):
        values = same_bits(one.values, other.values)
        return one.k == other.k and values and same_bits(one.standard_errors, other.standard_errors)
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def assert_exact(arguments: dict[str, Any], answer: TransformResult[Any]) -> None:
    """Raises AssertionError where an answer is not what exact arithmetic says."""
    rewards, variant, scale = arguments["rewards"], arguments["variant"], arguments["scale"]
    if rewards.ndim == 2:
        places = [np.s_[i] for i in range(len(rewards))]
    else:
        places = [np.flatnonzero(arguments["group_ids"] == each) for each in answer.group_ids]
    for i, place in enumerate(places):
        group, measured = rewards[place].tolist(), answer.advantages[place].tolist()
        k = len(group) if variant in WITHOUT_K else _k_of(arguments["k"], i)
        legal = 1 if variant in ("loo", "grpo") else reference.clamped(variant, len(group), k)
        if legal is None or (len(group) == 1 and variant in ("loo", "grpo")):
            assert not any(measured), (arguments, measured)
            continue
        more = {}
        if variant == "passk_bootstrap":
            more["subsets"] = reference.bootstrap_subsets(len(group), legal, arguments["seed"], i)
        error = reference.error(variant, group, legal, measured, scale=scale, **more)
        assert error <= TOLERANCES[rewards.dtype.name], (arguments, measured, error)


def _k_of(k: Any, group: int) -> int:
    return int(k if np.isscalar(k) else k[group])


def _arguments(rng: Random, size: tuple[int, int], method: str) -> dict[str, Any]:
    numbers = np.random.default_rng(rng.getrandbits(32))
    variant = rng.choice(VARIANTS)
    most, largest = size
    n = 2 + int((largest - 2) * rng.random() ** 3)
    if variant == "passk_bootstrap":
        n = min(n, 256)
    groups = max(1, int(rng.uniform(0.25, 1.0) * most) // n)
    arguments: dict[str, Any] = {}
    if rng.random() < 0.6:
        rewards = _rewards(rng, numbers, (groups, n), binary=variant == "binary")
    else:
        ids = numbers.permutation(np.repeat(np.arange(groups), numbers.integers(1, n + 1, groups)))
        rewards = _rewards(rng, numbers, ids.shape, binary=variant == "binary")
        # Names take more memory than rewards do.
        named = size != LARGE and rng.random() < 0.3
        arguments["group_ids"] = np.array([f"prompt {each}" for each in ids]) if named else ids
        groups = len(np.unique(ids))
    if rng.random() < 0.15:
        arguments["mask"] = numbers.random(rewards.shape) < 0.9
    if rng.random() < 0.3:
        rewards = rewards.astype(np.float32)
    arguments["rewards"] = rewards
    if method == "estimate":
        return {**arguments, "k": [1, 2, 4, 8][: rng.randint(1, 4)]}
    if variant not in WITHOUT_K:
        most_k = min(n, 64) if variant == "passk_bootstrap" else n
        one_each = rng.random() < 0.2 and "mask" not in arguments
        ks = numbers.integers(1, most_k + 1, groups)
        arguments["k"] = ks if one_each else _k_at(rng.randrange(800)) if rng.random() < 0.5 else int(ks[0])
    return {
        **arguments,
        "variant": variant,
        "scale": rng.choice(("sum", "mean")),
        "k_policy": "clamp",
        "seed": rng.randrange(2**32),
        "estimate_k": rng.choice(((), (), (1, 4), (1, 2, 4, 8, 16))),
    }


def _rewards(rng: Random, numbers: np.random.Generator, shape: tuple[int, ...], binary: bool) -> NDArray[np.float64]:
    made: NDArray[np.float64]
    kind = 0 if binary else rng.randrange(4)
    if kind == 0:
        made = (numbers.random(shape) < rng.random()).astype(float)
    elif kind == 1:
        made = numbers.standard_normal(shape)
    elif kind == 2:
        made = numbers.integers(0, 6, shape) / 5.0
    else:
        made = 1e6 + 1e-3 * numbers.random(shape)
    return made
