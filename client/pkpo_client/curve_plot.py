"""Curves over k as pictures: PNG, SVG or PDF. Needs matplotlib, and is imported only when a picture is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pkpo_client.evaluation import Row
from pkpo_client.rollouts import RolloutsError

_LOOK: Any = {
    "svg.hashsalt": "pkpo",  # of the ids in an SVG: the same picture, the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
}
_MOST_BANDS = 8
_MOST_NAMES = 12  # in a legend, or along the axis


def draw_curves(path: str, curves: Sequence[tuple[str, Sequence[Row]]], measure: str) -> None:
    """Draws each curve of `evaluation.curve` against k, with its interval as a band.

    Raises:
        RolloutsError: the file cannot be written, or no row has an estimate.
    """
    figure, (axes,) = _panels(1)
    for colour, (label, rows) in zip(_colours(len(curves)), curves, strict=True):
        _draw(axes, rows, "estimate", colour, label, band=len(curves) <= _MOST_BANDS)
    axes.set_ylabel(f"{measure}, mean over prompts")
    _finish(path, figure, [axes], curves)


def draw_comparison(path: str, curves: Sequence[tuple[str, Sequence[Row]]], measure: str) -> None:
    """Draws each comparison of `evaluation.comparison`: both runs, and their difference with its interval as a band.

    Raises:
        RolloutsError: the file cannot be written, or no row has an estimate.
    """
    figure, (both, difference) = _panels(2)
    for colour, (label, rows) in zip(_colours(len(curves)), curves, strict=True):
        _draw(both, rows, "estimate", colour, f"{label}, this run".removeprefix(", "), band=False)
        _draw(both, rows, "against", colour, f"{label}, the other".removeprefix(", "), band=False, dashes="--")
        _draw(difference, rows, "difference", colour, label, band=len(curves) <= _MOST_BANDS)
    difference.axhline(0.0, color="black", linewidth=0.8)
    both.set_ylabel(f"{measure}, mean over shared prompts")
    difference.set_ylabel("difference")
    _finish(path, figure, [both, difference], curves)


def _panels(number: int) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(4.2 * number, 3.0), layout="constrained")
        return figure, [figure.add_subplot(1, number, place + 1) for place in range(number)]


def _colours(number: int) -> list[Any]:
    from matplotlib import colormaps

    return ["#0072B2"] if number == 1 else [colormaps["viridis"](place / (number - 1) * 0.9) for place in range(number)]


def _draw(axes: Any, rows: Sequence[Row], what: str, colour: Any, label: str, *, band: bool, dashes: str = "-") -> None:
    known = sorted((row for row in rows if row[what] is not None), key=lambda row: row["k"])
    ks = [row["k"] for row in known]
    axes.plot(
        ks, [row[what] for row in known], dashes, color=colour, label=label, linewidth=1.3, marker="o", markersize=3
    )
    if band:
        low, high = ([math.nan if row[end] is None else row[end] for row in known] for end in ("low", "high"))
        axes.fill_between(ks, low, high, color=colour, alpha=0.2, linewidth=0)


def _finish(path: str, figure: Any, panels: Sequence[Any], curves: Sequence[tuple[str, Sequence[Row]]]) -> None:
    import matplotlib

    known = [row for _, rows in curves for row in rows if row["estimate"] is not None]
    if not known:
        raise RolloutsError(f"{path}: nothing to draw; no group has as many rollouts as the smallest k")
    ks = sorted({row["k"] for row in known})
    for axes in panels:
        axes.set_xlabel("k")
        axes.set_xscale("log", base=2)
        if len(ks) <= _MOST_NAMES:
            axes.set_xticks(ks, [str(k) for k in ks])
            axes.minorticks_off()
    handles, labels = panels[0].get_legend_handles_labels()
    if len(curves) > _MOST_BANDS:
        panels[-1].set_title(f"{curves[0][0]} (dark) to {curves[-1][0]} (light), without bands", fontsize=8)
    else:
        panels[-1].set_title(f"bands: {known[0]['level'] * 100:g} % at each k", fontsize=8)
    if labels and len(labels) <= _MOST_NAMES:
        panels[0].legend(handles, labels, fontsize=8, frameon=False)
    try:
        with matplotlib.rc_context(_LOOK):
            figure.savefig(path, dpi=200, metadata={"Date": None} if Path(path).suffix.lower() == ".svg" else None)
    except OSError as error:
        raise RolloutsError(f"{path}: {error.strerror or error}") from error
