"""Python programs checked by unit tests: MBPP to train on, HumanEval to test on. The reward is the share passed."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import load_dataset

from trainer_example.tasks.sandbox import Limits, shares_passed
from trainer_example.tasks.task import Problem, Task

INSTRUCTION = "Answer with Python code alone, in one ```python block."
_FENCE = re.compile(r"\s*```")


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
    """The code of an answer, behind what it may take for granted.

    That is the last of its blocks that defines what is asked for, or else the last that is Python at all, or the whole
    answer. Of a function whose head was given, a continuation is enough.
    """
    blocks = [textwrap.dedent(block) for block in _blocks(answer)] or [answer]
    written = [block for block in blocks if _defines(block, checks.entry_point)]
    if written:
        # The head also holds imports and helpers, which the answer need not repeat.
        head = f"{checks.head}    pass\n" if checks.head else ""
        return f"{checks.setup}\n{head}{written[-1]}\n"
    continued = _blocks(answer) or [answer]
    python = [block for block in continued if _is_python(checks.head + block)]
    return f"{checks.setup}\n{checks.head}{(python or continued)[-1]}\n"


def _blocks(answer: str) -> list[str]:
    """What stands between fences, the last of which may be missing."""
    blocks: list[list[str]] = []
    inside = False
    for line in answer.splitlines():
        if _FENCE.match(line):
            inside = not inside
            blocks += [[]] if inside else []
        elif inside:
            blocks[-1].append(line)
    return ["\n".join(lines) + "\n" for lines in blocks]


def _defines(source: str, entry_point: str) -> bool:
    """Whether it is Python, and defines the function; any, where none is named."""
    if not _is_python(source):
        return False
    names = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return entry_point in names if entry_point else bool(names)


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


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

    What the others do (make inputs, say) is repeated in front of each. Asserting a constant asserts nothing.
    """
    module = ast.parse(source)
    check = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check")
    body = check.body
    asserting = [
        any(isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant) for node in ast.walk(statement))
        for statement in body
    ]
    tests = []
    for number, asserts in enumerate(asserting):
        if asserts:
            check.body = [s for s, other in zip(body[:number], asserting, strict=False) if not other] + [body[number]]
            tests.append(f"{ast.unparse(module)}\ncheck({entry_point})\n")
    return tuple(tests) or (f"{source}\ncheck({entry_point})\n",)
