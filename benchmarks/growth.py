"""How time grows: with groups, n, k, the shape of ragged batches, the size of messages and the number of clients.

A cliff is a batch that costs over three times as much a reward as the fast path, the default variant on groups of one
size and about as many samples.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks import echo
from benchmarks.in_process import K, arrays
from benchmarks.measurement import Effort, typical_seconds
from benchmarks.processes import echo_server, pkpo_server
from benchmarks.served import TRANSFORM, request_of
from benchmarks.servers import under_load
from benchmarks.table import markdown, microseconds
from pkpo_client import Client
from pkpo_client.channel import Endpoint
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
    parts = [
        _by_groups(effort),
        _by_n(effort),
        _by_k(effort),
        _by_variant(effort),
        _ragged(effort),
        _passk_training(effort),
        _by_message(effort),
        _by_clients(effort),
    ]
    return "\n\n".join(parts)


def _seconds(rewards: NDArray[Any], k: Any, effort: Effort, **options: Any) -> float:
    times = 40 if rewards.size <= 2**17 else 7
    return typical_seconds([partial(transform, rewards, k, **options)], effort.of(times))


def _by_groups(effort: Effort) -> str:
    groups = [10**e for e in range(3 if effort.quick else 6)]
    taken = [_seconds(arrays(number, 16)[0], K, effort) for number in groups]
    rows = [
        (f"{number:,}", microseconds(each), f"{each / number / 16 * 1e9:.1f}")
        for number, each in zip(groups, taken, strict=True)
    ]
    line = ("transform", [float(number) for number in groups], [each * 1e6 for each in taken])
    return (
        "Groups of 16, k = 8:\n\n"
        + markdown(("groups", "us", "ns a reward"), rows)
        + _drawn("groups", "Groups of 16, k = 8", "groups", "microseconds", [line], effort)
    )


def _by_n(effort: Effort) -> str:
    total = 2**12 if effort.quick else 2**18
    rows: list[tuple[str, ...]] = []
    lines: tuple[Line, Line] = (("transform, default variant", [], []), ("np.argsort(axis=1)", [], []))
    for n in [2**e for e in range(1, 8 if effort.quick else 21)]:
        batch = arrays(max(1, total // n), n)[0]
        ours = _seconds(batch, min(K, n), effort) / batch.size * 1e9
        sorting = typical_seconds([partial(np.argsort, batch, axis=1)], effort.of(7)) / batch.size * 1e9
        for line, each in zip(lines, (ours, sorting), strict=True):
            line[1].append(float(n))
            line[2].append(each)
        rows.append((f"{n:,}", f"{ours:.1f}", f"{sorting:.1f}"))
    title = f"{total:,} rewards in groups of n, k = 8"
    return (
        f"About {title}:\n\n"
        + markdown(("n", "ns a reward", "np.argsort, ns a reward"), rows)
        + _drawn("n", title, "n", "nanoseconds a reward", lines, effort)
    )


def _by_k(effort: Effort) -> str:
    batch = arrays(16 if effort.quick else 256, 256)[0]
    variants = (Variant.SLOO_MINUS_ONE, Variant.S, Variant.SLOO, Variant.CENTERED)
    lines: dict[Variant, Line] = {variant: (variant.value, [], []) for variant in variants}
    rows: list[tuple[str, ...]] = []
    for k in (1, 2, 4, 8, 16, 32, 64, 128, 255):
        taken = [_seconds(batch, k, effort, variant=variant) / batch.size * 1e9 for variant in variants]
        for variant, each in zip(variants, taken, strict=True):
            lines[variant][1].append(float(k))
            lines[variant][2].append(each)
        rows.append((str(k), *(f"{each:.1f}" for each in taken)))
    title = f"{batch.shape[0]} groups of 256"
    return (
        f"{title}, ns a reward:\n\n"
        + markdown(("k", *(f"`{variant.name}`" for variant in variants)), rows)
        + _drawn("k", title, "k", "nanoseconds a reward", [*lines.values()], effort)
    )


def _by_variant(effort: Effort) -> str:
    kinds = ("continuous", "0/1", "five levels", "all equal", "sums", "last bits", "float32")
    rows: list[tuple[str, ...]] = []
    for groups, n in ((1024, 16), (256, 256)):
        batch = arrays(8 if effort.quick else groups, n)[0]
        some = {
            "continuous": batch,
            "0/1": (batch > 0).astype(float),
            "five levels": np.clip(np.round(batch), -2, 2),
            "all equal": np.ones_like(batch),
            "sums": _sums(batch.shape),
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
        sums = _sums((total,))
        k = rng.integers(1, sizes + 1) if own_k else min(4, int(sizes.min()))
        taken = _ragged_seconds(values, sizes, k, effort) / total
        two_valued = _ragged_seconds((values > 0).astype(float), sizes, k, effort) / total
        summed = _ragged_seconds(sums, sizes, k, effort) / total
        like = _like(sizes)
        base = _seconds(like, 4, effort) / like.size
        ratios = [_flagged(each / base) for each in (taken, two_valued, summed)]
        rows.append((name, f"{taken * 1e9:.1f}", *ratios))
    return (
        "Ragged batches, against the default variant on equal groups of the size a sample is in on average:\n\n"
        + markdown(("sizes", "ns a reward", "over the fast path", "0/1", "sums"), rows)
        + _spread(effort)
    )


def _sums(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Rewards as they are often made: parts that were earned, added in the order in which they were."""
    rng = np.random.default_rng(2)
    earned = rng.random((5, *shape)) < 0.5
    parts = rng.permuted(np.broadcast_to(np.array([0.1, 0.2, 0.3, 0.15, 0.25]), (*shape, 5)), axis=-1)
    total: NDArray[np.float64] = sum((earned[i] * parts[..., i] for i in range(5)), np.zeros(shape))
    return total


def _spread(effort: Effort) -> str:
    rng = np.random.default_rng(1)
    lines: tuple[Line, Line] = (("continuous", [], []), ("0/1", [], []))
    for spread in (1, 2, 4, 8, 16, 32, 64):
        exponents = rng.uniform(-0.5, 0.5, 16 if effort.quick else 1024) * np.log(spread)
        sizes = np.round(32 * np.exp(exponents)).astype(np.int64)
        values = rng.standard_normal(int(sizes.sum()))
        for line, rewards in zip(lines, (values, (values > 0).astype(float)), strict=True):
            line[1].append(float(spread))
            line[2].append(_ragged_seconds(rewards, sizes, 4, effort) / values.size * 1e9)
    title = "1024 groups of sizes around 32"
    return _drawn("ragged", title, "largest size over smallest", "nanoseconds a reward", lines, effort)


def _ragged_seconds(rewards: NDArray[np.float64], sizes: NDArray[np.int64], k: Any, effort: Effort) -> float:
    times = effort.of(40 if rewards.size <= 2**17 else 7)
    return typical_seconds([lambda: transform(RewardGroups(rewards, sizes), k)], times)


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
    header = ("n", "k", *(f"`{variant.name}`" for variant in OF_PASSK_TRAINING))
    title = "Pass@k Training, groups of 256"
    return (
        "The variants of Pass@k Training, ns a reward:\n\n"
        + markdown(header, rows)
        + _drawn("passk_training", title, "k", "nanoseconds a reward", [*lines.values()], effort)
    )


def _by_message(effort: Effort) -> str:
    groups = [1, 16] if effort.quick else [1, 16, 256, 1024, 2048, 4096, 16384, 65536]
    rows: list[tuple[str, ...]] = []
    lines: tuple[Line, Line] = (("transform", [], []), ("echo", [], []))
    with ExitStack() as stack:
        client = stack.enter_context(Client(stack.enter_context(pkpo_server()).address))
        channel = stack.enter_context(Endpoint(stack.enter_context(echo_server(echo.OURS)).address).channel())
        unary: Any = channel.unary_unary(echo.UNARY)
        for number in groups:
            batch = arrays(number, 16)[0]
            request = request_of(batch)
            calls = effort.of(400 if number < 4096 else 40)
            ours = typical_seconds([partial(client.transform, batch, K)], calls)
            echoed = typical_seconds([partial(unary, request, timeout=60.0)], calls)
            for line, taken in zip(lines, (ours, echoed), strict=True):
                line[1].append(float(len(request)))
                line[2].append(taken * 1e6)
            rows.append(
                (
                    f"{number} x 16",
                    f"{len(request):,}",
                    microseconds(ours),
                    microseconds(echoed),
                    f"{ours / echoed:.2f}",
                )
            )
    header = ("batch", "bytes", "transform, us", "echo, us", "ratio")
    return (
        "One client's unary call, by the size of its request:\n\n"
        + markdown(header, rows)
        + _drawn("messages", "One unary call", "bytes of the request", "microseconds", lines, effort)
    )


def _by_clients(effort: Effort) -> str:
    rows: list[tuple[str, ...]] = []
    lines: tuple[Line, Line] = (("transform", [], []), ("echo", [], []))
    with pkpo_server() as server, echo_server(echo.OURS) as echoing:
        for clients in [1, 4] if effort.quick else [1, 2, 4, 8, 16, 32, 64]:
            calls = effort.of(max(20, 2400 // clients), 2)
            ours = under_load(server, clients, 64, 16, "unary", calls, TRANSFORM)
            echoed = under_load(echoing, clients, 64, 16, "unary", calls)
            for line, load in zip(lines, (ours, echoed), strict=True):
                line[1].append(float(clients))
                line[2].append(load.rate)
            latencies = [microseconds(each) for each in (ours.p50, ours.p99)]
            rates = [f"{load.rate:.0f}" for load in (ours, echoed)]
            rows.append((str(clients), *latencies, *rates, f"{echoed.rate / ours.rate:.2f}"))
    header = ("clients", "p50, us", "p99, us", "calls/s", "echo's calls/s", "ratio")
    return (
        "Unary calls of 64 x 16, by the number of clients:\n\n"
        + markdown(header, rows)
        + _drawn("clients", "Unary calls of 64 x 16", "clients", "calls a second", lines, effort)
    )


def _flagged(ratio: float) -> str:
    return f"{ratio:.2f}" + (" !" if ratio > CLIFF else "")


def _drawn(name: str, title: str, x: str, y: str, lines: Sequence[Line], effort: Effort) -> str:
    """Where the page shows a picture on logarithmic axes, which is written beside it."""
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
    return f"\n\n![{title}: {y} against {x}]({PICTURES.name}/{name}.svg)"
