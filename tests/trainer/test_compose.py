"""The trainer as deploy/compose.yaml starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from live_server import LiveServer
from trainer_example.configuration import Configuration

from .conftest import ROOT, WARM_START_STEPS, environment, trained


def test_its_command_trains(server: LiveServer, warm_starts: Path, tmp_path: Path) -> None:
    """With its own flags, but for where things are and for how long it lasts."""
    service = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["trainer"]
    instead = [
        f"--server={server.address}",
        f"--run_dir={tmp_path}",
        f"--warm_start_dir={warm_starts}",
        f"--warm_start_steps={WARM_START_STEPS}",
        "--metrics_host=127.0.0.1",
        "--metrics_port=0",
        "--steps=2",
        "--evaluation_prompts=32",
    ]
    command = [sys.executable, "-m", "trainer_example", *service["command"], *instead]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, timeout=250)
    assert server.metrics()['pkpo_k_groups_total{run="compose"}'] >= 2 * Configuration.prompts_per_step
    assert [record["step"] for record in trained(tmp_path)] == [1, 2]
