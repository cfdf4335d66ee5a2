"""Python programs checked by unit tests: MBPP to train on, HumanEval to test on. The reward is the share passed."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import load_dataset

from trainer_example.tasks.sandbox import Limits, shares_passed
from trainer_example.tasks.task import Problem, Task

INSTRUCTION = "Answer with Python code alone, in one ```python block."
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Checks:
    """What surrounds a program: source before it, tests behind it, and the head that a continuation leaves out."""

    setup: str
    tests: tuple[str, ...]
    head: str = ""
    entry_point: str = ""


class MbppToHumanEval(Task):
    """The reward is continuous: the share of a problem's tests that the answer passes, in a sandbox.

    Args:
        mbpp: of the hub, or a folder of the same format: columns text, test_list and test_setup_code.
        humaneval: the same: columns prompt, test and entry_point.
        max_new_tokens: how long an answer may get, in tokens.
        seconds: that a program may take, all its tests together.
        memory_mib: that it may use.
    """

    def __init__(
        self,
        mbpp: str = "google-research-datasets/mbpp",
        humaneval: str = "openai/openai_humaneval",
        max_new_tokens: int = 512,
        seconds: float = 10.0,
        memory_mib: int = 512,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self._limits = Limits(seconds=seconds, memory_bytes=memory_mib * 1024**2)
        self.train = [_of_mbpp(row) for row in load_dataset(mbpp, split="train")]
        self.test = [_of_humaneval(row) for row in load_dataset(humaneval, split="test")]

    def reward(self, problem: Problem, answer: str) -> float:
        """The share of tests that the answer's code passes."""
        return self.rewards([problem], [answer])[0]

    def rewards(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
        """The same of many, several at a time."""
        programs = [program(p.reference, answer) for p, answer in zip(problems, answers, strict=True)]
        return shares_passed(
            [(text, p.reference.tests) for text, p in zip(programs, problems, strict=True)], self._limits
        )


def program(checks: Checks, answer: str) -> str:
    """The code of an answer (its last block, or all of it), behind what it may take for granted."""
    blocks = _BLOCK.findall(answer)
    code = blocks[-1] if blocks else answer
    if checks.head and not re.search(rf"^def {re.escape(checks.entry_point)}\b", code, re.MULTILINE):
        code = checks.head + code
    return f"{checks.setup}\n{code}\n"


def _of_mbpp(row: dict[str, Any]) -> Problem:
    tests = "\n".join(row["test_list"])
    prompt = f"{row['text']}\nYour code must pass these tests:\n{tests}\n{INSTRUCTION}\n"
    return Problem(prompt, Checks(row["test_setup_code"], tuple(row["test_list"])))


def _of_humaneval(row: dict[str, Any]) -> Problem:
    tests = separate_tests(row["test"], row["entry_point"])
    prompt = f"Complete this function:\n```python\n{row['prompt']}```\n{INSTRUCTION}\n"
    return Problem(prompt, Checks("", tests, row["prompt"], row["entry_point"]))


def separate_tests(source: str, entry_point: str) -> tuple[str, ...]:
    """HumanEval's one `check(candidate)` as a test for each statement that asserts something.

    What the others do (make inputs, say) is repeated in front of each.
    """
    module = ast.parse(source)
    check = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check")
    body = check.body
    asserting = [any(isinstance(node, ast.Assert) for node in ast.walk(statement)) for statement in body]
    tests = []
    for number, asserts in enumerate(asserting):
        if asserts:
            check.body = [s for s, other in zip(body[:number], asserting, strict=False) if not other] + [body[number]]
            tests.append(f"{ast.unparse(module)}\ncheck({entry_point})\n")
    return tuple(tests)
