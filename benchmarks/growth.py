"""How time grows: with groups, n, k, the shape of ragged batches, the size of messages and the number of clients.

A cliff is a batch that costs over three times as much a reward as the fast path, the default variant on groups of one
size and about as many samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks.in_process import K, arrays
from benchmarks.measurement import Effort, typical_seconds
from benchmarks.table import markdown, microseconds
from pkpo_core import RewardGroups, Variant, transform

PICTURES = Path("docs/performance")
CLIFF = 3.0
OF_PASSK_TRAINING = (Variant.PASSK_ANALYTIC, Variant.PASSK_FULL, Variant.PASSK_BOOTSTRAP)
BLOCKWISE = (
    Variant.NAIVE_PARTITIONED,
    Variant.NAIVE_PARTITIONED_BASELINED,
    Variant.LOO_MINUS_ONE_PARTITIONED,
)
Line = tuple[str, list[float], list[float]]


def report(effort: Effort) -> str:
    """Tables, and pictures beside the page."""
    parts = [*_by_size(effort), _by_variant(effort), _ragged(effort), _passk_training(effort)]
    return "\n\n".join(parts)


def _seconds(rewards: Any, k: Any, effort: Effort, **options: Any) -> float:
    size = rewards.rewards.size if isinstance(rewards, RewardGroups) else rewards.size
    times = 40 if size <= 2**17 else 7
    return typical_seconds([partial(transform, rewards, k, **options)], effort.of(times))


def _by_size(effort: Effort) -> Iterator[str]:
    largest = 3 if effort.quick else 6
    groups = [10**e for e in range(largest)]
    of_groups = [_seconds(arrays(number, 16)[0], K, effort) for number in groups]
    sizes = [2**e for e in range(1, 8 if effort.quick else 21)]
    total = 2**12 if effort.quick else 2**18
    batches = [arrays(max(1, total // n), n)[0] for n in sizes]
    of_sizes = [_seconds(batch, min(K, batch.shape[1]), effort) for batch in batches]
    sorting = [typical_seconds([partial(np.argsort, batch, axis=1)], effort.of(7)) for batch in batches]
    rewards = [batch.size for batch in batches]
    yield "Groups of 16, k = 8:\n\n" + markdown(
        ("groups", "us", "ns a reward"),
        [
            (f"{number:,}", microseconds(taken), f"{taken / number / 16 * 1e9:.1f}")
            for number, taken in zip(groups, of_groups, strict=True)
        ],
    )
    yield f"About {total:,} rewards in groups of n, k = 8:\n\n" + markdown(
        ("n", "ns a reward", "np.argsort, ns a reward"),
        [
            (f"{n:,}", f"{taken / size * 1e9:.1f}", f"{sort / size * 1e9:.1f}")
            for n, taken, sort, size in zip(sizes, of_sizes, sorting, rewards, strict=True)
        ],
    )
    _draw(
        "groups",
        "Groups of 16, k = 8",
        "groups",
        "microseconds",
        [("transform", [float(number) for number in groups], [taken * 1e6 for taken in of_groups])],
        effort,
    )
    per_reward = [
        [taken / size * 1e9 for taken, size in zip(side, rewards, strict=True)] for side in (of_sizes, sorting)
    ]
    x = [float(n) for n in sizes]
    lines = [("transform, default variant", x, per_reward[0]), ("np.argsort(axis=1)", x, per_reward[1])]
    _draw("n", f"{total:,} rewards in groups of n, k = 8", "n", "nanoseconds a reward", lines, effort)
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= 256]
    batch = arrays(16 if effort.quick else 256, 256)[0]
    variants = (Variant.SLOO_MINUS_ONE, Variant.S, Variant.SLOO, Variant.CENTERED)
    of_k: list[Line] = []
    for variant in variants:
        legal = [k for k in ks if k < 256 or variant in (Variant.SLOO_MINUS_ONE, Variant.S)]
        taken = [_seconds(batch, k, effort, variant=variant) / batch.size * 1e9 for k in legal]
        of_k.append((variant.value, [float(k) for k in legal], taken))
    _draw("k", f"{batch.shape[0]} groups of 256", "k", "nanoseconds a reward", of_k, effort)


def _by_variant(effort: Effort) -> str:
    kinds = ("continuous", "0/1", "five levels", "all equal", "last bits", "float32")
    rows: list[tuple[str, ...]] = []
    for groups, n in ((1024, 16), (256, 256)):
        batch = arrays(8 if effort.quick else groups, n)[0]
        some = {
            "continuous": batch,
            "0/1": (batch > 0).astype(float),
            "five levels": np.clip(np.round(batch), -2, 2),
            "all equal": np.ones_like(batch),
            "last bits": 1 + batch * 1e-14,
            "float32": batch.astype(np.float32),
        }
        base = _seconds(batch, K, effort)
        for variant in Variant:
            cells: list[str] = []
            for kind in kinds:
                if variant is Variant.BINARY and kind not in ("0/1", "all equal"):
                    cells.append("")
                    continue
                k = n if variant is Variant.TZSM else K
                cells.append(_flagged(_seconds(some[kind], k, effort, variant=variant) / base))
            rows.append((f"{groups} x {n}", f"`{variant.name}`", *cells))
    return (
        "Time over that of the default variant on continuous rewards, k = 8 (`!` marks what is over 3):\n\n"
        + markdown(("batch", "variant", *kinds), rows)
    )


def _ragged(effort: Effort) -> str:
    rng = np.random.default_rng(0)
    number = 16 if effort.quick else 1024
    rows: list[tuple[str, ...]] = []
    every: list[tuple[str, NDArray[np.int64], bool]] = [
        ("8 to 24", rng.integers(8, 25, number), False),
        ("all 16 but one", np.array([16] * (number - 1) + [15]), False),
        ("8 to 24, every group its own k", rng.integers(8, 25, number), True),
        ("16, every group its own k", np.full(number, 16), True),
        ("4 to 64", rng.integers(4, 65, number), False),
        ("4 to 1000, evenly in the logarithm", np.exp(rng.uniform(np.log(4), np.log(1000), number)).astype(int), False),
        ("every size from 33 to 132 once", rng.permutation(np.arange(33, 133)), False),
        ("every size from 200 to 600 once", rng.permutation(np.arange(200, 601)), False),
        ("257 to 300", rng.integers(257, 300, max(1, number // 4)), False),
    ]
    for name, sizes, own_k in every:
        total = int(sizes.sum())
        values = rng.standard_normal(total)
        k = rng.integers(1, sizes + 1) if own_k else min(4, int(sizes.min()))
        taken = _seconds(RewardGroups(values, sizes), k, effort) / total
        two_valued = _seconds(RewardGroups((values > 0).astype(float), sizes), k, effort) / total
        like = _like(sizes)
        base = _seconds(like, 4, effort) / like.size
        rows.append(
            (name, f"{taken * 1e9:.1f}", _flagged(taken / base), f"{two_valued * 1e9:.1f}", _flagged(two_valued / base))
        )
    return (
        "Ragged batches, against the default variant on equal groups of the size a sample is in on average:\n\n"
        + markdown(("sizes", "ns a reward", "over the fast path", "0/1: ns a reward", "over the fast path"), rows)
    )


def _like(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Continuous rewards, as many, in equal groups of the size of the group that a sample is in on average."""
    n = max(4, round(float(np.sum(sizes.astype(float) ** 2) / np.sum(sizes))))
    return arrays(max(1, int(sizes.sum()) // n), n)[0]


def _passk_training(effort: Effort) -> str:
    total = 2**10 if effort.quick else 2**14
    rows: list[tuple[str, ...]] = []
    lines: dict[Variant, Line] = {variant: (variant.value, [], []) for variant in OF_PASSK_TRAINING}
    for n in (16, 64, 256, 1024):
        batch = arrays(total // n, n)[0]
        for k in sorted({2, 4, n // 8, n // 4, n // 2, 3 * n // 4, n - 1}):
            taken = [_seconds(batch, k, effort, variant=variant) / batch.size * 1e9 for variant in OF_PASSK_TRAINING]
            rows.append((str(n), str(k), *(f"{each:.1f}" for each in taken)))
            if n == 256:
                for variant, each in zip(OF_PASSK_TRAINING, taken, strict=True):
                    lines[variant][1].append(k)
                    lines[variant][2].append(each)
    _draw("passk_training", "Pass@k Training, groups of 256", "k", "nanoseconds a reward", [*lines.values()], effort)
    header = ("n", "k", *(f"`{variant.name}`" for variant in OF_PASSK_TRAINING))
    return "The variants of Pass@k Training, ns a reward:\n\n" + markdown(header, rows)


def _flagged(ratio: float) -> str:
    return f"{ratio:.2f}" + (" !" if ratio > CLIFF else "")


def _draw(name: str, title: str, x: str, y: str, lines: Sequence[Line], effort: Effort) -> None:
    """A picture on logarithmic axes; the same bytes for the same figures."""
    with plt.rc_context({"svg.hashsalt": "pkpo", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
        for label, across, up in lines:
            axes.plot(across, up, marker="o", markersize=3, label=label)
        axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
        axes.grid(alpha=0.25, which="both")
        if len(lines) > 1:
            axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    if not effort.quick:
        PICTURES.mkdir(exist_ok=True)
        (PICTURES / f"{name}.svg").write_bytes(buffer.getvalue())
