"""A run that is cut off, by whatever, goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from live_server import LiveServer, poll
from trainer_example.configuration import Configuration
from trainer_example.train import Interrupted, train

from .conftest import ROOT, command, environment, finished, recorded, trained


@pytest.fixture
def whole(tiny: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run that nothing cut off, to compare with: its options. PPO's epochs make its state matter."""
    options = {
        **tiny,
        "steps": 6,
        "evaluate_every": 3,
        "run_dir": str(tmp_path / "whole"),
        "objective": "clip",
        "epochs": 2,
        "minibatches": 2,
    }
    train(Configuration(**options))
    return options


def assert_same_run(one: str | Path, other: str | Path) -> None:
    assert recorded(one) == recorded(other)
    weights, others = (load_file(Path(run) / "model" / "model.safetensors") for run in (one, other))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_resumed_runs_are_the_same_to_the_bit(whole: dict[str, Any], tmp_path: Path) -> None:
    cut = Configuration(**{**whole, "run_dir": str(tmp_path / "cut"), "steps": 3})
    train(cut)
    train(dataclasses.replace(cut, steps=6, resume=True))
    assert_same_run(cut.run_dir, whole["run_dir"])


def test_a_run_is_not_started_over_another_by_mistake(whole: dict[str, Any]) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        train(Configuration(**whole))


def test_killed_at_any_time_it_goes_on_from_the_newest_checkpoint(whole: dict[str, Any], tmp_path: Path) -> None:
    """Steps after the checkpoint are done again, and their records are not there twice."""
    options = {**whole, "run_dir": str(tmp_path / "killed"), "checkpoint_every": 2, "keep_checkpoints": 1}
    records = Path(options["run_dir"]) / "metrics.jsonl"
    with subprocess.Popen(command(options), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as process:
        poll(lambda: records.exists() and len(records.read_text().splitlines()) >= 3, "third step", 120)
        process.send_signal(signal.SIGKILL)
    with records.open("a") as file:
        file.write('{"step": 99, "ki')  # cut off in the middle of a line
    finished({**options, "resume": True})
    assert_same_run(options["run_dir"], whole["run_dir"])
    assert len(list((Path(options["run_dir"]) / "checkpoints").iterdir())) == 1


class Cut:
    """Kills the server when rewards are asked for the `at_call`-th time: an evaluation, three steps, and so on."""

    def __init__(self, server: LiveServer, monkeypatch: pytest.MonkeyPatch, at_call: int) -> None:
        from trainer_example.tasks.rules import Rules

        self.calls = 0
        original: Callable[..., list[float]] = Rules.rewards

        def rewards(task: Any, *arguments: Any) -> list[float]:
            self.calls += 1
            if self.calls == at_call:
                os.kill(server.process.pid, signal.SIGKILL)
                server.process.wait()
            return original(task, *arguments)

        monkeypatch.setattr(Rules, "rewards", rewards)


@pytest.mark.parametrize(("at_call", "steps_done"), [(4, 2), (5, 3)], ids=["in a step", "in an evaluation"])
def test_without_the_service_it_stops_and_can_be_resumed(
    at_call: int, steps_done: int, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveServer() as server:
        options = {**whole, "run_dir": str(tmp_path / "stopped"), "server": server.address}
        Cut(server, monkeypatch, at_call)
        start = time.monotonic()
        with pytest.raises(Interrupted, match="--resume true goes on from there"):
            train(Configuration(**options))
        assert time.monotonic() - start < 120
    assert [record["step"] for record in trained(options["run_dir"])] == list(range(1, steps_done + 1))
    monkeypatch.undo()
    train(Configuration(**{**options, "server": whole["server"], "resume": True}))
    assert_same_run(options["run_dir"], whole["run_dir"])


def test_without_the_service_it_goes_on_by_itself_where_it_may(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveServer() as server:
        options = {**whole, "run_dir": str(tmp_path / "local"), "server": server.address, "on_outage": "local"}
        Cut(server, monkeypatch, at_call=4)
        train(Configuration(**options))
    assert_same_run(options["run_dir"], whole["run_dir"])


def test_a_run_is_not_resumed_as_another(whole: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="resume: the run was started otherwise: method was 'k:8'"):
        train(Configuration(**{**whole, "resume": True, "method": "tzsm"}))


def test_a_server_that_is_not_there_is_said_before_anything_is_trained(tiny: dict[str, Any]) -> None:
    said = finished({**tiny, "server": "127.0.0.1:1", "server_timeout": 2}, status=75)
    assert "127.0.0.1:1" in said
    assert "Traceback" not in said


def test_two_processes_stop_together(tiny: dict[str, Any], tmp_path: Path) -> None:
    from .test_processes import TWO_PROCESSES

    with LiveServer() as server:
        options = {**tiny, "server": server.address, "run_dir": str(tmp_path / "two"), "steps": 2000}
        records = Path(options["run_dir"]) / "metrics.jsonl"
        with subprocess.Popen(
            command(options, *TWO_PROCESSES), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
        ) as process:
            poll(lambda: records.exists() and len(records.read_text().splitlines()) >= 3, "third step", 120)
            server.kill()
            _, said = process.communicate(timeout=200)
    assert process.returncode == 1  # torchrun's own; of one process alone it is 75
    assert "exitcode  : 75" in said
    assert "goes on from there" in said
    steps = len(trained(options["run_dir"]))
    assert [path.name for path in (Path(options["run_dir"]) / "checkpoints").iterdir()] == [f"step-{steps:06d}"]
