"""PKPO's figure 2: what each rank of a group counts, n = 8."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from examples.figures.gradients import Effort
from examples.figures.pictures import k_colours, panels
from examples.figures.table import Table, Tables, column, where
from pkpo_client import LocalClient

N = 8
KS = tuple(range(1, N + 1))
MATRIX_K = 4
MATRICES = ("s", "sloo_minus_one", "centered")


def tables(pkpo: LocalClient, effort: Effort) -> Tables:
    """`weights`: of the sorted rewards in max@k; `weights_of_advantages`: in the advantage of each rank, at k = 4."""
    steps = _steps()
    ranks = range(1, N + 1)
    of_estimate: Table = []
    for k, estimate in zip(KS, pkpo.estimate(steps, KS), strict=True):
        weights = _differences(estimate.values)
        of_estimate += [{"k": k, "rank": rank, "weight": float(weights[rank - 1])} for rank in ranks]
    of_advantages: Table = []
    for variant in MATRICES:
        matrix = _differences(pkpo.transform(steps, MATRIX_K, variant=variant))
        of_advantages += [
            {"variant": variant, "k": MATRIX_K, "rank": own, "rank_of_reward": other, "weight": float(weight)}
            for other in ranks
            for own, weight in enumerate(matrix[other - 1], 1)
        ]
    return {"weights": of_estimate, "weights_of_advantages": of_advantages}


def _steps() -> NDArray[np.float64]:
    """Groups that are 0 below rank j and 1 from it on, j = 1 .. n + 1: their differences are a function's weights."""
    return np.triu(np.ones((N + 1, N)))


def _differences(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of ranks 1 .. n, of a function that is linear in sorted rewards, from its values on the steps."""
    return values[:-1] - values[1:]


def drawn(tables: Tables) -> Figure:
    """The weights of the estimate as lines, those of advantages as maps."""
    figure, (lines, *maps) = panels(4, height=2.7, widths=(1.45, 1, 1, 1))
    for k, colour in k_colours(KS).items():
        of_k = where(tables["weights"], k=k)
        lines.plot(column(of_k, "rank"), column(of_k, "weight"), "o-", color=colour, markersize=3, label=f"k = {k}")
    lines.set(xlabel="rank of the reward (8 is the best)", ylabel="weight in the estimate of max@k", xticks=KS)
    lines.legend(fontsize=7.5, labelspacing=0.25)
    largest = max(abs(weight) for weight in column(tables["weights_of_advantages"], "weight"))
    # Few enough colours to be drawn and not embedded as a bitmap, whose id in an SVG is random.
    colours = matplotlib.colormaps["PuOr_r"].resampled(41)
    for axis, variant in zip(maps, MATRICES, strict=True):
        weights = column(where(tables["weights_of_advantages"], variant=variant), "weight")
        axis.pcolormesh(KS, KS, np.reshape(weights, (N, N)).T, cmap=colours, vmin=-largest, vmax=largest)
        axis.set_aspect("equal")
        axis.set(title=variant, xlabel="rank of the reward", xticks=(1, 4, 8), yticks=(1, 4, 8))
        axis.grid(visible=False)
    maps[0].set_ylabel("rank of the sample")
    figure.colorbar(maps[0].collections[0], ax=maps, shrink=0.8, label=f"weight in the advantage, k = {MATRIX_K}")
    return figure
