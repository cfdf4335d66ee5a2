"""A whole run: it learns, and leaves behind everything that was promised."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from live_server import LiveServer, poll
from trainer_example.configuration import Configuration
from trainer_example.evaluation import EVALUATED_K, distinct
from trainer_example.metrics import STAGES, Metrics, records
from trainer_example.tasks import task_named
from trainer_example.train import prompts_of, train

from .conftest import ROOT, command, environment, trained


@pytest.fixture
def evaluated(configuration: Configuration) -> Configuration:
    """A run of 4 steps, evaluated before, in the middle and after."""
    evaluated = dataclasses.replace(configuration, evaluate_every=2, evaluation_samples=16, tensorboard=True)
    train(evaluated)
    return evaluated


def test_everything_is_measured(evaluated: Configuration) -> None:
    everything = records(Path(evaluated.run_dir) / "metrics.jsonl")
    assert [(r["step"], r["kind"]) for r in everything] == [
        (0, "evaluation"), (1, "train"), (2, "train"), (2, "evaluation"), (3, "train"), (4, "train"), (4, "evaluation"),
    ]  # fmt: skip
    for record in everything:
        assert all(np.isfinite(value) for name, value in record.items() if name != "kind")
        if record["kind"] == "train":
            stages = sum(record[f"{stage}_seconds"] for stage in STAGES)
            assert record["step_seconds"] == pytest.approx(stages)
            assert 0 < record["entropy"] < 4
            assert 0 < record["diversity"] <= 1
            assert 0 <= record["groups_without_signal"] <= 1
        else:
            of_k = [record[f"pass@{k}"] for k in EVALUATED_K]
            assert of_k == sorted(of_k)
            assert record["solved"] == pytest.approx(record["pass@16"])
            assert record["reward"] == pytest.approx(record["pass@1"])
    solved = [record["solved_in_training"] for record in everything if record["kind"] == "train"]
    assert solved == sorted(solved)
    assert solved[-1] <= 4 * 16 / 10_000


def test_tensorboard_has_the_same(evaluated: Configuration) -> None:
    events = EventAccumulator(str(Path(evaluated.run_dir) / "tensorboard"))
    events.Reload()
    everything = records(Path(evaluated.run_dir) / "metrics.jsonl")
    for kind, name in (("train", "entropy"), ("evaluation", "pass@16")):
        wanted = {record["step"]: record[name] for record in everything if record["kind"] == kind}
        assert {e.step: e.value for e in events.Scalars(f"{kind}/{name}")} == pytest.approx(wanted, rel=1e-6)


def test_pictures_show_something(evaluated: Configuration) -> None:
    pictures = sorted((Path(evaluated.run_dir) / "plots").glob("*.png"))
    assert [picture.stem for picture in pictures] == ["pass_at_k", "time", "training"]
    for picture in pictures:
        assert imread(picture)[..., :3].std() > 0.05


def test_continuous_rewards_have_a_max_at_k(configuration: Configuration) -> None:
    train(dataclasses.replace(configuration, task="rules:continuous=true", evaluate_every=4, evaluation_samples=4))
    last = records(Path(configuration.run_dir) / "metrics.jsonl")[-1]
    assert last["max@1"] == pytest.approx(last["reward"])
    assert last["max@4"] > last["max@1"] > last["pass@1"]
    assert "max@8" not in last


def test_it_learns(configuration: Configuration) -> None:
    """From a little warm start, sixty steps of LOO take the share of right digits from 0.22 to 0.32."""
    train(dataclasses.replace(configuration, method="loo", steps=60, prompts_per_step=64, samples_per_prompt=16,
                              warm_start_steps=500, task="rules:continuous=true"))  # fmt: skip
    rewards = [record["reward"] for record in trained(configuration.run_dir)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.05


def test_prompts_come_once_before_any_comes_again(configuration: Configuration) -> None:
    options = dataclasses.replace(configuration, prompts_per_step=16)
    numbers = np.concatenate([prompts_of(step, options, problems=40) for step in range(10)])
    for begin in range(0, 160, 40):
        assert sorted(numbers[begin : begin + 40]) == list(range(40))
    assert list(numbers[:40]) != list(numbers[40:80])


def test_diversity_is_the_share_of_answers_that_differ() -> None:
    assert distinct(["a", "a", "b", "c", "x", "x", "x", "x"], 4).tolist() == [0.75, 0.25]


def test_the_trainer_serves_its_metrics_while_it_runs(tiny: dict[str, Any]) -> None:
    from trainer_example.observed import free_port

    port = free_port()
    options = {**tiny, "steps": 3000, "metrics_port": port, "evaluate_every": 2, "run_id": "scraped"}
    with subprocess.Popen(command(options), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as process:
        try:
            samples = poll(lambda: scraped(port), "third step", 120)
        finally:
            process.kill()
    assert {key[1]["run"] for key in samples} == {"scraped"}
    names = {name for name, _, _ in samples}
    assert {"pkpo_trainer_train_entropy", "pkpo_trainer_answers_total", "pkpo_trainer_evaluation_pass"} <= names
    ks = {int(labels["k"]) for name, labels, _ in samples if name == "pkpo_trainer_evaluation_pass"}
    assert ks == set(EVALUATED_K)
    stages = {labels["stage"] for name, labels, _ in samples if name == "pkpo_trainer_stage_seconds_total"}
    assert stages == set(STAGES)


def scraped(port: int) -> list[tuple[str, dict[str, str], float]]:
    """The trainer's metrics, once it has done three steps."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            families = text_string_to_metric_families(response.read().decode())
    except OSError:
        return []
    samples = [(s.name, s.labels, s.value) for family in families for s in family.samples]
    return samples if any(name == "pkpo_trainer_steps_total" and value >= 3 for name, _, value in samples) else []


def test_the_port_is_free_again_after_a_run(configuration: Configuration) -> None:
    with Metrics(dataclasses.replace(configuration, metrics_port=0), 0, written=True) as metrics:
        port = metrics.port
    with Metrics(dataclasses.replace(configuration, metrics_port=port), 0, written=True) as again:
        assert again.port == port
    assert not any(thread.name.startswith("prometheus") and not thread.daemon for thread in threading.enumerate())


class TestObserved:
    """`make train`, a few steps of it."""

    @pytest.fixture
    def options(self, tiny: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**tiny, "steps": 150, "run_id": "seen"}.items() if name != "server"}

    def shown(self, options: dict[str, Any], path: str) -> str:
        done = subprocess.run(
            command(options, sys.executable, "-m", "trainer_example.observed"),
            cwd=ROOT, env={**environment(), "PATH": path}, capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_prometheus_saw_the_throughput_rise(self, options: dict[str, Any]) -> None:
        if shutil.which("prometheus") is None:
            pytest.skip("needs prometheus: apt-get install prometheus")
        shown = self.shown(options, environment()["PATH"])
        table = shown.partition("rewards/s\n")[2]
        rows = [list(map(float, re.findall(r"[\d,.]+", line.replace(",", ""))[:4])) for line in table.splitlines()[:12]]
        assert 0 < rows[-1][1] <= 150  # by the last scrape of the trainer
        assert rows[-1][2] == (150 * 16 + 1) * 8  # the rewards of all steps, and of the call before the first
        assert rows[0][3] < max(row[3] for row in rows)
        assert [row[2] for row in rows] == sorted(row[2] for row in rows)

    def test_without_prometheus_it_says_so_and_counts_itself(self, options: dict[str, Any], tmp_path: Path) -> None:
        shown = self.shown({**options, "steps": 3}, str(tmp_path))
        assert "there is no `prometheus` on the PATH" in shown
        assert re.search(r"pkpo_rewards_total +392\n", shown)

    def test_it_ends_with_the_trainers_status(self, options: dict[str, Any], tmp_path: Path) -> None:
        done = subprocess.run(
            command({**options, "method": "k:9"}, sys.executable, "-m", "trainer_example.observed"),
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "k[0]: is 9" in done.stderr
        assert "metrics, plots and the model are in" in done.stdout


def test_a_record_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "kind": "train"}) + '\n{"step": 2, "ki')
    assert records(path) == [{"step": 1, "kind": "train"}]


def test_a_server_answers_evaluations_too(server: LiveServer, configuration: Configuration) -> None:
    before = server.metrics().get('pkpo_requests_total{code="OK",method="Estimate",variant="none"}', 0)
    train(dataclasses.replace(configuration, evaluate_every=4, run_id="estimates"))
    after = server.metrics()['pkpo_requests_total{code="OK",method="Estimate",variant="none"}']
    assert after == before + 2


def test_every_default_task_can_be_named() -> None:
    assert task_named(Configuration().task).train
