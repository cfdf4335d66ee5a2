"""Hendrycks MATH, checked by math-verify."""

from __future__ import annotations

from datasets import concatenate_datasets, load_dataset
from math_verify import LatexExtractionConfig, parse, verify

from trainer_example.tasks.task import Problem, Task

DATASET = "EleutherAI/hendrycks_math"
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
INSTRUCTION = "Reason step by step, and put the final answer within \\boxed{}."


class HendrycksMath(Task):
    """12,500 competition problems, split as published: 7,500 to train on and 5,000 to test on.

    Args:
        dataset: of the hub, or a folder of the same format: columns problem and solution, a configuration a subject.
        subjects: those to take, joined by "+".
        max_new_tokens: how long an answer may get, in tokens.
    """

    def __init__(self, dataset: str = DATASET, subjects: str = "+".join(SUBJECTS), max_new_tokens: int = 1024) -> None:
        self.max_new_tokens = max_new_tokens
        self.train = _problems(dataset, subjects, "train")
        self.test = _problems(dataset, subjects, "test")

    def reward(self, problem: Problem, answer: str) -> float:
        """1 if the last box of the answer equals the solution's, as math-verify understands both."""
        _, box, behind = answer.rpartition("\\boxed")  # of several, math-verify would take all for one answer
        given = parse(box + behind, [LatexExtractionConfig(boxed_match_priority=0)]) if box else []
        # Its timeouts are signals, which only the main thread gets: that is where the loop asks for rewards. An answer
        # that cannot be read or compared in time (a tower of powers, say) is wrong.
        return float(verify(problem.reference, given))


def _problems(dataset: str, subjects: str, split: str) -> list[Problem]:
    rows = concatenate_datasets([load_dataset(dataset, subject, split=split) for subject in subjects.split("+")])
    problems = [Problem(f"{row['problem']}\n{INSTRUCTION}\n", parse(row["solution"])) for row in rows]
    return [problem for problem in problems if problem.reference]  # math-verify cannot read a few solutions
