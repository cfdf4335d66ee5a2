"""What was answered, held to what is exact: to an estimator's own formula, and to the gradient of pass@k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison.cases import Case, Policy
from benchmarks.comparison.estimators import Estimator

#: An answer is right where no advantage is off by more than this share of its group's largest, or by this much where
#: all of them should be 0: far more than float32 costs, far less than training notices.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """What an answer is.

    Attributes:
        kind: "right", "wrong", "no number" (NaN or infinite), "crash" (any error but a ValueError), "refuses" (a
            ValueError), "silent" (a reward of NaN taken for 0), or "not asked".
        text: as the tables have it.
        off: the largest error, of what can be right or wrong.
    """

    kind: str
    text: str
    off: float = math.nan


def verdict(estimator: Estimator, case: Case, answer: Any) -> Verdict:
    """What an estimator's answer to a case is."""
    unasked = _unasked(estimator, case)
    if unasked:
        return Verdict("not asked", unasked)
    if isinstance(answer, dict):
        if "not_asked" in answer:
            return Verdict("not asked", answer["not_asked"])
        return Verdict("refuses", "refuses") if answer["refusal"] else Verdict("crash", f"**{answer['raised']}**")

    groups = [group.astype(estimator.precision).astype(float) for group in case.rewards()]
    largest = max(group.size for group in groups)
    answers = [np.asarray(group, float) for group in answer]
    if estimator.needs_0_or_1:
        binary = [np.isin(group[~np.isnan(group)], (0, 1)).all() for group in groups]
        groups, answers = (
            [each for each, kept in zip(listed, binary, strict=True) if kept] for listed in (groups, answers)
        )
    if any(np.isnan(group).any() for group in groups):
        return _of_missing(estimator, case, groups, answers, largest)
    if not all(np.isfinite(group).all() for group in answers):
        return _no_number(answers)
    exact = [_exact(estimator, case, group, largest) for group in groups]
    given = [(group, answered) for group, answered in zip(exact, answers, strict=True) if group is not None]
    undefined = [answered for group, answered in zip(exact, answers, strict=True) if group is None]
    if not given:
        return Verdict("wrong", f"**{_numbers(undefined)} where none exists**")
    return _of_numbers(given, f"; alone {_numbers(undefined)}" if undefined else "")


def _unasked(estimator: Estimator, case: Case) -> str:
    """Why a case is no question to an estimator; empty where it is one."""
    if case.about_k and not estimator.takes:
        return "takes no k"
    if case.about_k and estimator.takes == "n" and case.k != len(case.groups[0]):
        return "k is n"
    if case.precise and estimator.precision == "float32":
        return "rewards are float32"
    if estimator.needs_0_or_1 and all(set(group) - {0.0, 1.0} for group in case.groups):
        return "not for these rewards"
    return ""


def _exact(estimator: Estimator, case: Case, group: NDArray[Any], largest: int) -> NDArray[Any] | None:
    advantages = estimator.exact(group.tolist(), case.k)
    if advantages is None:
        return None
    return np.array(advantages) * (largest / group.size if estimator.fixed_n else 1.0)


def _of_missing(estimator: Estimator, case: Case, groups: list[Any], answers: list[Any], largest: int) -> Verdict:
    if not all(np.isfinite(group).all() for group in answers):
        return _no_number(answers)
    left_out, taken_as_0 = [], []
    for group in groups:
        there = ~np.isnan(group)
        left_out.append(np.zeros(group.size))
        left_out[-1][there] = _exact(estimator, case, group[there], largest)
        taken_as_0.append(_exact(estimator, case, np.where(there, group, 0.0), largest))
    for exact, kind, text in ((left_out, "right", "left out"), (taken_as_0, "silent", "**taken as 0**")):
        judged = _of_numbers(list(zip(exact, answers, strict=True)), "")
        if judged.kind == "right":
            return Verdict(kind, text, judged.off)
    return Verdict("wrong", f"**{_numbers(answers)}**")


def _of_numbers(given: Sequence[tuple[Any, Any]], remark: str) -> Verdict:
    worst, text = 0.0, ""
    for exact, answered in given:
        largest = np.abs(exact).max()
        off = float(np.abs(answered - exact).max() / (largest or 1))
        if off >= worst:
            worst, text = off, f"off by {_share(off)}" if largest else f"{np.abs(answered).max():.1e} for 0"
    if worst > TOLERANCE:
        return Verdict("wrong", f"**{text}**{remark}", worst)
    return Verdict("right", f"right{remark}", worst)


def _no_number(answers: list[Any]) -> Verdict:
    flat = np.concatenate(answers)
    bad = int((~np.isfinite(flat)).sum())
    return Verdict("no number", f"**NaN for {'all' if bad == flat.size else f'{bad} of {flat.size}'}**")


def _numbers(answers: list[Any]) -> str:
    """The numbers of an answer, the most frequent ones."""
    found = Counter(f"{value:.3g}" for value in np.concatenate(answers).tolist())
    return ", ".join(value for value, _ in found.most_common(3)) + (", ..." if len(found) > 3 else "")


def _share(off: float) -> str:
    return f"{100 * off:.2g}%" if off < 1 else f"{100 * off:.0f}%"


# --- what an estimator follows ---------------------------------------------------------------------------------------


def gradient(policy: Policy, k: int) -> NDArray[np.float64]:
    """The exact gradient of the mean over prompts of max@k, by the logits of the answers: (prompts, answers).

    max@k is the sum of the levels times the probability that the best of k is of that level, F_l^k - F_{l-1}^k.
    """
    rows = []
    for probabilities in policy.prompts:
        p = np.array(probabilities)
        below = np.concatenate([[0.0], np.cumsum(p)])
        # By p_j of F_l^k - F_{l-1}^k: k F_l^(k-1) for j <= l, less the same of l - 1.
        by_p = np.zeros(p.size)
        for level, reward in enumerate(policy.levels):
            for edge, sign in ((level + 1, 1.0), (level, -1.0)):
                by_p[:edge] += sign * reward * k * below[edge] ** (k - 1)
        rows.append(p * (by_p - p @ by_p) / len(policy.prompts))
    return np.array(rows)


def expected_update(policy: Policy, advantages: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The mean, over all groups there are, of the sum of A_i grad log p(y_i), as `gradient` is laid out."""
    rows = []
    for probabilities in policy.prompts:
        p = np.array(probabilities)
        update = np.zeros(p.size)
        for group, of_group in zip(policy.groups(), advantages, strict=True):
            counts = np.bincount(group, minlength=p.size)
            arrangements = math.factorial(policy.n) / math.prod(map(math.factorial, counts.tolist()))
            per_answer = np.bincount(group, weights=of_group, minlength=p.size)
            update += arrangements * np.prod(p**counts) * (per_answer - np.sum(of_group) * p)
        rows.append(update / len(policy.prompts))
    return np.array(rows)


def angle(policy: Policy, k: int, advantages: Any) -> float:
    """Between the expected update and the gradient of max@k, in degrees; NaN where there is no update."""
    if isinstance(advantages, dict):
        return math.nan
    update, exact = expected_update(policy, advantages).ravel(), gradient(policy, k).ravel()
    update, exact = (vector / np.abs(vector).max() if np.abs(vector).max() else vector for vector in (update, exact))
    if not np.isfinite(update).all() or not update.any():
        return math.nan
    # More exact for small angles than the cosine.
    update, exact = update / np.linalg.norm(update), exact / np.linalg.norm(exact)
    return math.degrees(2 * math.atan2(np.linalg.norm(update - exact), np.linalg.norm(update + exact)))
