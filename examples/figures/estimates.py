"""PKPO's Corollary 3: the variance of the estimate of max@k falls as 1/n, and with which constant."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from examples.figures import coin, toy
from examples.figures.gradients import Effort, Moments
from examples.figures.pictures import LINE, k_colours, k_legend, panels
from examples.figures.table import Table, Tables, column, where
from pkpo_client import LocalClient

RATE = 0.2
KS = (1, 2, 4, 8)
SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
THETA = 1.0
SAMPLED_SIZES = (8, 16, 32, 64, 128, 256, 512)
GROUPS = 4000


def tables(pkpo: LocalClient, effort: Effort) -> Tables:
    """`estimates_of_pass_at_k`: exactly, of 0/1 rewards; `estimates_of_max_at_k`: sampled, of the toy problem."""
    sampled = [row for n in SAMPLED_SIZES for row in of_max_at_k(pkpo, n, effort.groups(GROUPS))]
    return {"estimates_of_pass_at_k": of_pass_at_k(pkpo), "estimates_of_max_at_k": sampled}


def of_pass_at_k(pkpo: LocalClient) -> Table:
    """Mean and variance of the estimate, the mean of its squared standard error, and the law of large n."""
    rows: Table = []
    for n in SIZES:
        share = coin.probabilities(n, RATE)
        for k, estimate in zip(KS, pkpo.estimate(coin.rewards(n), KS), strict=True):
            mean = float(share @ estimate.values)
            rows.append(
                {
                    "k": k,
                    "n": n,
                    "pass_at_k": 1 - (1 - RATE) ** k,
                    "mean": mean,
                    "variance": float(share @ (estimate.values - mean) ** 2),
                    "squared_error": float(share @ estimate.standard_errors**2) if k < n else None,
                    "law": k**2 * RATE * (1 - RATE) ** (2 * k - 1) / n,
                }
            )
    return rows


def of_max_at_k(pkpo: LocalClient, n: int, groups: int) -> Table:
    """The same of continuous rewards, sampled; the law is k^2 / n times the variance of E[max | one reward]."""
    rewards, _ = toy.sample(THETA, n, groups, [6])
    rows: Table = []
    for k, estimate in zip(KS, pkpo.estimate(rewards, KS), strict=True):
        moments = Moments.of(estimate.values)
        rows.append(
            {
                "k": k,
                "n": n,
                "groups": groups,
                "max_at_k": float(toy.max_at_k(THETA, k)),
                "mean": moments.mean,
                "mean_error": moments.mean_error,
                "variance": moments.variance,
                "variance_error": moments.variance_error,
                "squared_error": float(np.mean(estimate.standard_errors**2)) if k < n else None,
                "law": k**2 * toy.first_order_variance(THETA, k) / n,
            }
        )
    return rows


def drawn(tables: Tables) -> Figure:
    """Variance over the law of large n, which tends to 1."""
    figure, (exact, sampled) = panels(2, height=3.3, sharey=True)
    for k, colour in k_colours(KS).items():
        rows = where(tables["estimates_of_pass_at_k"], k=k)
        exact.plot(column(rows, "n"), _over_the_law(rows, "variance"), "o-", color=colour, markersize=3.5, **LINE)
        rows = where(tables["estimates_of_max_at_k"], k=k)
        bars = [2 * error for error in _over_the_law(rows, "variance_error")]
        style = {"color": colour, "markersize": 3.5, "capsize": 2, **LINE}
        sampled.errorbar(column(rows, "n"), _over_the_law(rows, "variance"), bars, fmt="o-", **style)
    for axis in (exact, sampled):
        axis.axhline(1, color="0.6", linewidth=0.7, zorder=0)
        axis.set(xscale="log", xlabel="n, samples in a group", xticks=SAMPLED_SIZES, xticklabels=SAMPLED_SIZES)
        axis.minorticks_off()
    exact.set(ylabel="variance of the estimate / its law of 1/n", title=f"rewards 0 and 1, pass rate {RATE}: exact")
    sampled.set(title=f"toy problem, θ = {THETA:g}: sampled, ± 2 standard errors")
    k_legend(figure, KS)
    return figure


def _over_the_law(rows: Table, name: str) -> list[float]:
    return [value / law for value, law in zip(column(rows, name), column(rows, "law"), strict=True)]
