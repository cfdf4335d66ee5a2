"""Where each variant's mean gradient is zero, which is where training with it comes to rest."""

from __future__ import annotations

from matplotlib.figure import Figure

from examples.figures import toy
from examples.figures.gradients import WITHOUT_K, Effort, Moments, gradients
from examples.figures.pictures import panels, variant_legend, variant_style
from examples.figures.table import Row, Table, Tables, column, where
from pkpo_client import LocalClient

K = 4
SIZES = (8, 16, 32, 64)
SAMPLES = 1_600_000
VARIANTS = ("sloo_minus_one", "centered", "passk_analytic", "passk_bootstrap", "passk_full", "loo", "grpo")


def tables(pkpo: LocalClient, effort: Effort) -> Tables:
    """`bias`: the theta at which the mean gradient is zero, by variant and n."""
    return {"bias": [rest(pkpo, variant, n, effort.groups(SAMPLES // n)) for variant in VARIANTS for n in SIZES]}


def rest(pkpo: LocalClient, variant: str, n: int, groups: int) -> Row:
    """The zero of a variant's mean gradient, by the secant method on common random numbers."""
    k = 1 if variant in WITHOUT_K else K

    def gradient(theta: float) -> Moments:
        rewards, scores = toy.sample(theta, n, groups, [7])
        return Moments.of(gradients(pkpo, variant, k, rewards, scores))

    optimum = toy.optimum(k)
    slope = (gradient(optimum + 0.02).mean - gradient(optimum).mean) / 0.02
    theta, at_theta = optimum, gradient(optimum)
    for _ in range(4):
        before, at_before = theta, at_theta
        theta = before - at_before.mean / slope
        at_theta = gradient(theta)
        if abs(theta - before) > 1e-3:  # nearer than that, a difference says more of noise than of the slope
            slope = (at_theta.mean - at_before.mean) / (theta - before)
    return {
        "variant": variant,
        "k": k,
        "n": n,
        "groups": groups,
        "optimum": optimum,
        "theta": theta,
        "theta_error": at_theta.mean_error / abs(slope),
    }


def drawn(tables: Tables) -> Figure:
    """The zero against n, beside the optima of max@1 and max@4."""
    figure, (axis,) = panels(1, height=3.4, width=5.4)
    for k in (1, K):
        axis.axhline(toy.optimum(k), color="0.5", linewidth=0.8, linestyle=":")
        axis.annotate(
            f"optimum of max@{k}",
            (SIZES[-1], toy.optimum(k)),
            (0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color="0.35",
        )
    for variant in VARIANTS:
        rows: Table = where(tables["bias"], variant=variant)
        errors = [2 * error for error in column(rows, "theta_error")]
        axis.errorbar(column(rows, "n"), column(rows, "theta"), errors, capsize=2, **variant_style(variant))
    axis.set(xscale="log", xlabel="n, samples in a group", ylabel="θ at which the mean gradient is 0")
    axis.set(xticks=SIZES, xticklabels=SIZES)
    axis.minorticks_off()
    axis.margins(y=0.1)
    variant_legend(figure, VARIANTS)
    return figure
