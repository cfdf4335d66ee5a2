"""The random k-subsets of PASSK_BOOTSTRAP, from a generator small enough to write out, so that every path and every
language draws the same ones.

All numbers are unsigned 64-bit integers and wrap around.

    G = 0x9E3779B97F4A7C15
    mix(z):  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31;  return z
    key      = mix(mix(seed) + number of the group)            the group's own number: first_group + i
    draw(t)  = mix(key + (t + 1) G)                             t = 0, 1, 2, ...  (SplitMix64)

A group of n has m = min(n, C(n, k)) distinct subsets. A subset is named by its q = min(k, n - k) chosen samples: by the
samples in it where 2 k <= n, by those left out where 2 k > n.

- Where q = 0 there is one subset: all samples. Where q = 1 there are n: subset b chooses sample b.
- Else attempts a = 0, 1, 2, ... are made until m subsets are found. Attempt a chooses q samples by Floyd's method: for
  p = 0 .. q - 1 let j = n - q + p and pick = ((draw(a q + p) >> 24) (j + 1)) >> 40; choose pick, or j where pick is
  chosen already. The signature of a choice is the exclusive or of mix((i + 1) G) over its samples i; an attempt whose
  signature was seen before is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numba import types
from numpy.typing import NDArray

from pkpo_core.arrays import Int64s, Positions
from pkpo_core.compilation import inlined, kernel, reads, writes

_WORD = (1 << 64) - 1
_ONE = np.uint64(1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_DRAWS_AT_ONCE = np.uint64(1 << 18)
_u8 = types.uint64
_Words = TypeVar("_Words", np.uint64, NDArray[np.uint64])


@dataclass(frozen=True, slots=True)
class Numbering:
    """What the draws of a batch's groups depend on.

    Args:
        seed: 0 .. 2^64 - 1.
        first_group: the number of the first group; numbers wrap around at 2^64.
    """

    seed: int
    first_group: int

    def keys(self, groups: Int64s) -> NDArray[np.uint64]:
        """The keys of the draws of a batch's groups, counted from 0."""
        with np.errstate(over="ignore"):
            start = _mixed_words(np.uint64(self.seed)) + np.uint64(self.first_group & _WORD)
            return _mixed_words(start + groups.view(np.uint64))


@dataclass(frozen=True, slots=True)
class Subsets:
    """The distinct random subsets of some groups.

    Attributes:
        count: of each group's subsets.
        size: how many samples name each subset of a group.
        starts: where each group's subsets begin in `samples`.
        samples: indices counted from the group's start, subset after subset.
    """

    count: Positions
    size: Positions
    starts: Positions
    samples: Positions


def drawn_subsets(n: Int64s, k: Int64s, keys: NDArray[np.uint64], checkpoint: Callable[[], None]) -> Subsets:
    """Draws the subsets of some groups.

    Args:
        n: their sizes, at most 2^24.
        k: 1 <= k <= n.
        keys: of their draws, from `Numbering`.
        checkpoint: called between slices of the work.
    """
    sizes = n.view(np.uint64)
    q = np.minimum(k, n - k).view(np.uint64)
    count = np.where(q == 0, _ONE, sizes)
    ends = np.cumsum(count * q)
    samples = np.empty(int(ends[-1]), np.uint64)
    subsets = Subsets(count, q, ends - count * q, samples)
    largest = int(n.max())
    slots = 1 << (2 * largest).bit_length()
    progress = np.zeros(4, np.uint64)
    chosen_by, signed_by = np.zeros(largest, np.uint64), np.zeros(slots, np.uint64)
    signatures = np.empty(slots, np.uint64)
    done = False
    with np.errstate(over="ignore"):
        names = _mixed_words(np.arange(1, largest + 1, dtype=np.uint64) * _GOLDEN)
        table = (names, chosen_by, signatures, signed_by)
        while not done:
            checkpoint()
            done = _draw(sizes, q, keys, subsets.starts, _DRAWS_AT_ONCE, progress, *table, samples)
    return subsets


def _mixed_words(z: _Words) -> _Words:
    z = (z ^ z >> np.uint64(30)) * _FIRST_FACTOR
    z = (z ^ z >> np.uint64(27)) * _SECOND_FACTOR
    mixed: _Words = z ^ z >> np.uint64(31)
    return mixed


_mixed = inlined(_mixed_words)


_groups = (reads(_u8), reads(_u8), reads(_u8), reads(_u8))
_tables = (reads(_u8), writes(_u8), writes(_u8), writes(_u8))


@kernel(types.boolean(*_groups, _u8, writes(_u8), *_tables, writes(_u8)))
def _draw(
    sizes: Positions,
    q: Positions,
    keys: NDArray[np.uint64],
    starts: Positions,
    most_draws: np.uint64,
    progress: Positions,
    names: NDArray[np.uint64],
    chosen_by: Positions,
    signatures: NDArray[np.uint64],
    signed_by: Positions,
    samples: Positions,
) -> bool:
    """Goes on for about so many draws, and says whether all groups have their subsets.

    `progress` holds the group at work, its next attempt, how many subsets it has, and how many attempts all groups had.
    A sample is chosen where `chosen_by` has the number of the attempt; `names` has what it adds to the signature. A
    place in the table of `signatures` is taken where `signed_by` has the number of the group, counted from 1.
    """
    group, attempt, found, attempts = progress[0], progress[1], progress[2], progress[3]
    draws = np.uint64(0)
    while group < sizes.size and draws < most_draws:
        n, size, start = sizes[group], q[group], starts[group]
        if size <= 1:
            for sample in range(n if size == 1 else np.uint64(0)):
                samples[start + sample] = sample
            group, draws = group + _ONE, draws + n
            continue
        slots = _ONE
        while slots <= n + n:
            slots += slots
        while found < n and draws < most_draws:
            attempts += _ONE
            signature = np.uint64(0)
            for p in range(size):
                j = n - size + p
                draw = _mixed(keys[group] + (attempt * size + p + _ONE) * _GOLDEN)
                sample = (draw >> np.uint64(24)) * (j + _ONE) >> np.uint64(40)
                sample = j if chosen_by[sample] == attempts else sample
                chosen_by[sample] = attempts
                samples[start + found * size + p] = sample
                signature ^= names[sample]
            slot = signature & (slots - _ONE)
            while signed_by[slot] == group + _ONE and signatures[slot] != signature:
                slot = (slot + _ONE) & (slots - _ONE)
            if signed_by[slot] != group + _ONE:
                signed_by[slot] = group + _ONE
                signatures[slot] = signature
                found += _ONE
            attempt += _ONE
            draws += size
        if found == n:
            group, attempt, found = group + _ONE, np.uint64(0), np.uint64(0)
    progress[0], progress[1], progress[2], progress[3] = group, attempt, found, attempts
    return bool(group == sizes.size)
