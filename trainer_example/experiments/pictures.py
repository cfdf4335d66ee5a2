"""The papers' figures from our runs: pass@k by k and by the other methods, what moves along training, annealing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer_example.experiments.plan import ANNEALED, EXPLORING, Experiment, K
from trainer_example.experiments.results import SOLVED, Result

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
    "legend.frameon": False,
}
COLOURS = dict(zip(K, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(K))), strict=True))
VERMILION = "#D55E00"
DIVERSITY_AMONG = 16  # samples of a prompt in training


def write_pictures(experiment: Experiment, results: Sequence[Result], folder: Path) -> dict[str, str]:
    """Writes what can be drawn of an experiment; the files' names, by what they show."""
    by_label: dict[str, list[Result]] = {}
    for result in results:
        by_label.setdefault(result.label, []).append(result)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    with plt.rc_context(LOOK):
        for shown, draw in DRAWINGS.items():
            figure = draw(experiment, by_label)
            if figure is not None:
                figure.tight_layout()
                written[shown] = f"{experiment.name}_{shown}.svg"
                figure.savefig(folder / written[shown], metadata={"Date": None})
                plt.close(figure)
    return written


def _by_k(experiment: Experiment, by_label: Mapping[str, list[Result]]) -> list[tuple[dict[str, Any], list[Result]]]:
    """The results of each k that was trained with, and how its line is drawn."""
    return [
        ({"color": COLOURS[k], "label": label}, by_label[label])
        for k, label in experiment.ks().items()
        if label in by_label
    ]


def _of_k(experiment: Experiment, by_label: Mapping[str, list[Result]]) -> Figure | None:
    """pass@k of held-out prompts against k, for each k that was trained on."""
    trained = _by_k(experiment, by_label)
    if not trained:
        return None
    figure, axes = plt.subplots(figsize=(5.4, 3.4))
    for style, of in trained:
        _with_errors(axes, _curves(experiment, of), **style)
    bases = {r.seed: [r.base(f"{experiment.measure}@{at}") for at in K] for of in by_label.values() for r in of}
    _with_errors(axes, list(bases.values()), color="0.4", linestyle="--", label="before training")
    _against_k(axes, experiment)
    axes.legend(title="trained with", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _others(experiment: Experiment, by_label: Mapping[str, list[Result]]) -> Figure | None:
    """pass@k against k for the entropy bonuses and for Pass@k Training, each beside k = 1 and k = 8."""
    families = {
        "entropy bonus": [label for label in by_label if label.startswith("entropy")],
        "Pass@k Training": [label for label in by_label if label.startswith("Pass@k")],
    }
    if not all(families.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 4.6), sharey=True)
    for axis, (title, labels) in zip(axes, families.items(), strict=True):
        colours = matplotlib.colormaps["plasma"](np.linspace(0, 0.85, len(labels)))
        styles = {label: {"color": colour} for label, colour in zip(labels, colours, strict=True)}
        for k, label in ((K[0], "k = 1"), (8, EXPLORING)):
            styles[label] = {"color": COLOURS[k], "linestyle": "--"}
        for label, style in styles.items():
            if label in by_label:
                _with_errors(axis, _curves(experiment, by_label[label]), label=label, **style)
        _against_k(axis, experiment)
        axis.legend(title=title, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def _curves(experiment: Experiment, results: Sequence[Result]) -> list[list[float]]:
    """What each result came to at last, at every k."""
    return [[result.last(f"{experiment.measure}@{at}") for at in K] for result in results]


def _against_k(axes: Axes, experiment: Experiment) -> None:
    axes.set(xscale="log", xlabel="k of the evaluation", ylabel=f"{experiment.measure}@k, %")
    axes.set_xticks(K, [str(k) for k in K])
    axes.minorticks_off()


def _with_errors(axes: Axes, curves: Sequence[Sequence[float]], **style: Any) -> None:
    """The mean over seeds, and its standard error."""
    values = 100 * np.array(curves)
    errors = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(K))
    axes.errorbar(K, values.mean(0), errors, marker="o", markersize=3.5, linewidth=1.3, capsize=2, **style)


def _training(experiment: Experiment, by_label: Mapping[str, list[Result]]) -> Figure | None:
    """What has been solved so far, and the entropy, along training."""
    trained = _by_k(experiment, by_label)
    if not trained:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2))
    for style, of in trained:
        records = [result.training for result in of]
        _along(axes[0], records, SOLVED, 100, **style)
        _along(axes[1], records, "entropy", 1, **style)
    axes[0].set(xlabel="step", ylabel="training prompts solved so far, %", ylim=(0, None))
    axes[1].set(xlabel="step", ylabel="entropy, nats a token", ylim=(0, None))
    axes[1].legend(title="trained with", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _held_out(experiment: Experiment, by_label: Mapping[str, list[Result]]) -> Figure | None:
    """The first and the last k of held-out prompts, and how many answers differ, along training."""
    trained = _by_k(experiment, by_label)
    if not trained:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(10.6, 3.0))
    for style, of in trained:
        for axis, at in zip(axes, (K[0], K[-1]), strict=False):
            _along(axis, [result.evaluations for result in of], f"{experiment.measure}@{at}", 100, **style)
            axis.set(xlabel="step", ylabel=f"{experiment.measure}@{at}, %")
        _along(axes[2], [result.training for result in of], "diversity", DIVERSITY_AMONG, **style)
    axes[2].set(xlabel="step", ylabel=f"distinct answers of {DIVERSITY_AMONG}", ylim=(0, None))
    axes[2].legend(title="trained with", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _annealing(experiment: Experiment, by_label: Mapping[str, list[Result]]) -> Figure | None:
    """k = 1, k = 8, and 8 that becomes 1: what has been solved so far, and pass@1."""
    shown = {"k = 1": COLOURS[1], "k = 8": COLOURS[8], ANNEALED: VERMILION}
    if not set(shown) <= by_label.keys():
        return None
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2))
    for axis in axes:
        for result in by_label[ANNEALED]:
            axis.axvline(result.annealed_at(), color=VERMILION, linewidth=0.8, linestyle=":")
    for label, colour in shown.items():
        # What is annealed is the same as k = 8 until then, and would hide it.
        over = {"linestyle": "--", "zorder": 3} if label == EXPLORING else {}
        of, style = by_label[label], {"color": colour, "label": label, **over}
        _along(axes[0], [result.training for result in of], SOLVED, 100, **style)
        _along(axes[1], [result.evaluations for result in of], "pass@1", 100, **style)
    axes[0].set(xlabel="step", ylabel="training prompts solved so far, %", ylim=(0, None))
    axes[1].set(xlabel="step", ylabel="pass@1 on held-out prompts, %", ylim=(0, None))
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _along(axes: Axes, runs: Sequence[Sequence[dict[str, float]]], name: str, scale: float, **style: Any) -> None:
    """The mean over seeds along the records of each, in a band of a standard error to either side."""
    steps = [record["step"] for record in runs[0]]
    values = scale * np.array([[record[name] for record in run] for run in runs])
    mean = values.mean(0)
    axes.plot(steps, mean, linewidth=1.3, **style)
    if len(values) > 1:
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        axes.fill_between(steps, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0)


DRAWINGS = {
    "pass_at_k": _of_k,
    "other_methods": _others,
    "training": _training,
    "held_out": _held_out,
    "annealing": _annealing,
}
