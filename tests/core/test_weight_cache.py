"""The weight cache holds a bounded number of bytes, and what was used last."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pkpo_core.variants import Scale
from pkpo_core.weights import GapForm, _WeightCache

BYTES = 800


class Made:
    """Forms of 800 bytes, and which were made."""

    def __init__(self, cache: _WeightCache) -> None:
        self._cache = cache
        self.made: list[int] = []

    def get(self, k: int, size: int = BYTES) -> GapForm:
        return self._cache.get(("form", 1, k, Scale.SUM), self._make(k, size))

    def _make(self, k: int, size: int) -> Callable[[], GapForm]:
        def make() -> GapForm:
            self.made.append(k)
            return GapForm(np.zeros(1), np.zeros(1, np.bool_), np.zeros(0), np.zeros(size // 8))

        return make


def test_what_is_kept_is_not_made_again() -> None:
    forms = Made(_WeightCache(3 * BYTES))
    assert forms.get(1) is forms.get(1)
    assert forms.made == [1]


def test_the_least_recently_used_is_dropped_beyond_the_bytes() -> None:
    forms = Made(_WeightCache(3 * BYTES))
    for k in (1, 2, 3, 1, 4):  # 2 is the one not used for longest
        forms.get(k)
    for k in (1, 3, 4):
        forms.get(k)
    assert forms.made == [1, 2, 3, 4]
    forms.get(2)
    assert forms.made == [1, 2, 3, 4, 2]


def test_weights_larger_than_the_cache_are_kept_until_the_next() -> None:
    forms = Made(_WeightCache(BYTES))
    large = forms.get(1, 10 * BYTES)
    assert forms.get(1) is large
    forms.get(2)
    assert forms.get(1, 10 * BYTES) is not large
