"""Real servers, and runs of a few steps of a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from live_server import LiveServer

if TYPE_CHECKING:
    from trainer_example.configuration import Configuration

ROOT = Path(__file__).parents[2]
WARM_START_STEPS = 200

# tests/test_trainer_suite.py says so, by name.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As in the processes that tests start: sums in another order end in other bits."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    with LiveServer() as live:
        yield live


@pytest.fixture(scope="session")
def warm_starts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm-starts")


@pytest.fixture(autouse=True)
def no_accelerator() -> Iterator[None]:
    """What accelerate remembers of one run is not the next one's."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def tiny(server: LiveServer, warm_starts: Path, tmp_path: Path) -> dict[str, Any]:
    """The options of a run of some seconds."""
    return {
        "server": server.address,
        "server_timeout": 10.0,
        "run_dir": str(tmp_path / "run"),
        "steps": 4,
        "prompts_per_step": 16,
        "samples_per_prompt": 8,
        "learning_rate": 1e-3,
        "warm_start_steps": WARM_START_STEPS,
        "warm_start_dir": str(warm_starts),
        "evaluate_every": 0,
        "evaluation_prompts": 32,
        "checkpoint_every": 0,
        "tensorboard": False,
    }


@pytest.fixture
def configuration(tiny: dict[str, Any]) -> Configuration:
    from trainer_example.configuration import Configuration

    return Configuration(**tiny)


def command(options: dict[str, Any], *launcher: str) -> list[str]:
    """How a run is started from a shell."""
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*(launcher or (sys.executable, "-m", "trainer_example")), *flags]


def finished(options: dict[str, Any], *launcher: str, status: int = 0) -> str:
    """A run in processes of its own, from start to end; what it wrote to stderr."""
    done = subprocess.run(
        command(options, *launcher),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
    }


def trained(run_dir: str | Path) -> list[dict[str, Any]]:
    """The records of training steps, without what a clock decides."""
    return [record for record in recorded(run_dir) if record["kind"] == "train"]


def recorded(run_dir: str | Path) -> list[dict[str, Any]]:
    """All records, without what a clock decides."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in record.items() if not name.endswith("_seconds")}
        for record in map(json.loads, lines)
    ]
