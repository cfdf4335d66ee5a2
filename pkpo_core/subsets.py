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

import numpy as np
from numba import types
from numpy.typing import NDArray

from pkpo_core.arrays import Int64s
from pkpo_core.compilation import kernel, reads, writes

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_DRAWS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Numbering:
    """What the draws of a batch's groups depend on.

    Args:
        seed: 0 .. 2^64 - 1.
        first_group: the number of the first group; numbers wrap around at 2^64.
    """

    seed: int
    first_group: int

    def key(self, group: int) -> int:
        """The key of the draws of a batch's group, counted from 0."""
        return _mix(_mix(self.seed) + self.first_group + group & _WORD)


def chosen_samples(n: int, k: int, key: int, checkpoint: Callable[[], None]) -> Int64s:
    """The chosen samples of each of a group's distinct subsets, shape (m, q).

    Args:
        n: group size, at most 2^24.
        k: 1 <= k <= n.
        key: of the group's draws, from `Numbering`.
        checkpoint: called between slices of the work.
    """
    q = min(k, n - k)
    if q == 0:
        return np.empty((1, 0), np.int64)
    if q == 1:
        return np.arange(n).reshape(n, 1)
    signatures = _mixed(np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)).view(np.int64)
    chosen = np.empty((n, q), np.int64)
    seen = np.zeros(1 << (2 * n).bit_length(), np.int64)
    occupied = np.zeros(seen.size, np.bool_)
    attempts = max(1, _DRAWS_AT_ONCE // q)
    bounds = np.arange(n - q + 1, n + 1, dtype=np.uint64)
    found = 0
    first_draw = 1
    while found < n:
        checkpoint()
        count = min(attempts, n - found)
        draws = np.arange(count * q, dtype=np.uint64) + np.uint64(first_draw)
        draws = _mixed(draws * np.uint64(_GOLDEN) + np.uint64(key)).reshape(count, q)
        picks = ((draws >> np.uint64(24)) * bounds >> np.uint64(40)).view(np.int64)
        found = _accept(picks.reshape(-1), n, q, signatures, seen, occupied, found, chosen.reshape(-1))
        first_draw += count * q
    return chosen


@kernel(
    types.int64(
        reads(types.int64),
        types.int64,
        types.int64,
        reads(types.int64),
        writes(types.int64),
        writes(types.bool_),
        types.int64,
        writes(types.int64),
    )
)
def _accept(
    picks: Int64s,
    n: int,
    q: int,
    signatures: Int64s,
    seen: Int64s,
    occupied: NDArray[np.bool_],
    found: int,
    chosen: Int64s,
) -> int:
    """Writes each attempt's choice whose signature is new behind the `found` first, and returns how many there are."""
    chosen_in = np.zeros(n, np.int64)
    for attempt in range(picks.size // q):
        signature = 0
        for p in range(q):
            sample = picks[attempt * q + p]
            if chosen_in[sample] == attempt + 1:
                sample = n - q + p
            chosen_in[sample] = attempt + 1
            chosen[found * q + p] = sample
            signature ^= signatures[sample]
        slot = signature & (seen.size - 1)
        while occupied[slot] and seen[slot] != signature:
            slot = (slot + 1) & (seen.size - 1)
        if not occupied[slot]:
            occupied[slot] = True
            seen[slot] = signature
            found += 1
    return found


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
    return z ^ z >> 31


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ z >> np.uint64(31)
    return mixed
