"""A run in pictures: `python -m trainer_example.plots RUN_DIR` draws those of a run that has not come to its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from trainer_example.evaluation import EVALUATED_K
from trainer_example.metrics import METRICS_FILE, STAGES, records

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def write_plots(run_dir: Path) -> list[Path]:
    """Writes `plots/*.png` of a run from its metrics; returns their paths."""
    everything = records(run_dir / METRICS_FILE)
    trained = [record for record in everything if record["kind"] == "train"]
    evaluated = [record for record in everything if record["kind"] == "evaluation"]
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    pictures = {}

    if evaluated:
        figure, (over_steps, over_k) = plt.subplots(1, 2, figsize=(10, 4))
        ks = [k for k in EVALUATED_K if f"pass@{k}" in evaluated[0]]
        for k in ks:
            _line(over_steps, evaluated, f"pass@{k}", str(k), marker="o")
        over_steps.set(title="held-out prompts", xlabel="step", ylabel="pass@k")
        over_steps.legend(title="k", loc="center left", bbox_to_anchor=(1, 0.5))
        for record, name in (
            (evaluated[0], f"step {evaluated[0]['step']}"),
            (evaluated[-1], f"step {evaluated[-1]['step']}"),
        ):
            values, errors = ([record[f"{what}@{k}"] for k in ks] for what in ("pass", "pass_error"))
            over_k.errorbar(ks, values, errors, marker="o", capsize=3, label=name)
        over_k.set(title="before and after", xlabel="k", ylabel="pass@k", xscale="log", xticks=ks, xticklabels=ks)
        over_k.minorticks_off()
        over_k.legend()
        pictures["pass_at_k"] = figure

    if trained:
        figure, axes = plt.subplots(2, 2, figsize=(10, 7))
        for axis, names, label in (
            (axes[0, 0], ["reward", "solved_now", "solved_in_training"], "share"),
            (axes[0, 1], ["entropy"], "nats a token"),
            (axes[1, 0], ["diversity", "groups_without_signal"], "share"),
            (axes[1, 1], ["k"], "k"),
        ):
            for name in names:
                _line(axis, trained, name, name.replace("_", " "))
            axis.set(xlabel="step", ylabel=label, ylim=(0, None))
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        pictures["training"] = figure

        figure, axis = plt.subplots(figsize=(6, 4))
        steps = [record["step"] for record in trained]
        axis.stackplot(steps, [[record[f"{stage}_seconds"] for record in trained] for stage in STAGES], labels=STAGES)
        axis.set(title="where a step's time goes", xlabel="step", ylabel="seconds", ylim=(0, None))
        axis.legend()
        pictures["time"] = figure

    paths = []
    for name, figure in pictures.items():
        figure.tight_layout()
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def _line(axis: Axes, of: Sequence[dict[str, Any]], name: str, label: str, **style: Any) -> None:
    axis.plot([record["step"] for record in of], [record[name] for record in of], label=label, **style)


if __name__ == "__main__":
    print(*write_plots(Path(sys.argv[1])), sep="\n")
