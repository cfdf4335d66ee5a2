"""What the papers say, each as one comparison on the runs of an experiment, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer_example.experiments.plan import ANNEALED, TZSM
from trainer_example.experiments.results import Result
from trainer_example.experiments.statistics import Mean, holm

BASE = "the model before training"
SIGNIFICANT = 0.05
SOLVED = "solved_in_training"


@dataclass(frozen=True)
class Claim:
    """`figure` of the `more` method is above that of the `less` method.

    Attributes:
        number: C1 to C7, or "base".
        experiment: by its name.
        figure: of the last evaluation, or `solved_in_training`.
        more: the method that the claim is for.
        less: the one that it is held against, or BASE.
    """

    number: str
    experiment: str
    figure: str
    more: str
    less: str


@dataclass(frozen=True)
class Finding:
    """What came out of a claim.

    Attributes:
        claim: that was tried.
        difference: over the seeds that both methods have.
        p: of the difference, two-sided.
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
            return "not shown"
        return "**shown**" if self.difference.value > 0 else "**the opposite**"


def _matched(experiment: str, measure: str) -> list[Claim]:
    return [
        Claim("C1", experiment, f"{measure}@1", "k = 1", "k = 8"),
        Claim("C1", experiment, f"{measure}@8", "k = 8", "k = 1"),
        Claim("C1", experiment, f"{measure}@16", TZSM, "k = 1"),
    ]


CLAIMS = (
    *_matched("ambiguous", "pass"),
    *_matched("digits", "max"),
    *_matched("fog", "pass"),
    *(
        Claim("C2", name, figure, "k = 8", "k = 1")
        for name in ("ambiguous", "digits", "fog")
        for figure in ("entropy", SOLVED)
    ),
    Claim("C3", "hard", SOLVED, "k = 8", "k = 1"),
    Claim("C3", "hard", "pass@1", "k = 8", "k = 1"),
    Claim("C3", "hard", "pass@16", "k = 8", "k = 1"),
    *(Claim("C4", name, figure, ANNEALED, "k = 1") for name in ("ambiguous", "hard") for figure in ("pass@1", SOLVED)),
    Claim("C5", "ambiguous", "pass@8", "k = 8", TZSM),
    Claim("C5", "hard", "pass@8", "k = 8", TZSM),
    Claim("C5", "hard", SOLVED, "k = 8", TZSM),
    *(Claim("C6", "ambiguous", "pass@8", "k = 8", f"entropy {coefficient}") for coefficient in ("0.01", "0.05", "0.1")),
    Claim("C6", "hard", SOLVED, "k = 8", "entropy 0.01"),
    Claim("C7", "ambiguous", "pass@8", "Pass@k analytic, k = 8", "k = 1"),
    Claim("C7", "ambiguous", "pass@8", "Pass@k analytic, k = 8", "Pass@k bootstrap, k = 8"),
    Claim("C7", "ambiguous", "pass@8", "Pass@k bootstrap, k = 8", "Pass@k full, k = 8"),
    Claim("C7", "hard", SOLVED, "Pass@k analytic, k = 8", "k = 1"),
    Claim("base", "ambiguous", "pass@16", "k = 8", BASE),
    Claim("base", "hard", "pass@16", "k = 8", BASE),
    Claim("base", "hard", "pass@16", "k = 1", BASE),
    Claim("base", "digits", "pass@16", "k = 8", BASE),
    Claim("base", "digits", "max@16", "k = 8", BASE),
    Claim("base", "fog", "pass@16", "k = 8", BASE),
    Claim("base", "sums", "pass@16", "k = 8", BASE),
    Claim("base", "sums", "pass@16", "k = 1", BASE),
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
        family = [(claim, mean, mean.p_value()) for claim, mean in means if claim.number == number]
        adjusted = holm([p for _, _, p in family])
        found += [Finding(*row, p_adjusted) for row, p_adjusted in zip(family, adjusted, strict=True)]
    return found


def _differences(claim: Claim, results: Sequence[Result]) -> list[float]:
    """Seed by seed."""
    more = {result.seed: result for result in results if result.label == claim.more}
    less = more if claim.less == BASE else {result.seed: result for result in results if result.label == claim.less}
    return [
        more[seed].last(claim.figure)
        - (less[seed].base(claim.figure) if claim.less == BASE else less[seed].last(claim.figure))
        for seed in sorted(more.keys() & less.keys())
    ]
