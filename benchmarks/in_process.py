"""The transform in this process, against sorting alone and against other implementations."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measurement import Call, Effort, Ratio, in_turns
from benchmarks.peers import CachedWeights, paper_sloo_minus_one
from benchmarks.table import Bar, Result
from pkpo_core import Variant, transform

PKPO_FAMILY = (
    Variant.SLOO_MINUS_ONE,
    Variant.S,
    Variant.SLOO,
    Variant.CENTERED,
    Variant.LOO,
    Variant.BINARY,
    Variant.TZSM,
)
K = 8
SHAPES = (
    (1024, 8, 1.0),
    (1024, 16, 1.15),
    (1024, 32, 1.5),
    (1024, 64, 1.5),
    (256, 256, 1.5),
    (64, 1024, 1.5),
    (64, 4096, 1.5),
    (1, 10**6, 1.5),
)
VERL_PYTHON = Path(os.environ.get("VERL_PYTHON", ".venv-verl/bin/python"))


def arrays(groups: int, n: int, seed: int = 0) -> list[NDArray[np.float64]]:
    """Some batches of continuous rewards: too many values for a branch predictor to learn, few enough bytes to stay in
    the second-level cache, where a batch is that was just parsed."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((groups, n)) for _ in range(4 if groups * n <= 2**15 else 2)]


def results(effort: Effort) -> Iterator[Result]:
    """The rows of the table that need no server."""
    for groups, n, limit in SHAPES:
        bar = Bar(f"transform in-process, float64, {groups} x {n}", "np.argsort(axis=1) of the same array", limit)
        yield Result(bar, against_argsort(arrays(groups, n), effort))
    yield _two_valued(effort)
    yield from _against_peers(effort)


def against_argsort(batches: list[NDArray[np.float64]], effort: Effort, **options: Any) -> Ratio:
    """`transform` over NumPy's argsort of the same arrays."""
    ours: list[Call] = [partial(transform, batch, options.get("k", K), **_without_k(options)) for batch in batches]
    floor: list[Call] = [partial(np.argsort, batch, axis=1) for batch in batches]
    size = batches[0].size
    calls = 40 if size <= 2**15 else 10 if size <= 2**18 else 2
    return in_turns(ours, floor, effort.of(60 if size <= 2**15 else 20), effort.of(calls))


def _without_k(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "k"}


def _two_valued(effort: Effort) -> Result:
    bar = Bar("0/1 rewards, any variant of the PKPO family, 1024 x 16", "np.argsort(axis=1) of the same array", 0.5)
    batches = [(batch > np.linspace(-1, 1, len(batch))[:, None]).astype(float) for batch in arrays(1024, 16)]
    ratios = {
        variant: against_argsort(batches, effort, variant=variant, k=16 if variant is Variant.TZSM else K)
        for variant in PKPO_FAMILY
    }
    worst = max(ratios, key=lambda variant: ratios[variant].median)
    least = min(ratio.median for ratio in ratios.values())
    return Result(bar, ratios[worst], f"the dearest, {worst.value}; the cheapest {least:.2f}")


def _against_peers(effort: Effort) -> Iterator[Result]:
    batches = arrays(1024, 16)
    expected = transform(batches[0], K).advantages
    np.testing.assert_allclose(np.stack([paper_sloo_minus_one(group, K) for group in batches[0]]), expected, atol=1e-9)
    cached = CachedWeights(16, K)
    np.testing.assert_allclose(cached(batches[0]), expected, atol=1e-12)

    ours: list[Call] = [partial(transform, batch, K) for batch in batches]
    few = 64
    listing: list[Call] = [partial(_group_by_group, paper_sloo_minus_one, batch[:few]) for batch in batches]
    of_listing = in_turns(listing, ours, effort.of(20), 3)
    bar = Bar("in-process, 1024 x 16", "the paper's listing, group by group", 2000, faster=True)
    yield Result(bar, _scaled(of_listing, 1024 / few))

    numpy_peer: list[Call] = [partial(cached, batch) for batch in batches]
    bar = Bar("in-process, 1024 x 16", "NumPy with cached weights", 3, faster=True)
    yield Result(bar, in_turns(numpy_peer, ours, effort.of(40), effort.of(20)))

    yield _against_verl(effort)


def _group_by_group(of_group: Callable[..., object], batch: NDArray[np.float64]) -> None:
    for group in batch:
        of_group(group, K)


def _scaled(ratio: Ratio, factor: float) -> Ratio:
    return Ratio(
        ratio.median * factor, ratio.low * factor, ratio.high * factor, ratio.ours * factor, ratio.floor, ratio.remark
    )


def _against_verl(effort: Effort) -> Result:
    bar = Bar("in-process, 1024 x 16, tzsm", "verl's grpo_passk, same groups", 100, faster=True)
    if not VERL_PYTHON.exists():
        return Result(bar, None, "verl is not installed; `make bench` installs it")
    measured = subprocess.run(
        [str(VERL_PYTHON), "-m", "benchmarks.verl_peer", str(effort.of(5, 1))],
        capture_output=True,
        text=True,
        check=False,
    )
    if measured.returncode:
        return Result(bar, None, measured.stderr.strip().splitlines()[-1])
    median, low, high, ours, floor = map(float, measured.stdout.split()[-5:])
    return Result(bar, Ratio(median, low, high, ours, floor), "both in one process of verl's environment")
