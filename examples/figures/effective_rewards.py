"""PKPO's figure 5: the advantages of 32 rewards drawn uniformly, with one baseline, another, and none."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from examples.figures.gradients import Effort
from examples.figures.pictures import k_colours, k_legend, panels
from examples.figures.table import Tables, column, where
from pkpo_client import LocalClient

N = 32
KS = (1, 2, 4, 8, 16)
VARIANTS = ("s", "sloo", "sloo_minus_one", "centered")


def tables(pkpo: LocalClient, effort: Effort) -> Tables:
    """`effective_rewards`: one group."""
    rewards = np.sort(np.random.default_rng(5).uniform(size=(1, N)))
    return {
        "effective_rewards": [
            {"variant": variant, "k": k, "reward": float(reward), "advantage": float(advantage)}
            for variant in VARIANTS
            for k in KS
            for reward, advantage in zip(rewards[0], pkpo.transform(rewards, k, variant=variant)[0], strict=True)
        ]
    }


def drawn(tables: Tables) -> Figure:
    """A panel per variant, a line per k; s has an axis of its own, being ten times as large."""
    figure, axes = panels(4, height=2.9)
    for axis, variant in zip(axes, VARIANTS, strict=True):
        axis.axhline(0, color="0.6", linewidth=0.7, zorder=0)
        for k, colour in k_colours(KS).items():
            rows = where(tables["effective_rewards"], variant=variant, k=k)
            axis.plot(
                column(rows, "reward"), column(rows, "advantage"), "o-", color=colour, markersize=2.5, linewidth=0.9
            )
        axis.set(title=variant, xlabel="reward", xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
    limits = [axis.get_ylim() for axis in axes[1:]]
    for axis in axes[1:]:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    axes[0].set_ylabel("advantage, n = 32, scale sum")
    k_legend(figure, KS)
    return figure
