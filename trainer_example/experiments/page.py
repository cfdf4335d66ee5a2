"""docs/results.md: tables, findings and pictures, all of them from the files of results."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trainer_example.experiments.claims import CLAIMS, SOLVED, Claim, Finding, findings
from trainer_example.experiments.pictures import write_pictures
from trainer_example.experiments.plan import ANNEALED, Experiment, K
from trainer_example.experiments.results import Result, results_of
from trainer_example.experiments.statistics import Mean

BEGIN, END = "<!-- experiments -->", "<!-- end of experiments -->"
SUBJECTS = {
    "C1": "pass@k is best after training at that k, or next to it",
    "C2": "larger k keeps more entropy and solves more in training",
    "C3": "on a hard set k = 1 stalls and k = 8 does not",
    "C4": "k = 8, then 1, has the pass@1 of k = 1 or better, with more solved",
    "C5": "k = 8 is better than TZSM, k = n = 16",
    "C6": "k = 8 is better than an entropy bonus",
    "C7": "Pass@k Training: the analytic form is better than bootstrap, and bootstrap than full sampling",
    "base": "training raises pass@16 above that of the model it began with",
}
FIGURES = {SOLVED: "solved in training", "entropy": "entropy"}
PAPER_CAPTIONS = {
    "pass_at_k": "{measure}@k on held-out prompts, by the k that was trained with; standard errors over seeds.",
    "training": "Training prompts solved so far, and the entropy of a token; bands are standard errors over seeds.",
    "annealing": "Annealing: k = 8 until nearly all that it ever solves is solved, then k = 1.",
}


def write_page(experiments: Sequence[Experiment], folder: Path, page: Path) -> None:
    """Puts what the results say into a page, in place of what stood between the markers; pictures go beside it.

    Args:
        experiments: those without a result are named as not run.
        folder: of the results.
        page: made where there is none.

    Raises:
        ValueError: the page has not both markers once.
    """
    beside = page.with_suffix("")
    results = {experiment.name: results_of(experiment, folder) for experiment in experiments}
    parts = [_summary([result for of in results.values() for result in of]), _findings(experiments, findings(results))]
    for experiment in experiments:
        parts.append(_experiment(experiment, results[experiment.name], beside))
    page.parent.mkdir(parents=True, exist_ok=True)
    text = page.read_text() if page.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"page: {page} must have {BEGIN} and {END} once")
    before, rest = text.split(BEGIN)
    block = "\n\n".join(part for part in parts if part)
    page.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.split(END)[1]}")
    _write_runs(experiments, results, beside / "runs.csv")


def _summary(results: Sequence[Result]) -> str:
    groups = sum(result.groups for result in results)
    return f"{len(results)} runs; {groups:,} groups of rewards went to the server, and came back as advantages."


def _findings(experiments: Sequence[Experiment], found: Sequence[Finding]) -> str:
    lines = [
        "## What shows, and what does not",
        "",
        "Each row is a comparison that was fixed before the runs: the first method less the second, seed by seed, "
        "with the standard error over seeds. p is of Student's two-sided test; a claim counts as shown, or its "
        "opposite, where p is below 5 % after Holm's adjustment for all rows of its number. Shares are in percent.",
        "",
        "| | task | figure | | difference | seeds | p | adjusted | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    titles = {experiment.name: experiment.title for experiment in experiments}
    for number, subject in SUBJECTS.items():
        of_number = [finding for finding in found if finding.claim.number == number]
        missing = [claim for claim in CLAIMS if claim.number == number and claim not in [f.claim for f in of_number]]
        if of_number or missing:
            lines.append(f"| **{number}** | *{subject}* | | | | | | | |")
        lines += [_finding(finding, titles) for finding in of_number]
        lines += [f"{_compared(claim, titles)} | | | | | not run |" for claim in missing]
    return "\n".join(lines)


def _finding(finding: Finding, titles: Mapping[str, str]) -> str:
    claim, mean = finding.claim, finding.difference
    scale, digits = _unit(claim.figure)
    difference = f"{scale * mean.value:+.{digits}f} ± {scale * mean.error:.{digits}f}"
    tested = f"{mean.n} | {_p(finding.p)} | {_p(finding.adjusted)} | {finding.verdict} |"
    return f"{_compared(claim, titles)} | {difference} | {tested}"


def _compared(claim: Claim, titles: Mapping[str, str]) -> str:
    task, figure = titles.get(claim.experiment, claim.experiment), FIGURES.get(claim.figure, claim.figure)
    return f"| | {task} | {figure} | {claim.more} over {claim.less}"


def _experiment(experiment: Experiment, results: Sequence[Result], beside: Path) -> str:
    options = experiment.options
    head = f"## {experiment.title}\n\n{experiment.text}"
    if not results:
        return f"{head}\n\nNot run."
    seeds = len({result.seed for result in results})
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items() if name != "evaluate_every")
    pictures = write_pictures(experiment, results, beside)
    parts = [
        head,
        f"`--task {experiment.task}`; {told}; {seeds} seeds; {results[0].options['evaluation_prompts']} held-out "
        f"prompts with {results[0].options['evaluation_samples']} samples each, none of them a training prompt.",
        _table(experiment, results),
        _best(experiment, results),
        _switches(results),
    ]
    parts += [
        f"![{PAPER_CAPTIONS[shown].format(measure=experiment.measure)}]({beside.name}/{name})"
        f"\n\n*{PAPER_CAPTIONS[shown].format(measure=experiment.measure)}*"
        for shown, name in pictures.items()
    ]
    return "\n\n".join(part for part in parts if part)


def _table(experiment: Experiment, results: Sequence[Result]) -> str:
    """Every method: its figures on held-out prompts, what it solved in training, entropy and diversity."""
    measures = ["pass"] if experiment.measure == "pass" else ["max", "pass"]
    columns = [*(f"{measure}@{k}" for measure in measures for k in (K if measure == experiment.measure else (1, 16)))]
    lines = [
        f"| | {' | '.join(columns)} | solved in training | entropy | distinct of 16 | seeds |",
        f"| --- |{' --- |' * (len(columns) + 4)}",
    ]
    rows: dict[str, tuple[list[Result], Callable[[Result, str], float]]] = {
        "before training": (list({r.seed: r for r in results}.values()), Result.base)
    }
    for label in experiment.methods:
        of = [result for result in results if result.label == label]
        if of:
            rows[label] = (of, Result.last)
    best = {name: max(Mean.of([read(r, name) for r in of]).value for of, read in rows.values()) for name in columns}
    for label, (of, read) in rows.items():
        cells = [_cell(Mean.of([read(r, name) for r in of]), 100, 1, best[name]) for name in columns]
        solved = "" if read is Result.base else _cell(Mean.of([read(r, SOLVED) for r in of]), 100, 1)
        entropy = _cell(Mean.of([read(r, "entropy") for r in of]), 1, 3)
        distinct = _cell(Mean.of([read(r, "diversity") for r in of]), 16, 1)
        lines.append(f"| {label} | {' | '.join(cells)} | {solved} | {entropy} | {distinct} | {len(of)} |")
    return "\n".join(lines)


def _best(experiment: Experiment, results: Sequence[Result]) -> str:
    """For each k of the evaluation, the k to train with; claim C1 as it stands."""
    trained = [k for k, label in experiment.ks().items() if any(r.label == label for r in results)]
    if len(trained) < 3:
        return ""
    said, near = [], 0
    for k in K:
        name = f"{experiment.measure}@{k}"
        means = {at: Mean.of([r.last(name) for r in results if r.label == experiment.ks()[at]]).value for at in trained}
        best = max(means, key=lambda at: means[at])
        said.append(f"{name}: {best}")
        near += abs(K.index(best) - K.index(k)) <= 1
    where = f"At k or next to it in {near} of {len(K)} columns (C1)."
    return f"The best k to train with, by what is evaluated: {', '.join(said)}. {where}"


def _switches(results: Sequence[Result]) -> str:
    """When the annealed runs changed their k."""
    methods = [str(result.options["method"]) for result in results if result.label == ANNEALED]
    steps = [method.rpartition("@")[2] for method in methods]
    if not steps:
        return ""
    return (
        f"*{ANNEALED}*: k becomes 1 where the run of the same seed that stays at k = 8 has solved all but the last "
        "2 points of what it ever solves in training, and at four fifths of the steps at the latest: at step "
        f"{', '.join(steps)}."
    )


def _cell(mean: Mean, scale: float, digits: int, best: float | None = None) -> str:
    value = f"{scale * mean.value:.{digits}f}"
    value = f"**{value}**" if best is not None and mean.value == best else value
    return value if math.isnan(mean.error) else f"{value} ± {scale * mean.error:.{digits}f}"


def _unit(figure: str) -> tuple[float, int]:
    return (1, 3) if figure == "entropy" else (100, 1)


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _write_runs(experiments: Sequence[Experiment], results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """The figures of every run, for those who would do other statistics."""
    names = [*(f"pass@{k}" for k in K), *(f"max@{k}" for k in K), "entropy", "diversity"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["experiment", "method", "seed", "step", SOLVED, *names])
        for experiment in experiments:
            for result in results[experiment.name]:
                for record in (result.evaluations[0], result.evaluations[-1]):
                    solved = result.last(SOLVED) if record["step"] else None
                    cells = [solved, *(record.get(name) for name in names)]
                    texts = ["" if cell is None else f"{cell:.6g}" for cell in cells]
                    writer.writerow([experiment.name, result.label, result.seed, int(record["step"]), *texts])
