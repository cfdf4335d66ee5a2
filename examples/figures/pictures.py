"""How the pictures look, and how they are kept: PNG to look at, SVG to print.

Colours are Okabe and Ito's for variants and viridis's for k, both safe for the colour-blind; variants differ in
marker and dash too. A variant on blocks has the colour of the one on all subsets, dashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LOOK: Any = {
    "svg.hashsalt": "pkpo",  # of the ids in an SVG: the same picture, the same bytes
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}
LINE: dict[str, Any] = {"linewidth": 1.3}

_BLACK, _BLUE, _VERMILION, _GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
_PURPLE, _SKY, _ORANGE = "#CC79A7", "#56B4E9", "#E69F00"
_VARIANTS: dict[str, tuple[str, str, Any]] = {
    "s": (_BLACK, "o", "-"),
    "sloo": (_BLUE, "s", "-"),
    "sloo_minus_one": (_VERMILION, "D", "-"),
    "centered": (_GREEN, "^", "-"),
    "naive_partitioned": (_BLACK, "o", "--"),
    "naive_partitioned_baselined": (_BLUE, "s", "--"),
    "loo_minus_one_partitioned": (_VERMILION, "D", "--"),
    "passk_analytic": (_PURPLE, "v", "-"),
    "passk_bootstrap": (_PURPLE, "P", "-."),
    "passk_full": (_PURPLE, "X", ":"),
    "loo": (_SKY, "<", "-"),
    "grpo": (_ORANGE, ">", "-"),
}


def panels(
    number: int,
    *,
    height: float,
    width: float | None = None,
    widths: Sequence[float] | None = None,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A row of axes, wide enough for a page."""
    size = (width or {1: 5.4, 2: 8.6, 3: 10.6, 4: 10.6}[number], height)
    figure, axes = plt.subplots(1, number, figsize=size, squeeze=False, width_ratios=widths, sharey=sharey)
    return figure, list(axes[0])


def k_colours(ks: Iterable[int]) -> dict[int, Any]:
    """A colour per k, from dark to light."""
    ks = list(ks)
    return dict(zip(ks, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(ks))), strict=True))


def k_legend(figure: Figure, ks: Iterable[int], extra: Iterable[tuple[str, str]] = ()) -> None:
    """What the colours mean, right of the axes; and what a marker means."""
    lines = [Line2D([], [], color=colour, linewidth=2.5, label=f"k = {k}") for k, colour in k_colours(ks).items()]
    for sign, label in extra:
        size = 4 if sign == "o" else 9
        lines.append(Line2D([], [], color="0.3", linestyle="", marker=sign, markersize=size, label=label))
    figure.legend(handles=lines, loc="outside right center")


def variant_style(variant: str) -> dict[str, Any]:
    """Colour, marker and dash of a variant."""
    colour, marker, dash = _VARIANTS[variant]
    return {"color": colour, "marker": marker, "linestyle": dash, "markersize": 4, "linewidth": 1.2}


def variant_legend(figure: Figure, variants: Iterable[str]) -> None:
    """What the colours mean, right of the axes."""
    lines = [Line2D([], [], label=variant, **variant_style(variant)) for variant in variants]
    figure.legend(handles=lines, loc="outside right center", fontsize=8, handlelength=3.2)


def write_picture(figure: Figure, folder: Path, name: str) -> None:
    """Writes NAME.png and NAME.svg, the same bytes for the same picture."""
    # The solver of the layout ends at positions that differ in their last bits from run to run.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position(original=True).bounds, 4).tolist())
    figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
