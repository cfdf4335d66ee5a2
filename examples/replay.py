"""Replays a real RL run's rewards through a real server, step by step, as a trainer would.

    python examples/replay.py

Starts `pkpo-server` on free ports, sends each training step's groups with a k from an annealing schedule, and prints
pass@k by phase, groups without signal, throughput and latency, beside the same counts read from the server's metrics.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from pkpo_client import Client, GroupStatus, schedules

ROLLOUTS = Path(__file__).parent / "rollouts" / "tiny-gemma2-rules.jsonl.gz"
EVALUATED_K = [1, 2, 4, 8, 16]
PHASE_STEPS = 25
RUN_ID = "replay"


@dataclass(frozen=True)
class Step:
    """The rollouts of one training step, samples of a prompt in any order."""

    number: int
    prompt_ids: list[str]
    rewards: NDArray[np.float64]
    correct: NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """What the service said of one step."""

    k: int
    pass_at_k: list[float]
    groups: int
    without_signal: int
    seconds: float


def steps(path: Path) -> Iterator[Step]:
    """The steps of a file of rollouts."""
    with gzip.open(path, "rt") as lines:
        records = [json.loads(line) for line in lines]
    for number in sorted({record["step"] for record in records}):
        of_step = [record for record in records if record["step"] == number]
        yield Step(
            number,
            [record["prompt_id"] for record in of_step],
            np.array([record["reward"] for record in of_step]),
            np.array([record["correct"] for record in of_step], dtype=np.float64),
        )


@contextmanager
def running_server() -> Iterator[tuple[str, str]]:
    """A server of our own: its address and that of its metrics."""
    command = [sys.executable, "-m", "pkpo_server", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        addresses: dict[str, str] = {}
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] in ("serving", "metrics"):
                addresses[event["event"]] = event["address"]
            if len(addresses) == 2:
                break
        else:
            raise SystemExit("the server did not start")
        try:
            yield addresses["serving"], addresses["metrics"]
        finally:
            process.terminate()
            process.stderr.read()


def replay(pkpo: Client, run: list[Step]) -> list[Answer]:
    """Each step's advantages and estimates, as a trainer would ask for them."""
    schedule = schedules.from_string("8@0,1@100")
    answers = []
    for step in run:
        start = time.perf_counter()
        k = schedule(step.number)
        result = pkpo.transform_detailed(step.rewards, k, group_ids=step.prompt_ids, run_id=RUN_ID)
        seconds = time.perf_counter() - start
        # A trainer would now take a step on -sum(advantages * log_probs).
        assert result.advantages.shape == step.rewards.shape
        estimates = pkpo.estimate(step.correct, EVALUATED_K, group_ids=step.prompt_ids)
        answers.append(
            Answer(
                k,
                [float(estimate.values.mean()) for estimate in estimates],
                len(result.group_ids),
                int((result.group_statuses == GroupStatus.NO_SIGNAL).sum()),
                seconds,
            )
        )
    return answers


def print_phases(answers: list[Answer]) -> None:
    """pass@k and signal, averaged over phases of the run."""
    print("steps      k  " + "  ".join(f"pass@{k:<3}" for k in EVALUATED_K) + "  groups without signal")
    for begin in range(0, len(answers), PHASE_STEPS):
        phase = answers[begin : begin + PHASE_STEPS]
        means = np.mean([answer.pass_at_k for answer in phase], axis=0)
        silent, groups = sum(a.without_signal for a in phase), sum(a.groups for a in phase)
        figures = "  ".join(f"{mean:8.3f}" for mean in means)
        print(f"{begin:3d}-{begin + len(phase) - 1:<3d} {phase[0].k:4d}  {figures}  {silent:4d} of {groups}")


def counted(metrics_address: str, run_id: str) -> dict[str, float]:
    """What the metrics port has counted for a run, by the name of the counter."""
    with urllib.request.urlopen(f"http://{metrics_address}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = (sample for family in families for sample in family.samples)
    return {sample.name: sample.value for sample in samples if sample.labels.get("run") == run_id and sample.value}


def main() -> None:
    """Runs the replay; fails where the client and the metrics port disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=Path, default=ROLLOUTS)
    run = list(steps(parser.parse_args().rollouts))

    print("starting pkpo-server (the first start on a machine compiles its kernels, some seconds)")
    with running_server() as (address, metrics_address), Client(address) as pkpo:
        version = pkpo.server_info().version  # connects, too, so that the first step's latency is a step's
        print(f"pkpo-server {version} serves {address}, its metrics http://{metrics_address}/metrics\n")
        answers = replay(pkpo, run)
        counts = counted(metrics_address, RUN_ID)

    print_phases(answers)
    seconds = np.array([answer.seconds for answer in answers])
    rewards = sum(step.rewards.size for step in run)
    groups = sum(answer.groups for answer in answers)
    silent = sum(answer.without_signal for answer in answers)
    print(f"\ntransform: {len(run)} calls of {rewards // len(run)} rewards, {rewards / seconds.sum():,.0f} rewards/s")
    print(f"latency:   p50 {np.quantile(seconds, 0.5) * 1e3:.2f} ms, p99 {np.quantile(seconds, 0.99) * 1e3:.2f} ms")

    print("\n                       client   metrics port")
    compared = {
        "rewards transformed": (rewards, counts["pkpo_rewards_total"]),
        "groups transformed": (groups, counts["pkpo_groups_total"]),
        "groups without signal": (silent, counts["pkpo_zero_signal_groups_total"]),
    }
    for name, (ours, theirs) in compared.items():
        print(f"{name:22} {ours:7d}  {theirs:13.0f}")
    if any(ours != theirs for ours, theirs in compared.values()):
        raise SystemExit("the client and the metrics port disagree")


if __name__ == "__main__":
    main()
