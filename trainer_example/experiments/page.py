"""docs/results.md: tables, findings and pictures, all of them from the files of results."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path

from trainer_example.experiments.claims import (
    CLAIMS,
    OPPOSITE,
    SHOWN,
    SIGNIFICANT,
    UNDECIDED,
    Claim,
    Finding,
    findings,
    next_to,
)
from trainer_example.experiments.pictures import write_pictures
from trainer_example.experiments.plan import AGAIN, ANNEALED, BY_K, HARD, Experiment, K
from trainer_example.experiments.prototype import beside_prototype
from trainer_example.experiments.results import SOLVED, Result, results_of
from trainer_example.experiments.statistics import Mean, holm
from trainer_example.experiments.yardsticks import yardsticks

BEGIN, END = "<!-- experiments -->", "<!-- end of experiments -->"
PKPO = "[PKPO](https://arxiv.org/abs/2505.15201)"
PASSK = "[Pass@k Training](https://arxiv.org/abs/2508.10751)"
METHODS = {  # by what tables call them: the trainer's method, and how it makes advantages of a group of rewards
    "k = 1": ("k:1", "leave-one-out: a reward less the mean of the others; what there is without the papers"),
    "k = 1, rate * 3": ("k:1", "as k = 1, with a learning rate of its own: three times as large, or a third"),
    "k = 2, 4, 8": ("k:8", f"`sloo_minus_one` of {PKPO}: of max@k, with max@(k - 1) of the others as the baseline"),
    "k = 16 (TZSM)": ("tzsm", "the same at k = n: the best sample gets by how much it is the best, the others nothing"),
    "entropy 0.01": ("entropy:0.01", "as k = 1, and a bonus for the policy's entropy; the published coefficients"),
    "Pass@k analytic, k = 8": (
        "passk_analytic:8",
        f"{PASSK}, in closed form: max@k of all subsets, divided by its standard deviation. At k = 1 it is there to "
        "tell what the division does from what k does",
    ),
    "Pass@k bootstrap, k = 8": ("passk_bootstrap:8", "the same of n random subsets"),
    "Pass@k full, k = 8": ("passk_full:8", "the same of disjoint subsets; full has only n/k = 2 groups here"),
    "8, then 1": (
        "k:8@0,1@STEP",
        "k = 8, and k = 1 from a step on. The step is chosen with hindsight from a second run, of the same seed, that "
        "stays at k = 8",
    ),
}
SUBJECTS = {
    "C1": "pass@k is best after training at that k, or next to it",
    "C2": "larger k keeps more entropy and solves more in training",
    "C3": "on a hard set k = 1 stalls and k = 8 does not",
    "C4": "k = 8, then 1, has the pass@1 of k = 1 or better, with more solved",
    "C5": "k = 8 is better than TZSM, k = n = 16",
    "C6": "k = 8 is better than an entropy bonus",
    "C7": "of Pass@k Training, k = 8 is better than k = 1, the analytic form than bootstrap, and bootstrap than full",
    "forms": "Pass@k Training's analytic form is better than PKPO at the same k",
    "base": "training raises pass@16 above that of the model it began with",
    "again": "C1, C2 and C4 of the ambiguous prompts once more",
    "bonus": "C6 again: k = 8 is better than larger entropy bonuses",
    "rates": "k = 8 is better than k = 1 with another learning rate",
    "after": "what was asked once the runs had been seen",
}
NOTES = {
    "C1": "The best of k and its neighbours against the best of the rest, each chosen seed by seed: the larger set has "
    "the luckier best, which favours the claim at k = 2, 4, 8 and speaks against it at k = 1 and 16. The hard set is "
    "not among the rows: what is solved there is decided by which k finds the compositions at all. How often it holds "
    "there stands under its table.",
    "C2": "Under the table of each task stands in how many seeds every single step of k does so.",
    "C3": "What is solved on this task is discrete, by how many compositions unlock: every seed is under its table.",
    "C4": "That more is solved is nearly built in: k becomes 1 where k = 8 has solved all but 2 points of what it "
    "ever solves, which a second run tells, whose cost is not counted. No worse is less than 1 point worse. On the "
    "ambiguous task the most that pass@1 can be is about 40 %, the chance of the likeliest rule; what is annealed has "
    "a third of the steps left for it, and still rises at the end.",
    "C6": "Against the best of the coefficients, chosen for each seed and figure in favour of the bonus.",
    "forms": "No claim of the papers; for information.",
    "again": "On seeds that nobody had seen, since those above had left most of C1 undecided. The rows are those of "
    "the first time, and adjusted for by themselves.",
    "bonus": "On the ambiguous task the largest of the published coefficients had been the best of them, so that the "
    "sweep ended where it should have gone on. These rows were planned and committed before the runs with 0.2 and "
    "0.3, and after all others had been seen.",
    "rates": "One learning rate was given to all methods of a task, and a review asked whether k = 1 loses by it. "
    "k = 8 keeps that rate; of k = 1 it is the best of three, chosen for each seed and figure in its favour. Planned "
    "and committed before the runs with other rates and all of this maze's, and after the hard set and the sums had "
    "been seen.",
    "after": "Not planned: a review asked for these rows, of runs that had been seen, and so they prove nothing by "
    "themselves. k = 8 over TZSM and over the model before training, on the eight seeds; k = 8 over k = 1 at what "
    "k = 1 is trained for, on the sums; and k = 1 over the model before training where no row above has it.",
}
FIGURES = {SOLVED: "solved in training"}
CAPTIONS = {
    "pass_at_k": "{measure}@k on held-out prompts, by the k that was trained with; standard errors over seeds.",
    "other_methods": "{measure}@k on held-out prompts after training with an entropy bonus (left) and by Pass@k "
    "Training (right); standard errors over seeds. Dashed: k = 1 and k = 8.",
    "training": "Along training, for each k. Left: training prompts solved so far. Right: the entropy of a token. "
    "Bands are standard errors over seeds.",
    "held_out": "Along training, for each k. Left: {measure}@1 on held-out prompts. Middle: {measure}@16 on them. "
    "Right: how many of the 16 answers to a training prompt differ.",
    "annealing": "Annealing. Left: training prompts solved so far. Right: pass@1 on held-out prompts. Dotted: where k "
    "becomes 1, seed by seed.",
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
    parts = [_summary(results), _methods(), _findings(experiments, findings(results))]
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


def _summary(results: Mapping[str, Sequence[Result]]) -> str:
    every = [result for of in results.values() for result in of]
    groups, hours = sum(result.groups for result in every), sum(result.seconds for result in every) / 3600
    return (
        f"{len(every)} runs; {groups:,} groups of rewards went to the server, and came back as advantages. Their "
        f"training steps took {hours:.1f} core-hours; warm starts and evaluations come on top. {_provenance(results)}"
    ).rstrip()


def _methods() -> str:
    lines = [
        "## What is compared",
        "",
        "| in the tables | `--method` | the advantages of a group of n = 16 rewards |",
        "| --- | --- | --- |",
        *(f"| {label} | `{method}` | {text} |" for label, (method, text) in METHODS.items()),
        "",
        "[Estimators](estimators.md) has the formulas, [training](training.md) what else the trainer does.",
    ]
    return "\n".join(lines)


def _provenance(results: Mapping[str, Sequence[Result]]) -> str:
    """Which code the runs are of: a task's, a method's or, where a method's differ, each run's."""
    codes: dict[tuple[str, str], set[str]] = {}
    for name, of in results.items():
        for result in of:
            codes.setdefault((name, result.label), set()).add(_code(result))
    every = list(dict.fromkeys(chain(*codes.values())))
    if not every:
        return ""
    if len(every) == 1:
        return f"All are of one version of the code: {every[0]}."
    said: dict[str, list[str]] = {code: [] for code in every}
    for name, of in results.items():
        methods = {label: codes[name, label] for label in dict.fromkeys(result.label for result in of)}
        for code in every:
            its = [label for label, found in methods.items() if found == {code}]
            if its:
                said[code].append(name if len(its) == len(methods) else f"{name} ({', '.join(its)})")
        for result in of:
            if len(methods[result.label]) > 1:
                said[_code(result)].append(f"{name} {result.label} seed {result.seed}")
    versions = "; ".join(f"{', '.join(runs)} of {code}" for code, runs in said.items())
    return f"They are of several versions of the code: {versions}."


def _code(result: Result) -> str:
    return ", ".join(f"{what} {version}" for what, version in result.provenance.items())


def _findings(experiments: Sequence[Experiment], found: Sequence[Finding]) -> str:
    parts = [
        "## What shows, and what does not",
        "Each row is a comparison that was fixed before these runs: the first less the second, seed by seed, from the "
        "same model on the same prompts; the mean with its standard error over seeds, and Student's 95 % confidence "
        "interval of that row alone. p is of Student's two-sided test, which takes the differences for normal: with "
        "three seeds their signs alone could not say less than 0.25. A claim counts as shown, or its opposite, "
        f"where p is below 5 % after Holm's adjustment for all rows of its number. {_together(found)}"
        "Undecided is all else: with so few seeds it may mean no difference, or too few seeds. Shares are in percent.",
        "The rows were fixed, **the hard set was not**: it was chosen by pilots in which k = 1 stalled and k = 8 did "
        "not (above). Its rows say that this was no luck of one seed, and nothing of other tasks; what is shown "
        "without them is counted too.",
    ]
    titles = {experiment.name: experiment.title for experiment in experiments}
    for number, subject in SUBJECTS.items():
        of_number = [finding for finding in found if finding.claim.number == number]
        tried = [finding.claim for finding in of_number]
        missing = [claim for claim in CLAIMS if claim.number == number and claim not in tried]
        lines = [
            "| task | figure | comparison | difference | 95 % interval | seeds | p | adjusted p | verdict |",
            f"|{' --- |' * 9}",
            *(_finding(finding, titles) for finding in of_number),
            *(f"{_compared(claim, titles)} | | | | | | not run |" for claim in missing),
        ]
        said = " ".join(filter(None, [_tally(of_number, len(missing)), NOTES.get(number)]))
        parts += [f"### {number}: {subject}", said, "\n".join(lines)]
    return "\n\n".join(parts)


def _together(found: Sequence[Finding]) -> str:
    """What is left where all that was planned is one family."""
    planned = [finding for finding in found if finding.claim.number != "after"]
    if not planned:
        return ""
    sure = [finding for finding in planned if finding.verdict != UNDECIDED]
    adjusted = holm([finding.p for finding in planned])
    left = [finding for finding, p in zip(planned, adjusted, strict=True) if p < SIGNIFICANT]
    hard = sum(finding.claim.experiment == HARD.name for finding in left)
    return (
        f"Nothing is adjusted across numbers: with all {len(planned)} planned rows as one family, {len(left)} would be "
        f"decided in place of {len(sure)}, {hard} of them of the hard set. "
    )


def _tally(found: Sequence[Finding], missing: int) -> str:
    """How the comparisons of a number came out."""
    verdicts = [finding.verdict for finding in found]
    if not verdicts:
        return "Not run."
    counted = [
        f"Shown in {verdicts.count(SHOWN)} of {len(verdicts)}",
        f"the opposite in {verdicts.count(OPPOSITE)}",
        f"undecided in {verdicts.count(UNDECIDED)}",
    ]
    tally = f"{', '.join(counted)}{f'; {missing} not run' if missing else ''}."
    others = [finding.verdict for finding in found if finding.claim.experiment != HARD.name]
    if 0 < len(others) < len(found):
        tally += f" Without the hard set: shown in {others.count(SHOWN)} of {len(others)}."
    return tally


def _finding(finding: Finding, titles: Mapping[str, str]) -> str:
    claim, mean = finding.claim, finding.difference
    scale, digits = _unit(claim.figure)
    difference = f"{scale * mean.value:+.{digits}f} ± {scale * mean.error:.{digits}f}"
    interval = " to ".join(f"{scale * end:+.{digits}f}" for end in mean.interval())
    tested = f"{mean.n} | {_p(finding.p)} | {_p(finding.adjusted)} | {finding.verdict} |"
    return f"{_compared(claim, titles)} | {difference} | {interval} | {tested}"


def _compared(claim: Claim, titles: Mapping[str, str]) -> str:
    task, figure = titles.get(claim.experiment, claim.experiment), FIGURES.get(claim.figure, claim.figure)
    allowed = f", {100 * claim.margin:g} point less allowed" if claim.margin else ""
    return f"| {task} | {figure} | {_side(claim.more)} over {_side(claim.less)}{allowed}"


def _side(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"the best of {', '.join(labels)}"


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
        f"prompts with {results[0].options['evaluation_samples']} samples each, none of them a training prompt or in "
        f"a demonstration of the warm start. Training passes {results[0].passes:.1f} times over its prompts, with 16 "
        "tries each time, and *solved in training* grows with the tries.",
        _table(experiment, results),
        _best(experiment, results),
        _steps_of_k(experiment, results),
        _seed_by_seed(results) if experiment.name == HARD.name else "",
        beside_prototype(results) if experiment.name == AGAIN.name else "",
        _switches(results),
    ]
    parts += [
        f"![{shown.replace('_', ' ')}]({beside.name}/{name})\n\n*{CAPTIONS[shown].format(measure=experiment.measure)}*"
        for shown, name in pictures.items()
    ]
    return "\n\n".join(part for part in parts if part)


def _table(experiment: Experiment, results: Sequence[Result]) -> str:
    """Every method: its figures on held-out prompts, what it solved in training, entropy and diversity."""
    measures = ["pass"] if experiment.measure == "pass" else ["max", "pass"]
    columns = [*(f"{measure}@{k}" for measure in measures for k in (K if measure == experiment.measure else (1, 16)))]
    lines = [
        f"| method | {' | '.join(columns)} | solved in training | entropy | distinct of 16 | steps clipped | seeds |",
        f"| --- |{' --- |' * (len(columns) + 5)}",
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
        trained = read is not Result.base
        solved = _cell(Mean.of([read(r, SOLVED) for r in of]), 100, 1) if trained else ""
        clipped = f"{100 * Mean.of([r.clipped for r in of]).value:.0f} %" if trained else ""
        entropy = _cell(Mean.of([read(r, "entropy") for r in of]), 1, 3)
        distinct = _cell(Mean.of([read(r, "diversity") for r in of]), 16, 1)
        lines.append(f"| {label} | {' | '.join(cells)} | {solved} | {entropy} | {distinct} | {clipped} | {len(of)} |")
    beside = yardsticks(experiment, results)
    for label, of_k in beside.items():
        cells = [_cell(of_k[k], 100, 1) for k in K]
        lines.append(f"| *{label}* | {' | '.join(cells)} |  |  |  |  |  |")
    if beside:
        lines.append("\n*In italics*: what would be reached by who answers so, each answer drawn by itself.")
    return "\n".join(lines)


def _best(experiment: Experiment, results: Sequence[Result]) -> str:
    """For each k of the evaluation the k to train with, over all seeds and seed by seed; claim C1 as it stands."""
    by_seed = _whole_seeds(experiment, results)
    if not by_seed:
        return ""
    said, same, near = [], 0, 0
    for k in K:
        name = f"{experiment.measure}@{k}"
        values = [{at: of[at].last(name) for at in K} for of in by_seed]
        best = max(K, key=lambda at: sum(of[at] for of in values))
        said.append(f"{name}: {best}")
        best_of_seeds = [max(K, key=lambda at: of[at]) for of in values]
        same += best_of_seeds.count(k)
        near += sum(best in next_to(k) for best in best_of_seeds)
    by_chance = sum(len(next_to(k)) for k in K) / len(K) * len(by_seed)
    where = (
        f"Seed by seed it is the k of the evaluation in {same} of {len(K) * len(by_seed)}, and that or next to it in "
        f"{near} (C1); by chance it would be in {len(by_seed)} and {by_chance:.1f}."
    )
    return f"The best k to train with, by what is evaluated: {', '.join(said)}. {where}"


def _steps_of_k(experiment: Experiment, results: Sequence[Result]) -> str:
    """In how many seeds every larger k has more entropy, and solves more; claim C2 as it stands."""
    by_seed = _whole_seeds(experiment, results)
    if not by_seed:
        return ""
    rising = [
        sum(all(of[a].last(figure) < of[b].last(figure) for a, b in pairwise(K)) for of in by_seed)
        for figure in ("entropy", SOLVED)
    ]
    return (
        f"With every step of k from {K[0]} to {K[-1]} entropy rises in {rising[0]} of {len(by_seed)} seeds, and what "
        f"is solved in training in {rising[1]} (C2)."
    )


def _whole_seeds(experiment: Experiment, results: Sequence[Result]) -> list[dict[int, Result]]:
    """The results by k, of each seed that has them all."""
    labels = dict(zip(K, BY_K, strict=True))
    seeds: dict[int, dict[str, Result]] = {}
    for result in results:
        seeds.setdefault(result.seed, {})[result.label] = result
    return [{k: of[label] for k, label in labels.items()} for _, of in sorted(seeds.items()) if of.keys() >= {*BY_K}]


def _seed_by_seed(results: Sequence[Result]) -> str:
    """What each seed solved and reached with k = 1 and k = 8, and whether it stalled; claim C3 as it stands."""
    labels = [label for label in ("k = 1", "k = 8") if any(result.label == label for result in results)]
    if not labels:
        return ""
    seeds = sorted({result.seed for result in results if result.label in labels})
    lines = [f"| method, figure | {' | '.join(f'seed {seed}' for seed in seeds)} |", f"| --- |{' --- |' * len(seeds)}"]
    stalled = []
    for label in labels:
        of = {result.seed: result for result in results if result.label == label}
        for figure in (SOLVED, "pass@1"):
            cells = [f"{100 * of[seed].last(figure):.1f}" if seed in of else "" for seed in seeds]
            lines.append(f"| {label}, {FIGURES.get(figure, figure)} | {' | '.join(cells)} |")
        stalled.append(f"{label} in {sum(result.stalls() for result in of.values())} of {len(of)} seeds")
    said = "A run stalls if it has under 90 % solved and solves less than 1 point in the last half of its steps"
    return "\n".join(lines) + f"\n\n{said}: {', '.join(stalled)} (C3)."


def _switches(results: Sequence[Result]) -> str:
    """When the annealed runs changed their k."""
    steps = [result.annealed_at() for result in results if result.label == ANNEALED]
    if not steps:
        return ""
    return (
        f"*{ANNEALED}*: k becomes 1 where the run of the same seed that stays at k = 8 has solved all but the last "
        "2 points of what it ever solves in training, and at four fifths of the steps at the latest: at step "
        f"{', '.join(map(str, steps))}."
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
        writer.writerow(["experiment", "method", "seed", "step", SOLVED, "gradient_norm", "clipped", *names])
        for experiment in experiments:
            for result in results[experiment.name]:
                for record in (result.evaluations[0], result.evaluations[-1]):
                    trained = [result.last(SOLVED), result.gradient_norm, result.clipped]
                    of_run = trained if record["step"] else [None] * len(trained)
                    cells = [*of_run, *(record.get(name) for name in names)]
                    texts = ["" if cell is None else f"{cell:.6g}" for cell in cells]
                    writer.writerow([experiment.name, result.label, result.seed, int(record["step"]), *texts])
