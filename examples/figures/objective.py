"""PKPO's figure 1: max@k and its derivative against theta, and where each k has its optimum."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from examples.figures import toy
from examples.figures.gradients import Effort, Moments, gradients
from examples.figures.pictures import LINE, k_colours, k_legend, panels
from examples.figures.table import Table, Tables, column, where
from pkpo_client import LocalClient

KS = (1, 2, 4, 8, 16, 32)
SAMPLED_KS = (1, 2, 4, 8, 16)
N, GROUPS = 32, 4000
THETAS = np.arange(50, 131) / 100
SAMPLED_THETAS = np.arange(55, 131, 5) / 100


def tables(pkpo: LocalClient, effort: Effort) -> Tables:
    """`objective`: by quadrature; `objective_sampled`: by the client; `optima`: max@k at each k's optimum."""
    curves: Table = [
        {"k": k, "theta": float(theta), "max_at_k": float(value), "derivative": float(slope)}
        for k in KS
        for theta, value, slope in zip(THETAS, toy.max_at_k(THETAS, k), toy.derivative(THETAS, k), strict=True)
    ]
    optima: Table = [
        {"k": k, "theta": toy.optimum(k), **{f"max_at_{at}": float(toy.max_at_k(toy.optimum(k), at)) for at in KS}}
        for k in KS
    ]
    sampled = [row for theta in SAMPLED_THETAS for row in sampled_at(pkpo, float(theta), effort.groups(GROUPS))]
    return {"objective": curves, "objective_sampled": sampled, "optima": optima}


def sampled_at(pkpo: LocalClient, theta: float, groups: int) -> Table:
    """max@k and its derivative at one theta, from groups of rewards."""
    rewards, scores = toy.sample(theta, N, groups, [1, round(100 * theta)])
    rows: Table = []
    for k, estimate in zip(SAMPLED_KS, pkpo.estimate(rewards, SAMPLED_KS), strict=True):
        value = Moments.of(estimate.values)
        slope = Moments.of(gradients(pkpo, "sloo_minus_one", k, rewards, scores))
        rows.append(
            {
                "k": k,
                "theta": theta,
                "n": N,
                "groups": groups,
                "max_at_k": value.mean,
                "max_at_k_error": value.mean_error,
                "derivative": slope.mean,
                "derivative_error": slope.mean_error,
            }
        )
    return rows


def drawn(tables: Tables) -> Figure:
    """Lines by quadrature, dots sampled, optima marked."""
    figure, (values, slopes) = panels(2, height=3.4)
    for k, colour in k_colours(KS).items():
        of_k = where(tables["objective"], k=k)
        dots = where(tables["objective_sampled"], k=k)
        best = where(tables["optima"], k=k)
        for axis, name in ((values, "max_at_k"), (slopes, "derivative")):
            axis.plot(column(of_k, "theta"), column(of_k, name), color=colour, **LINE)
            axis.plot(column(dots, "theta"), column(dots, name), "o", color=colour, markersize=2.5)
        values.plot(column(best, "theta"), column(best, f"max_at_{k}"), "*", color=colour, markersize=10, mec="white")
        slopes.plot(column(best, "theta"), [0.0], "*", color=colour, markersize=10, mec="white", zorder=3)
    slopes.axhline(0, color="0.6", linewidth=0.7, zorder=0)
    values.set(xlabel="θ, mean of the policy", ylabel="max@k, expected reward of the best of k", ylim=(0, 1.02))
    slopes.set(xlabel="θ, mean of the policy", ylabel="d max@k / dθ")
    k_legend(figure, KS, extra=(("o", "sampled, n = 32"), ("*", "optimum")))
    return figure
