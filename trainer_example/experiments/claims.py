"""What the papers say, each as one comparison on the runs of an experiment, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer_example.experiments.plan import (
    ANALYTIC,
    ANNEALED,
    BY_K,
    ENTROPY,
    HARD_ENTROPY,
    LARGER_ENTROPY,
    RATES,
    TZSM,
    K,
)
from trainer_example.experiments.results import SOLVED, Result
from trainer_example.experiments.statistics import Mean, holm

BASE = "the model before training"
SIGNIFICANT = 0.05
NO_WORSE = 0.01  # of pass@1, after annealing
SHOWN, OPPOSITE, UNDECIDED = "**shown**", "**the opposite**", "undecided"


@dataclass(frozen=True)
class Claim:
    """`figure` of the best of `more` is above that of the best of `less`, or less than `margin` below it.

    The best is chosen for each seed and figure anew.

    Attributes:
        number: C1 to C7, or what SUBJECTS of the page calls it.
        experiment: by its name.
        figure: of the last evaluation, or SOLVED.
        more: the methods that the claim is for.
        less: those that they are held against, or BASE.
        margin: how much less counts as no worse.
    """

    number: str
    experiment: str
    figure: str
    more: tuple[str, ...]
    less: tuple[str, ...]
    margin: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What came out of a claim.

    Attributes:
        claim: that was tried.
        difference: over the seeds that all its methods have.
        p: that it is the margin and not above or below it, two-sided.
        adjusted: Holm's, over the claims of the same number.
    """

    claim: Claim
    difference: Mean
    p: float
    adjusted: float

    @property
    def verdict(self) -> str:
        """Whether it shows, at 5 % among the claims of the same number together."""
        if not self.adjusted < SIGNIFICANT:
            return UNDECIDED
        return SHOWN if self.difference.value > -self.claim.margin else OPPOSITE


def next_to(k: int) -> tuple[int, ...]:
    """k and its neighbours, of those that are trained with."""
    place = K.index(k)
    return K[max(0, place - 1) : place + 2]


def _matched(experiment: str, measure: str) -> list[Claim]:
    """For each k of the evaluation: k and its neighbours against the rest."""
    labels = dict(zip(K, BY_K, strict=True))
    claims = []
    for k in K:
        near = tuple(labels[at] for at in next_to(k))
        rest = tuple(label for label in BY_K if label not in near)
        claims.append(Claim("C1", experiment, f"{measure}@{k}", near, rest))
    return claims


def _one(number: str, experiment: str, figure: str, more: str, less: str, margin: float = 0.0) -> Claim:
    """A claim about two methods."""
    return Claim(number, experiment, figure, (more,), (less,), margin)


_K1, _K8 = "k = 1", "k = 8"
_ANALYTIC8, _ANALYTIC1 = ANALYTIC
_BOOTSTRAP, _FULL = "Pass@k bootstrap, k = 8", "Pass@k full, k = 8"
_FIRST = (
    *_matched("ambiguous", "pass"),
    *_matched("digits", "max"),
    *_matched("fog", "pass"),
    *(_one("C2", name, figure, _K8, _K1) for name in ("ambiguous", "digits", "fog") for figure in ("entropy", SOLVED)),
    *(_one("C3", "hard", figure, _K8, _K1) for figure in (SOLVED, "pass@1", "pass@16")),
    *(
        claim
        for name in ("ambiguous", "hard")
        for claim in (
            _one("C4", name, "pass@1", ANNEALED, _K1, NO_WORSE),
            _one("C4", name, SOLVED, ANNEALED, _K1),
        )
    ),
    *(_one("C5", name, figure, _K8, TZSM) for name in ("ambiguous", "hard") for figure in ("pass@8", "pass@16")),
    _one("C5", "hard", SOLVED, _K8, TZSM),
    *(Claim("C6", "ambiguous", figure, (_K8,), tuple(ENTROPY)) for figure in ("pass@8", "pass@16", "pass@1")),
    *(Claim("C6", "hard", figure, (_K8,), HARD_ENTROPY) for figure in (SOLVED, "pass@1")),
    _one("C7", "ambiguous", "pass@8", _ANALYTIC8, _ANALYTIC1),
    _one("C7", "ambiguous", "pass@8", _ANALYTIC8, _BOOTSTRAP),
    _one("C7", "ambiguous", "pass@8", _BOOTSTRAP, _FULL),
    _one("C7", "hard", SOLVED, _ANALYTIC8, _ANALYTIC1),
    _one("forms", "ambiguous", "pass@8", _ANALYTIC8, _K8),
    _one("base", "ambiguous", "pass@16", _K8, BASE),
    _one("base", "hard", "pass@16", _K8, BASE),
    _one("base", "hard", "pass@16", _K1, BASE),
    _one("base", "digits", "pass@16", _K8, BASE),
    _one("base", "digits", "max@16", _K8, BASE),
    _one("base", "fog", "pass@16", _K8, BASE),
    _one("base", "sums", "pass@16", _K8, BASE),
    _one("base", "sums", "pass@16", _K1, BASE),
)
CLAIMS = (
    *_FIRST,
    *(
        replace(claim, number="again", experiment="again")
        for claim in _FIRST
        if claim.experiment == "ambiguous" and claim.number in ("C1", "C2", "C4")
    ),
    *(
        Claim("bonus", "ambiguous", figure, (_K8,), ("entropy 0.1", *LARGER_ENTROPY))
        for figure in ("pass@8", "pass@16", SOLVED, "pass@1")
    ),
    *(
        replace(claim, number="after", experiment="again")
        for claim in _FIRST
        if claim.experiment == "ambiguous" and claim.number in ("C5", "base")
    ),
    *(
        Claim("rates", name, figure, (_K8,), (_K1, *RATES))
        for name in ("hard", "fog", "sums")
        for figure in (SOLVED, "pass@1", "pass@16")
    ),
    *(_one("after", "sums", figure, _K8, _K1) for figure in ("pass@1", "max@1")),
    *(_one("after", "fog", figure, _K1, BASE) for figure in ("pass@1", "pass@16")),
    _one("after", "digits", "pass@16", _K1, BASE),
    _one("after", "ambiguous", "pass@16", _K1, BASE),
    _one("after", "again", "pass@16", _K1, BASE),
)


def findings(results: Mapping[str, Sequence[Result]], claims: Sequence[Claim] = CLAIMS) -> list[Finding]:
    """What came out of the claims that two seeds or more can speak of.

    Args:
        results: by the experiment's name.
        claims: to try.
    """
    differences = [(claim, _differences(claim, results.get(claim.experiment, ()))) for claim in claims]
    means = [(claim, Mean.of(values)) for claim, values in differences if len(values) > 1]
    found = []
    for number in dict.fromkeys(claim.number for claim, _ in means):
        family = [(claim, mean, mean.p_value(-claim.margin)) for claim, mean in means if claim.number == number]
        adjusted = holm([p for _, _, p in family])
        found += [Finding(*row, p_adjusted) for row, p_adjusted in zip(family, adjusted, strict=True)]
    return found


def _differences(claim: Claim, results: Sequence[Result]) -> list[float]:
    """Seed by seed."""
    more, less = (_best_of_seeds(labels, claim.figure, results) for labels in (claim.more, claim.less))
    return [more[seed] - less[seed] for seed in sorted(more.keys() & less.keys())]


def _best_of_seeds(labels: Sequence[str], figure: str, results: Sequence[Result]) -> dict[int, float]:
    """The best of some methods, for each seed that has them all."""
    if labels == (BASE,):
        return {result.seed: result.base(figure) for result in results}
    methods = [{r.seed: r.last(figure) for r in results if r.label == label} for label in labels]
    return {seed: max(of[seed] for of in methods) for seed in methods[0] if all(seed in of for of in methods)}
