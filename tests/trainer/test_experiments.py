"""The experiments: what a seed decides, that nothing tested on is trained on, statistics, going on, and the page."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import multiprocessing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from live_server import LiveServer, poll
from pkpo_client import DeadlineExceeded
from trainer_example.configuration import Configuration
from trainer_example.experiments import plan, results, work
from trainer_example.experiments.__main__ import EX_TEMPFAIL, PAGE, main
from trainer_example.experiments.claims import BASE, CLAIMS, OPPOSITE, SHOWN, UNDECIDED, Claim, findings
from trainer_example.experiments.lock import Locked, locked
from trainer_example.experiments.page import BEGIN, END, METHODS, SUBJECTS, write_page
from trainer_example.experiments.pictures import DRAWINGS
from trainer_example.experiments.plan import (
    AGAIN,
    AMBIGUOUS,
    ANNEALED,
    AT_SWITCH,
    BY_K,
    DIGITS,
    EXPERIMENTS,
    HARD,
    Experiment,
    K,
    Run,
)
from trainer_example.experiments.provenance import PROVENANCE, SHOWING, SOURCES, provenance
from trainer_example.experiments.results import SOLVED, Result
from trainer_example.experiments.statistics import Mean, holm
from trainer_example.experiments.yardsticks import best_chances, solved
from trainer_example.metrics import METRICS_FILE
from trainer_example.tasks import Problem, Task, task_named
from trainer_example.tasks.fog import WALL, Fog
from trainer_example.tasks.rules import Rules
from trainer_example.train import Interrupted, train

STEPS = 20
TINY = dataclasses.replace(
    AMBIGUOUS,
    task="rules:continuous=true",  # so that some answers of a model that knows nothing are worth something
    options={
        "steps": STEPS,
        "evaluate_every": 10,
        "learning_rate": 1e-3,
        "evaluation_prompts": 16,
        "prompts_per_step": 8,
        "warm_start_steps": 5,
        "checkpoint_every": 5,
    },
    methods={"k = 8": "k:8", ANNEALED: AT_SWITCH},
    seeds=1,
)
FIVE_SEEDS = [dataclasses.replace(experiment, seeds=5) for experiment in EXPERIMENTS]


class TestPlan:
    def test_a_seed_decides_everything(self) -> None:
        one, other = (Run(AMBIGUOUS, "k = 8", seed).options() for seed in (1, 2))
        assert {name for name in one if one[name] != other[name]} == {"task", "seed", "model_seed"}
        assert task_named(one["task"]).train != task_named(other["task"]).train

    def test_another_version_has_other_seeds_and_keys(self) -> None:
        for experiment in EXPERIMENTS:
            other = dataclasses.replace(experiment, version=experiment.version + 1)
            runs = experiment.runs(), other.runs()
            seeds, others = ({run.options(switch=5)["seed"] for run in of} for of in runs)
            assert not seeds & others
            keys, others = ({run.key(switch=5) for run in of} for of in runs)
            assert not keys & others

    def test_methods_of_a_seed_differ_in_the_method_alone(self) -> None:
        for experiment in EXPERIMENTS:
            labels = experiment.methods.keys() - experiment.rates.keys()
            told = [Run(experiment, label, 1).options(switch=5) for label in labels]
            assert len({options.pop("method") for options in told}) == len(told)
            assert all(options == told[0] for options in told)

    def test_other_rates_are_of_the_same_method_and_differ_in_nothing_else(self) -> None:
        of_rates = [experiment for experiment in EXPERIMENTS if experiment.rates]
        assert {experiment.name for experiment in of_rates} == {"hard", "fog", "sums"}
        for experiment in of_rates:
            usual = Run(experiment, "k = 1", 1).options()
            for label, times in experiment.rates.items():
                told = Run(experiment, label, 1).options()
                assert told["learning_rate"] == pytest.approx(times * usual["learning_rate"])
                assert {**told, "learning_rate": None} == {**usual, "learning_rate": None}

    def test_every_run_is_one_that_the_trainer_takes_and_has_a_key_of_its_own(self) -> None:
        runs = plan.runs_of(EXPERIMENTS)
        for run in runs:
            Configuration(**run.options(switch=5))
        assert len({run.key(switch=5) for run in runs}) == len(runs)

    def test_other_options_another_key(self) -> None:
        run = TINY.runs()[0]
        longer = Run(dataclasses.replace(TINY, options={**TINY.options, "steps": 7}), run.label, run.seed)
        assert run.key() != longer.key()
        assert run.key() == Run(TINY, run.label, run.seed).key()

    def test_every_claim_is_of_methods_that_are_run(self) -> None:
        methods = {experiment.name: {*experiment.methods, BASE} for experiment in EXPERIMENTS}
        assert all({*claim.more, *claim.less} <= methods[claim.experiment] for claim in CLAIMS)
        assert not any({*claim.more} & {*claim.less} for claim in CLAIMS)

    def test_every_claim_has_a_subject(self) -> None:
        assert {claim.number for claim in CLAIMS} == set(SUBJECTS)

    def test_k_is_matched_with_its_neighbours(self) -> None:
        of_digits = {claim.figure: claim for claim in CLAIMS if (claim.number, claim.experiment) == ("C1", "digits")}
        assert set(of_digits) == {f"max@{k}" for k in K}
        assert of_digits["max@4"].more == ("k = 2", "k = 4", "k = 8")
        assert of_digits["max@1"].more == ("k = 1", "k = 2")
        assert all({*claim.more, *claim.less} == {*BY_K} for claim in of_digits.values())

    def test_three_seeds_of_k_then_of_the_other_methods_then_further_seeds(self) -> None:
        runs = plan.runs_of(FIVE_SEEDS)
        stages = [1 + (run.label not in BY_K) if run.seed <= 3 else 3 for run in runs]
        assert stages == sorted(stages)
        assert stages.count(1) == 3 * sum(len({*e.methods} & {*BY_K}) for e in EXPERIMENTS)
        assert len(runs) == 5 * sum(len(e.methods) for e in EXPERIMENTS)


class TestSplits:
    @pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
    def test_no_test_prompt_is_a_training_prompt(self, experiment: Experiment) -> None:
        task = task_named(Run(experiment, next(iter(experiment.methods)), 1).options()["task"])
        assert len(task.train) == 10_000
        assert len(task.test) >= 300
        assert work.shared_prompts(task) == 0

    def test_one_that_is_would_be_found(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        original = Rules.__init__

        def leaking(task: Rules, **options: Any) -> None:
            original(task, **options)
            task.test = [*task.test[:-1], Problem(task.train[7].prompt, "0000")]

        monkeypatch.setattr(Rules, "__init__", leaking)
        with pytest.raises(ValueError, match="1 test prompts that are training prompts"):
            work.done(TINY.runs()[0], "127.0.0.1:1", tmp_path)

    def test_one_that_is_demonstrated_would_be_found(
        self, server: LiveServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        original = Rules.demonstrations

        def leaking(task: Rules, generator: np.random.Generator, count: int) -> list[tuple[str, str]]:
            return [*original(task, generator, count - 1), (task.test[7].prompt, "0000")]

        monkeypatch.setattr(Rules, "demonstrations", leaking)
        with pytest.raises(ValueError, match="1 test prompts in a batch of its demonstrations"):
            work.done(TINY.runs()[0], server.address, tmp_path)
        assert results.results_of(TINY, tmp_path) == []


class TestStatistics:
    def test_a_mean_over_seeds(self) -> None:
        mean = Mean.of([1.0, 2.0, 3.0])
        assert (mean.value, mean.n) == (2.0, 3)
        assert mean.error == pytest.approx(1 / math.sqrt(3))
        assert mean.p_value() == pytest.approx(0.0742, abs=1e-4)
        assert mean.p_value(2.0) == 1.0
        assert mean.p_value(4.0) == pytest.approx(mean.p_value())
        assert mean.interval() == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
        assert math.isnan(Mean.of([1.0]).p_value())
        assert math.isnan(Mean.of([1.0]).interval()[0])
        assert math.isnan(Mean.of([1.0]).range_of_one_more()[0])
        # 2 -+ t(0.975; 2) * 1 * sqrt(1 + 1/3)
        assert mean.range_of_one_more() == pytest.approx((2 - 4.30265 * 1.154701, 2 + 4.30265 * 1.154701), rel=1e-5)
        with pytest.raises(ValueError, match="values: are none"):
            Mean.of([])

    def test_holm(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.5, math.nan, 0.9])[0] == 1.0
        assert math.isnan(holm([0.5, math.nan])[1])

    def test_differences_are_taken_seed_by_seed(self) -> None:
        """Seeds lie far apart, methods do not: unpaired nothing would show."""
        of = [made("k = 8", seed, seed / 10 + 0.02 + seed / 1000) for seed in (1, 2, 3, 4)]
        of += [made("k = 1", seed, seed / 10) for seed in (1, 2, 3, 4, 5)]
        (found,) = findings({"hard": of}, [Claim("C3", "hard", "pass@8", ("k = 8",), ("k = 1",))])
        assert found.difference.n == 4
        assert found.difference.value == pytest.approx(0.0225)
        assert found.verdict == SHOWN
        (found,) = findings({"hard": of}, [Claim("C3", "hard", "pass@8", ("k = 1",), ("k = 8",))])
        assert found.verdict == OPPOSITE

    def test_claims_of_a_number_are_adjusted_together(self) -> None:
        of = [made(label, seed, value + seed**2 / 1000 * (label == "k = 8"))
              for label, value in (("k = 8", 0.5), ("k = 1", 0.45)) for seed in (1, 2, 3)]  # fmt: skip
        claims = [Claim(number, "hard", "pass@8", ("k = 8",), ("k = 1",)) for number in ("C3", "C3", "C5")]
        first, second, alone = findings({"hard": of}, claims)
        assert first.adjusted == second.adjusted == pytest.approx(2 * first.p)
        assert alone.adjusted == alone.p == first.p

    def test_the_best_of_a_side_is_chosen_seed_by_seed(self) -> None:
        """Neither baseline is the better in all seeds; one seed lacks one of them, and does not count."""
        values = {"k = 8": (0.5, 0.6, 0.7), "entropy 0.01": (0.4, 0.1, 0.5), "entropy 0.1": (0.1, 0.5)}
        of = [made(label, seed, value) for label, row in values.items() for seed, value in enumerate(row, 1)]
        (found,) = findings({"hard": of}, [Claim("C6", "hard", "pass@1", ("k = 8",), ("entropy 0.01", "entropy 0.1"))])
        assert found.difference.n == 2
        assert found.difference.value == pytest.approx(0.1)
        (found,) = findings({"hard": of}, [Claim("C6", "hard", "pass@1", ("entropy 0.01", "entropy 0.1"), ("k = 8",))])
        assert found.difference.value == pytest.approx(-0.1)

    def test_no_worse_is_less_than_the_margin_worse(self) -> None:
        of = [made("k = 1", seed, seed / 10) for seed in (1, 2, 3, 4)]
        of += [made("k = 8", seed, seed / 10 - 0.004 - seed / 10_000) for seed in (1, 2, 3, 4)]
        verdicts = []
        for margin in (0.01, 0.0043, 0.0):
            (found,) = findings({"hard": of}, [Claim("C4", "hard", "pass@1", ("k = 8",), ("k = 1",), margin)])
            assert found.difference.value == pytest.approx(-0.00425)
            verdicts.append(found.verdict)
        assert verdicts == [SHOWN, UNDECIDED, OPPOSITE]

    def test_the_model_before_training_is_that_of_the_seed(self) -> None:
        of = [made("k = 8", seed, 0.5, base=0.1 * seed) for seed in (1, 2, 3)]
        (found,) = findings({"hard": of}, [Claim("base", "hard", "pass@16", ("k = 8",), (BASE,))])
        assert found.difference.value == pytest.approx(0.3)

    def test_a_claim_of_one_seed_is_none(self) -> None:
        of = [made("k = 8", 1, 0.5), made("k = 1", 1, 0.1)]
        assert findings({"hard": of}, [Claim("C3", "hard", "pass@8", ("k = 8",), ("k = 1",))]) == []


class TestFog:
    def test_a_way_is_right_that_meets_no_wall(self) -> None:
        task = task_named("fog:train_prompts=50,test_prompts=10")
        for problem in task.train:
            walls = np.array(problem.reference).reshape(5, 5)
            right = set()
            for way in task._ways:  # type: ignore[attr-defined]
                row = column = 0
                free = not walls[0, 0]
                for step in way:
                    row, column = row + (step == "D"), column + (step == "R")
                    free &= not walls[row, column]
                right |= {way} if free else set()
            assert right
            assert {way for way in task._ways if task.reward(problem, way) == 1.0} == right  # type: ignore[attr-defined]
        assert [task.reward(problem, answer) for answer in ("", "RRRR", "R" * 8, "no")] == [0.0] * 4

    def test_it_shows_what_is_seen_and_hides_some_walls(self) -> None:
        task = task_named("fog:train_prompts=400")
        cells = [(sign, wall) for p in task.train for sign, wall in zip(p.prompt[:-1], p.reference, strict=True)]
        assert all(wall == (sign == "#") for sign, wall in cells if sign != "?")
        in_fog = [wall for sign, wall in cells if sign == "?"]
        # As the page says: less than half, because corners are free and there is always a way through.
        assert len(in_fog) / len(cells) == pytest.approx(0.44, abs=0.02)
        assert np.mean(in_fog) == pytest.approx(0.43, abs=0.025)

    def test_demonstrations_meet_no_wall_that_is_seen(self) -> None:
        task = task_named("fog:train_prompts=5")
        for prompt, way in task.demonstrations(np.random.default_rng(0), 50):
            cells = [way[:steps].count("D") * 5 + way[:steps].count("R") for steps in range(9)]
            assert "#" not in [prompt[cell] for cell in cells]


class TestYardsticks:
    @pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
    def test_no_chances_are_better_than_the_best(self, k: int) -> None:
        best = best_chances(k)
        assert sum(best) == pytest.approx(1)
        assert min(best) >= 0
        others = np.random.default_rng(k).dirichlet(np.full(6, 0.5), 2000)
        assert max(solved(other, k) for other in others) <= solved(best, k)
        # Near the best they are nearly as good, so that it is no corner that nothing comes close to.
        near = np.random.default_rng(k).dirichlet(2000 * np.array(best) + 1e-3)
        assert solved(near, k) == pytest.approx(solved(best, k), abs=0.01)

    def test_the_chances_in_a_maze_are_those_of_answering_so(self) -> None:
        task = Fog(train_prompts=1, test_prompts=50)
        ways = [a + b for a in map("".join, product("RD", repeat=4)) for b in map("".join, product("RD", repeat=4))]
        for problem in task.test:
            rewards = [task.reward(problem, way) for way in ways if way.count("R") == 4]
            chances = task.chances(problem)
            assert chances["any way"] == pytest.approx(sum(rewards) / len(rewards))
            assert sum(rewards) > 0
            assert chances["any way that meets no wall that is seen"] >= chances["any way"]

    def test_demonstrations_are_as_good_as_any_way_that_meets_no_wall_that_is_seen(self) -> None:
        task = Fog(train_prompts=1, test_prompts=1)
        shown = task.demonstrations(np.random.default_rng(0), 200)
        for prompt, _ in shown:
            without_surprises = Problem(prompt, [cell == WALL for cell in prompt[:25]])
            assert task.chances(without_surprises)["any way that meets no wall that is seen"] == 1

    def test_they_stand_under_the_table(self, tmp_path: Path) -> None:
        for run in dataclasses.replace(AMBIGUOUS, seeds=2).runs():
            if run.label == "k = 1":
                results.save_result(made(run.label, run.seed, 0.3), results.result_path(tmp_path, run.key()))
        write_page([AMBIGUOUS], tmp_path, tmp_path / "page.md")
        text = (tmp_path / "page.md").read_text()
        assert "| *every rule, as likely as is best for that k* | 40.0 | 47.8 | 63.3 | 81.8 | 95.7 |" in text


def test_shared_prompts_counts_each() -> None:
    class Two(Task):
        train = (Problem("a", 1), Problem("b", 2))
        test = (Problem("b", 3), Problem("c", 4), Problem("b", 5))
        max_new_tokens = 1

        def reward(self, problem: Problem, answer: str) -> float:
            return 0.0

    assert work.shared_prompts(Two()) == 2


class TestRuns:
    def test_killed_and_started_again_it_ends_the_same(self, server: LiveServer, tmp_path: Path) -> None:
        run = TINY.runs()[0]
        whole = work.done(run, server.address, tmp_path / "whole")
        folder = tmp_path / "killed"
        checkpoints = folder / "under_way" / run.key() / "checkpoints"
        process = multiprocessing.get_context("spawn").Process(target=work.done, args=(run, server.address, folder))
        process.start()
        poll(lambda: list(checkpoints.glob("step-??????")), "first checkpoint", 200)
        process.kill()
        process.join()
        assert results.result_of(run, folder) is None
        again = work.done(run, server.address, folder)
        assert timeless(again) == timeless(whole)
        assert again == results.result_of(run, folder)
        assert not list((folder / "under_way").iterdir())

    def test_all_are_done_once_and_the_page_is_of_them(self, server: LiveServer, tmp_path: Path) -> None:
        told: list[tuple[str, int]] = []

        def tell(run: Run, result: Result, left: int) -> None:
            assert result == results.result_of(run, tmp_path)
            told.append((run.label, left))

        work.do_all(TINY.runs(), server.address, tmp_path, 2, tell)
        assert told == [("k = 8", 1), (ANNEALED, 0)]
        exploring, annealed = results.results_of(TINY, tmp_path)
        switch = exploring.switch()
        assert annealed.evaluations[0] == exploring.evaluations[0]  # the same model, the same prompts
        assert annealed.training[:switch] == exploring.training[:switch]
        assert annealed.training[-1] != exploring.training[-1]
        assert annealed.options["method"] == f"k:8@0,1@{switch}"
        assert annealed.groups == STEPS * 8
        assert annealed.passes == STEPS * 8 / 10_000
        assert annealed.provenance == PROVENANCE
        work.do_all(TINY.runs(), server.address, tmp_path, 2, tell)
        assert len(told) == 2
        write_page([TINY], tmp_path, tmp_path / "results.md")
        assert f"at step {switch}." in (tmp_path / "results.md").read_text()

    def test_what_is_kept_of_the_steps_is_of_all_of_them(
        self, server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As of a run that was done but for its result when it was killed: nothing is left to train."""
        run = TINY.runs()[0]
        norms = (0.5, 2.0, 3.5, 0.5)

        def trained_before(configuration: Configuration) -> None:
            path = Path(configuration.run_dir) / METRICS_FILE
            path.parent.mkdir(parents=True)
            same = {"kind": "train", "step_seconds": 0.25, **dict.fromkeys((*results.CURVES, SOLVED), 1.0)}
            trained = [{"step": step, "gradient_norm": norm, **same} for step, norm in enumerate(norms, 1)]
            path.write_text("".join(json.dumps(record) + "\n" for record in trained))

        monkeypatch.setattr(work, "train", trained_before)
        result = work.done(run, server.address, tmp_path)
        assert (result.seconds, result.gradient_norm, result.clipped) == (1.0, 1.625, 0.5)

    def test_one_that_follows_a_run_that_nobody_does_is_refused(self, server: LiveServer, tmp_path: Path) -> None:
        annealed = [run for run in TINY.runs() if run.label == ANNEALED]
        with pytest.raises(ValueError, match="8, then 1 of seed 1 follows k = 8, which is not among them"):
            work.do_all(annealed, server.address, tmp_path, 1, lambda run, result, left: None)

    @pytest.mark.parametrize("failures", [2, 3])
    def test_a_server_that_is_away_for_a_while_is_waited_for(
        self, failures: int, server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = [Interrupted("away"), DeadlineExceeded("late"), Interrupted("away")][:failures]

        def sometimes(configuration: Configuration) -> None:
            if left:
                raise left.pop()
            train(configuration)

        monkeypatch.setattr(work, "train", sometimes)
        run = TINY.runs()[0]
        if failures == work.ATTEMPTS:
            with pytest.raises(Interrupted, match="away"):
                work.done(run, server.address, tmp_path)
        assert work.done(run, server.address, tmp_path) == results.result_of(run, tmp_path)

    def test_a_run_that_fails_is_not_taken_for_done(self, tmp_path: Path) -> None:
        unknown = dataclasses.replace(TINY, task="rules:depth=3")
        with pytest.raises(ValueError, match="no option 'depth'"):
            work.do_all(unknown.runs(), "127.0.0.1:1", tmp_path, 1, lambda run, result, left: None)
        assert results.results_of(unknown, tmp_path) == []


class TestLock:
    def test_a_folder_has_one_command_at_work(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with locked(tmp_path), pytest.raises(Locked, match="another run is at work"), locked(tmp_path):
            pass
        with locked(tmp_path):
            assert main(["--folder", str(tmp_path), "--page", str(tmp_path / "page.md"), "sums"]) == EX_TEMPFAIL
        assert f"{tmp_path}: another run is at work" in capsys.readouterr().err
        assert not (tmp_path / "page.md").exists()
        with locked(tmp_path):
            pass


def test_other_sources_have_another_provenance(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.py").write_text("1")
    before = provenance(tmp_path)
    assert before == provenance(tmp_path)
    assert {"torch", "transformers"} < before.keys()
    (tmp_path / "deep" / "one.py").write_text("2")
    changed = provenance(tmp_path)
    (tmp_path / "deep" / "one.py").rename(tmp_path / "deep" / "two.py")
    assert len({of["trainer"] for of in (before, changed, provenance(tmp_path))}) == 3


def test_how_results_are_shown_does_not_change_what_they_are_of(tmp_path: Path) -> None:
    assert all((SOURCES / name).exists() for name in SHOWING)
    before = provenance(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "page.py").write_text("1")
    assert before == provenance(tmp_path)
    (tmp_path / "experiments" / "work.py").write_text("1")
    assert before != provenance(tmp_path)


def timeless(result: Result) -> dict[str, Any]:
    return {name: value for name, value in vars(result).items() if name != "seconds"}


def made(label: str, seed: int, value: float, base: float = 0.01) -> Result:
    """A result whose every figure is a value."""
    figures = [*(f"{measure}@{k}" for measure in ("pass", "max") for k in K), "entropy", "diversity"]
    evaluations = [{"step": step, **dict.fromkeys(figures, of)} for step, of in ((0, base), (10, value))]
    training = [{"step": step, SOLVED: step / 10 * value, **dict.fromkeys(results.CURVES, value)} for step in (5, 10)]
    return Result(
        label=label,
        seed=seed,
        options={"evaluation_prompts": 9, "evaluation_samples": 32, "method": "k:8@0,1@7"},
        provenance={"trainer": "abc", "torch": "2"},
        seconds=360.0,
        groups=640,
        passes=5.12,
        gradient_norm=0.7,
        clipped=0.25,
        evaluations=evaluations,
        training=training,
    )


def test_k_switches_when_all_but_little_is_solved() -> None:
    training = [{"step": step, SOLVED: solved} for step, solved in ((10, 0.2), (20, 0.795), (30, 0.8), (40, 0.81))]
    result = dataclasses.replace(made("k = 8", 1, 0.5), training=training)
    assert result.switch() == 20
    late = [*training[:-1], {"step": 40, SOLVED: 0.99}]
    assert dataclasses.replace(result, training=late).switch() == 32  # a fifth of the steps is kept for k = 1


@pytest.mark.parametrize(
    ("solved", "stalls"),
    [((0.2, 0.205, 0.209), True), ((0.2, 0.205, 0.216), False), ((0.9, 0.91, 0.91), False), ((0.1, 0.89, 0.89), True)],
)
def test_a_run_stalls_that_solves_no_more_in_its_last_half(solved: tuple[float, ...], stalls: bool) -> None:
    training = [{"step": step, SOLVED: share} for step, share in zip((10, 20, 40), solved, strict=True)]
    assert dataclasses.replace(made("k = 1", 1, 0.5), training=training).stalls() is stalls


def test_thinned_curves_keep_the_last_step_and_the_means() -> None:
    curve = [{"step": step, **dict.fromkeys((*results.CURVES, SOLVED), float(step))} for step in range(1, 241)]
    short = results.thinned(curve)
    assert len(short) == results.POINTS
    assert [record["step"] for record in short] == list(range(4, 241, 4))
    assert [record["entropy"] for record in short][:2] == [2.5, 6.5]
    assert short[-1][SOLVED] == 240.0


class TestPage:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Results of the ambiguous task: k = 8 is always a little better than k = 1, and than the base."""
        for run in FIVE_SEEDS[0].runs():
            if run.label in ("k = 1", "k = 2", "k = 8", ANNEALED):
                value = 0.3 + (0.2 if run.label == "k = 8" else 0.0) + run.seed / 100
                results.save_result(made(run.label, run.seed, value), results.result_path(tmp_path, run.key(7)))
        switch = results.Result.switch
        monkeypatch.setattr(Run, "key", lambda run, at=None, key=Run.key: key(run, 7))
        assert switch(made("k = 8", 1, 0.5)) == 8
        return tmp_path

    def test_tables_and_findings_say_what_the_results_do(self, folder: Path) -> None:
        page = folder / "page.md"
        page.write_text(f"# Before\n\n{BEGIN}\nstale\n{END}\n\n## After\n")
        write_page(FIVE_SEEDS, folder, page)
        text = page.read_text()
        assert text.startswith("# Before\n")
        assert text.endswith(f"{END}\n\n## After\n")
        assert "stale" not in text
        # 0.5 + (0.01 ... 0.05): mean 53, standard error sqrt(2.5 / 5) = 0.71 points.
        row = next(line for line in text.splitlines() if line.startswith("| k = 8 |"))
        assert row.split("|")[2:7] == [" **53.0** ± 0.7 "] * 5
        claim = next(line for line in text.splitlines() if "entropy | k = 8 over k = 1 " in line)
        assert "+0.200 ± 0.000 | +0.200 to +0.200 | 5 |" in claim
        assert claim.endswith("| **shown** |")
        c2, c4 = ("\n".join(text.partition(f"### {number}: ")[2].splitlines()[:3]) for number in ("C2", "C4"))
        assert "\nShown in 2 of 2, the opposite in 0, undecided in 0; 4 not run." in c2
        assert "\nShown in 1 of 2, the opposite in 0, undecided in 1; 2 not run." in c4
        assert "pass@1 | 8, then 1 over k = 1, 1 point less allowed | +0.0 ± 0.0 |" in text
        assert "pass@8 | k = 8 over k = 16 (TZSM) | | | | | | not run |" in text
        assert "pass@8 | k = 8 over the best of entropy 0.001, entropy 0.005," in text
        assert "Not run." in text
        assert "at step 7, 7, 7, 7, 7." in text
        assert "passes 5.1 times over its prompts" in text
        assert row.split("|")[-3:-1] == [" 25 % ", " 5 "]

    def test_the_methods_of_the_page_are_those_of_the_experiments(self) -> None:
        methods = {method.format(switch="STEP") for e in EXPERIMENTS for method in e.methods.values()}
        assert {method for method, _ in METHODS.values()} <= methods

    def test_it_says_what_all_took_and_of_which_code_they_are(self, folder: Path) -> None:
        page = folder / "page.md"
        write_page(FIVE_SEEDS, folder, page)
        text = page.read_text()
        assert "20 runs; 12,800 groups of rewards" in text
        assert "took 2.0 core-hours" in text
        assert "All are of one version of the code: trainer abc, torch 2." in text
        run = Run(AMBIGUOUS, "k = 2", 3)
        other = dataclasses.replace(made(run.label, run.seed, 0.4), provenance={"trainer": "xyz"})
        results.save_result(other, results.result_path(folder, run.key(7)))
        write_page(FIVE_SEEDS, folder, page)
        text = page.read_text()
        assert "They are of several versions of the code: ambiguous (k = 1, k = 8, 8, then 1), ambiguous k = 2" in text
        assert "; ambiguous k = 2 seed 3 of trainer xyz." in text

    def test_versions_of_the_code_are_told_task_by_task_where_that_is_all(self, folder: Path) -> None:
        run = Run(HARD, "k = 2", 3)
        other = dataclasses.replace(made(run.label, run.seed, 0.4), provenance={"trainer": "xyz"})
        results.save_result(other, results.result_path(folder, run.key()))
        write_page(FIVE_SEEDS, folder, folder / "page.md")
        said = "several versions of the code: ambiguous of trainer abc, torch 2; hard of trainer xyz."
        assert said in (folder / "page.md").read_text()

    def test_columns_and_steps_of_k_are_counted_seed_by_seed(self, tmp_path: Path) -> None:
        """In the first seed every figure rises with k; in the second k = 1 has the most of everything."""
        experiment = dataclasses.replace(DIGITS, seeds=2)
        for run in experiment.runs():
            k = [*BY_K].index(run.label)
            value = 0.3 + 0.1 * k if run.seed == 1 else 0.35 - 0.01 * k
            results.save_result(made(run.label, run.seed, value), results.result_path(tmp_path, run.key()))
        write_page([experiment], tmp_path, tmp_path / "page.md")
        text = (tmp_path / "page.md").read_text()
        assert "max@1: 16, max@2: 16, max@4: 16, max@8: 16, max@16: 16." in text
        # Two of five are the k of the evaluation or next to it at the ends, three between.
        assert "in 2 of 10, and that or next to it in 4 (C1); by chance it would be in 2 and 5.2." in text
        assert "entropy rises in 1 of 2 seeds, and what is solved in training in 1 (C2)" in text

    def test_what_was_asked_later_is_no_part_of_what_was_planned(self, folder: Path) -> None:
        write_page(FIVE_SEEDS, folder, folder / "page.md")
        # k = 8 over k = 1 by entropy and by what is solved, and over the base; what is annealed over k = 1 twice.
        said = "with all 5 planned rows as one family, 4 would be decided in place of 4, 0 of them of the hard set."
        assert said in (folder / "page.md").read_text()

    def test_the_prototype_stands_beside_what_one_more_model_would_be(self, tmp_path: Path) -> None:
        for run in AGAIN.runs():
            if run.label == "k = 1":
                # 38.1 to 38.8: the mean is 38.45, s is 0.245, and it reaches 2.365 * 0.245 * sqrt(9 / 8) to each side.
                result = made(run.label, run.seed, 0.38 + run.seed / 1000)
                results.save_result(result, results.result_path(tmp_path, run.key()))
        write_page([AGAIN], tmp_path, tmp_path / "page.md")
        text = (tmp_path / "page.md").read_text()
        assert "| k = 1 | **39.4**: 37.8 to 39.1 |" in text
        assert "0 of 7 are in their range" in text

    def test_every_seed_of_the_hard_set_is_there(self, tmp_path: Path) -> None:
        for run in dataclasses.replace(HARD, seeds=2).runs():
            if run.label in ("k = 1", "k = 8"):
                value = {"k = 1": 0.01, "k = 8": 0.5}[run.label] + run.seed / 1000
                results.save_result(made(run.label, run.seed, value), results.result_path(tmp_path, run.key()))
        write_page([HARD], tmp_path, tmp_path / "page.md")
        text = (tmp_path / "page.md").read_text()
        assert "| k = 8, solved in training | 50.1 | 50.2 |" in text
        assert "| k = 1, pass@1 | 1.1 | 1.2 |" in text
        assert "k = 1 in 2 of 2 seeds, k = 8 in 0 of 2 seeds (C3)" in text

    def test_what_is_shown_without_the_hard_set_is_counted_too(self, folder: Path) -> None:
        for run in dataclasses.replace(HARD, seeds=5).runs():
            if run.label in ("k = 1", "k = 8"):
                results.save_result(made(run.label, run.seed, 0.5), results.result_path(folder, run.key()))
        write_page(FIVE_SEEDS, folder, folder / "page.md")
        text = (folder / "page.md").read_text()
        base, c3 = ("\n".join(text.partition(f"### {number}: ")[2].splitlines()[:3]) for number in ("base", "C3"))
        told = "Shown in 3 of 3, the opposite in 0, undecided in 0; 5 not run. Without the hard set: shown in 1 of 1."
        assert told in base
        assert "Without" not in c3, "there is nothing else"

    def test_pictures_are_there_and_the_same_again(self, folder: Path) -> None:
        page = folder / "page.md"
        write_page(FIVE_SEEDS, folder, page)
        pictures = {path.name: path.read_bytes() for path in (folder / "page").glob("*.svg")}
        assert set(pictures) == {f"ambiguous_{shown}.svg" for shown in DRAWINGS if shown != "other_methods"}
        assert all(f"page/{name}" in page.read_text() for name in pictures)
        before = page.read_text()
        write_page(FIVE_SEEDS, folder, page)
        assert page.read_text() == before
        assert {path.name: path.read_bytes() for path in (folder / "page").glob("*.svg")} == pictures

    def test_methods_without_a_k_have_a_picture(self, tmp_path: Path) -> None:
        for run in dataclasses.replace(HARD, seeds=2).runs():
            if run.label in ("k = 1", "entropy 0.01", "Pass@k analytic, k = 8"):
                results.save_result(made(run.label, run.seed, 0.3), results.result_path(tmp_path, run.key()))
        write_page([HARD], tmp_path, tmp_path / "page.md")
        picture = (tmp_path / "page" / "hard_other_methods.svg").read_text()
        assert all(f"<!-- {label} -->" in picture for label in ("k = 1", "entropy 0.01", "Pass@k analytic, k = 8"))
        assert "<!-- k = 8 -->" not in picture

    def test_every_run_is_in_the_table_of_runs(self, folder: Path) -> None:
        write_page(FIVE_SEEDS, folder, folder / "page.md")
        with (folder / "page" / "runs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * 4 * 5  # before and after training
        last = next(row for row in rows if (row["method"], row["seed"], row["step"]) == ("k = 8", "2", "10"))
        assert float(last["pass@8"]) == pytest.approx(0.52)
        assert float(last["gradient_norm"]) == 0.7

    def test_a_page_without_the_markers_is_left_alone(self, folder: Path) -> None:
        page = folder / "page.md"
        page.write_text("# Mine\n")
        with pytest.raises(ValueError, match="must have <!-- experiments -->"):
            write_page(FIVE_SEEDS, folder, page)
        assert page.read_text() == "# Mine\n"

    def test_the_command_writes_it_without_running_anything(self, tmp_path: Path) -> None:
        assert main(["--page-only", "--folder", str(tmp_path), "--page", str(tmp_path / "page.md")]) == 0
        assert "Not run." in (tmp_path / "page.md").read_text()

    def test_the_command_is_told_how_many_seeds(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for seed in (1, 4):
            run = Run(AMBIGUOUS, "k = 8", seed)
            results.save_result(made(run.label, seed, 0.5), results.result_path(tmp_path, run.key()))
        told = ["--page-only", "--folder", str(tmp_path), "--page", str(tmp_path / "page.md")]
        for seeds, runs in (([], "1 runs;"), (["--seeds", "4"], "2 runs;")):
            assert main([*told, *seeds]) == 0
            assert runs in (tmp_path / "page.md").read_text()
        with pytest.raises(SystemExit):
            main([*told, "--seeds", "0"])
        assert "--seeds: 0; must be at least 1" in capsys.readouterr().err

    def test_the_one_in_the_documentation_is_of_the_results_beside_it(self, tmp_path: Path) -> None:
        beside = PAGE.with_suffix("")
        page = tmp_path / PAGE.name
        page.write_text(PAGE.read_text())
        assert main(["--page-only", "--folder", str(beside / "data"), "--page", str(page)]) == 0
        assert page.read_text() == PAGE.read_text()
        assert (tmp_path / beside.name / "runs.csv").read_text() == (beside / "runs.csv").read_text()
        # How they are drawn is matplotlib's, and differs with its version.
        assert {path.name for path in (tmp_path / beside.name).glob("*.svg")} == {
            path.name for path in beside.glob("*.svg")
        }
