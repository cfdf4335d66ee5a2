"""PKPO's figure 4, with more variants and every k: the variance of each variant's gradient at theta = 1."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.figures import toy
from examples.figures.gradients import UNBIASED, WITHOUT_K, Effort, Moments, gradients
from examples.figures.pictures import panels, variant_legend, variant_style
from examples.figures.table import Row, Table, Tables, column, where
from pkpo_client import LocalClient

THETA = 1.0
ESTIMATES = 10_000
K = 4
SIZES = (4, 8, 12, 16, 24, 32, 48, 64)
N = 32
PKPO_SIX = (
    "naive_partitioned",
    "naive_partitioned_baselined",
    "loo_minus_one_partitioned",
    "s",
    "sloo",
    "sloo_minus_one",
)
OTHERS = ("centered", "passk_analytic", "passk_bootstrap", "passk_full")
MEASURED = (*PKPO_SIX, *OTHERS)
# Every variant beside the others; k of the objective.
ALL_N, ALL_ESTIMATES = 16, 100_000
ALL = {
    **dict.fromkeys(("sloo_minus_one", "s", "sloo", "centered"), K),
    "loo": 1,
    "tzsm": ALL_N,
    **dict.fromkeys(OTHERS[1:], K),
    **dict.fromkeys(PKPO_SIX[:3], K),
    "grpo": 1,
}


def has_gradient(variant: str, k: int, n: int) -> bool:
    """Whether a variant is defined for k and n, and not 0 for every group."""
    if variant == "naive_partitioned":
        return n % k == 0
    if variant == "naive_partitioned_baselined":
        return n % k == 0 and n >= 2 * k
    if variant == "loo_minus_one_partitioned":
        return n % k == 0 and k >= 2
    if variant == "passk_full":  # the deviation of a single maximum is 0
        return n >= 2 * k
    return k <= n if variant in ("s", "sloo_minus_one") else k < n


def tables(pkpo: LocalClient, effort: Effort) -> Tables:
    """`variance_by_n` at k = 4, `variance_by_k` at n = 32, `variants`: all of them at n = 16."""
    return {
        "variance_by_n": [
            row for n in SIZES for row in measured(pkpo, MEASURED, [K], n, effort.groups(ESTIMATES), seed=2)
        ],
        "variance_by_k": measured(pkpo, MEASURED, range(1, N + 1), N, effort.groups(ESTIMATES), seed=3),
        "variants": all_variants(pkpo, effort.groups(ALL_ESTIMATES)),
    }


def measured(
    pkpo: LocalClient, variants: tuple[str, ...], ks: range | list[int], n: int, estimates: int, seed: int
) -> Table:
    """A row per variant and k that fit n; the same samples for all."""
    rewards, scores = toy.sample(THETA, n, estimates, [seed])
    return [
        _row(variant, k, n, Moments.of(gradients(pkpo, variant, k, rewards, scores)), estimates)
        for variant in variants
        for k in ks
        if has_gradient(variant, k, n)
    ]


def all_variants(pkpo: LocalClient, estimates: int) -> Table:
    """A row per variant at n = 16; `binary` is `s` where rewards are 0 or 1."""
    rewards, scores = toy.sample(THETA, ALL_N, estimates, [4])
    return [
        _row(variant, k, ALL_N, Moments.of(gradients(pkpo, variant, k, rewards, scores)), estimates)
        for variant, k in ALL.items()
    ]


def _row(variant: str, k: int, n: int, moments: Moments, estimates: int) -> Row:
    k = 1 if variant in WITHOUT_K else k
    derivative = float(toy.derivative(THETA, k)) if variant in UNBIASED else None
    # How many groups to average until signal and noise are equal; unknown where noise is all that was seen.
    signal = derivative
    if signal is None and abs(moments.mean) > 5 * moments.mean_error:
        signal = moments.mean
    return {
        "variant": variant,
        "k": k,
        "n": n,
        "estimates": estimates,
        "derivative": derivative,
        "mean": moments.mean,
        "mean_error": moments.mean_error,
        "variance": moments.variance,
        "variance_error": moments.variance_error,
        "relative_variance": None if signal is None else moments.variance / signal**2,
    }


def drawn(tables: Tables) -> Figure:
    """Variance against n at k = 4: as it is, and relative to the gradient."""
    return _two_panels(tables["variance_by_n"], "n", SIZES, "n, samples in a group", f"k = {K}")


def drawn_by_k(tables: Tables) -> Figure:
    """Variance against k at n = 32: as it is, and relative to the gradient."""
    return _two_panels(tables["variance_by_k"], "k", (1, 2, 4, 8, 16, 32), "k", f"n = {N}")


def _two_panels(table: Table, x: str, ticks: tuple[int, ...], label: str, fixed: str) -> Figure:
    figure, (absolute, relative) = panels(2, height=3.6)
    _lines(absolute, table, (*PKPO_SIX, "centered"), x, "variance")
    _lines(relative, table, MEASURED, x, "relative_variance")
    for axis in (absolute, relative):
        axis.set(xscale="log", yscale="log", xlabel=label, xticks=ticks, xticklabels=ticks)
        axis.minorticks_off()
    absolute.set(ylabel=f"variance of the gradient, {fixed}, θ = {THETA:g}")
    relative.set(ylabel="variance / mean²  (groups until signal = noise)")
    variant_legend(figure, MEASURED)
    return figure


def _lines(axis: Axes, table: Table, variants: tuple[str, ...], x: str, y: str) -> None:
    for variant in variants:
        rows = [row for row in where(table, variant=variant) if row[y] is not None]
        style = variant_style(variant)
        axis.plot(column(rows, x), column(rows, y), **{**style, "markersize": 2.5 if len(rows) > 12 else 4})
