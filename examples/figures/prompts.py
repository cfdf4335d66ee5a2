"""What each variant makes of easy and of hard prompts: exactly, of 0/1 rewards."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from examples.figures import coin
from examples.figures.gradients import Effort
from examples.figures.pictures import k_colours, k_legend, panels, variant_style
from examples.figures.table import Table, Tables, column, where
from pkpo_client import LocalClient

N = 16
K = 4
SIGNAL_KS = (1, 2, 4, 8, 16)
RATES = (0.002, 0.005, *(rate / 100 for rate in range(1, 100)))
PULLS = (("loo", 1), ("sloo_minus_one", K), ("centered", K), ("passk_analytic", K), ("grpo", 1))


def tables(pkpo: LocalClient, effort: Effort) -> Tables:
    """`prompts`: by variant, k and pass rate v.

    `pull` is the mean gradient by the logit over that of v itself, v (1 - v): the derivative by v of what is optimised.
    """
    asked = [*PULLS, *(("sloo_minus_one", k) for k in SIGNAL_KS if k != K)]
    rows: Table = []
    for variant, k in asked:
        groups = coin.groups(pkpo, variant, None if variant in ("loo", "grpo") else k, N)
        for rate in RATES:
            mean, variance = coin.moments(groups, rate)
            rows.append(
                {
                    "variant": variant,
                    "k": k,
                    "n": N,
                    "pass_rate": rate,
                    "pull": mean / (rate * (1 - rate)),
                    "relative_variance": variance / mean**2,
                    "with_signal": float(coin.probabilities(N, rate) @ groups.with_signal),
                }
            )
    return {"prompts": rows}


def drawn(tables: Tables) -> Figure:
    """The pull by variant; signal, and groups for a usable gradient, by k."""
    figure, (pull, signal, noise) = panels(3, height=3.4)
    table = tables["prompts"]
    for variant, k in PULLS:
        rows = where(table, variant=variant, k=k)
        style = {**variant_style(variant), "marker": None, "label": f"{variant}, k = {k}"}
        if variant == "centered":  # on the line of sloo_minus_one, being unbiased too
            style.update(linestyle=(0, (1, 2)), linewidth=2.4)
        pull.plot(column(rows, "pass_rate"), column(rows, "pull"), **style)
    pull.set(ylabel="pull: d objective / d pass rate", ylim=(0, 4.2), title=f"n = {N}")
    pull.legend(fontsize=7.5)
    for k, colour in k_colours(SIGNAL_KS).items():
        rows = where(table, variant="sloo_minus_one", k=k)
        style = {"color": colour, "linewidth": 3.2 if k == 1 else 1.3}  # k = 2 lies on k = 1
        signal.plot(column(rows, "pass_rate"), column(rows, "with_signal"), **style)
        noise.plot(column(rows, "pass_rate"), column(rows, "relative_variance"), **style)
    signal.set(ylabel="share of groups with a signal", ylim=(0, 1.03), title=f"sloo_minus_one, n = {N}")
    noise.set(ylabel="variance / mean²  (groups until signal = noise)", yscale="log", ylim=(0.003, 1e3))
    noise.set(title=f"sloo_minus_one, n = {N}")
    for axis in (pull, signal, noise):
        axis.set(xlabel="pass rate of the prompt", xlim=(0, 1), xticks=np.linspace(0, 1, 6))
    k_legend(figure, SIGNAL_KS)
    return figure
