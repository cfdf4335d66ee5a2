"""The prototype of the ambiguous task, whose figures these experiments set out to meet.

Its three seeds were of RL alone: one task and one model for all. So its errors tell nothing of other models, and what
is asked is whether it could be one of ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer_example.experiments.plan import ANNEALED, TZSM, K
from trainer_example.experiments.results import SOLVED, Result
from trainer_example.experiments.statistics import Mean

FIGURES = (*(f"pass@{k}" for k in K), SOLVED, "entropy")
# Shares in percent, entropy in nats.
PROTOTYPE = {
    "k = 1": (39.4, 40.5, 41.0, 41.4, 41.8, 63.7, 0.035),
    "k = 2": (31.2, 40.5, 48.0, 54.4, 60.5, 82.9, 0.249),
    "k = 4": (23.4, 37.0, 52.0, 65.4, 75.7, 94.3, 0.434),
    "k = 8": (18.6, 31.9, 49.5, 67.5, 81.3, 97.5, 0.537),
    TZSM: (15.5, 27.7, 45.1, 65.2, 81.7, 98.7, 0.628),
    ANNEALED: (38.5, 40.3, 41.1, 41.9, 42.7, 95.3, 0.057),
}
BASE_PASS_AT_16 = 83.1


def beside_prototype(results: Sequence[Result]) -> str:
    """A table: each figure of the prototype, and where one more model of ours would be with 95 %."""
    lines = [f"| method | {' | '.join(FIGURES[:-2])} | solved in training | entropy |", f"|{' --- |' * 8}"]
    cells, inside = 0, 0
    for label, figures in PROTOTYPE.items():
        of = [result for result in results if result.label == label]
        if len(of) < 2:
            continue
        row = []
        for name, figure in zip(FIGURES, figures, strict=True):
            scale, digits = (1, 3) if name == "entropy" else (100, 1)
            low, high = Mean.of([scale * result.last(name) for result in of]).range_of_one_more()
            is_inside = low <= figure <= high
            cells, inside = cells + 1, inside + is_inside
            shown = f"{figure:.{digits}f}" if is_inside else f"**{figure:.{digits}f}**"
            row.append(f"{shown}: {low:.{digits}f} to {high:.{digits}f}")
        lines.append(f"| {label} | {' | '.join(row)} |")
    if not cells:
        return ""
    bases = [100 * each.base("pass@16") for each in {result.seed: result for result in results}.values()]
    low, high = Mean.of(bases).range_of_one_more()
    return (
        "Beside the prototype, which had one model: its figure, and the range in which one more model of ours would be "
        f"with 95 %. {inside} of {cells} are in their range; what is not is bold. Before training its pass@16 was "
        f"{BASE_PASS_AT_16}, and the range is {low:.1f} to {high:.1f}.\n\n" + "\n".join(lines)
    )
