"""Some minutes of training runs as servers, Prometheus and the dashboard see them, without a model.

    python -m deploy.observability.rehearsal docs/dashboard.png [--seconds 180]

Each run is a policy whose chance to solve a prompt grows from step to step. All runs meet some that cannot be solved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import trustme
import yaml

from deploy.observability.dashboard import FILE
from pkpo_client import Client, PkpoError, schedules

SERVERS = 2
Connected = Callable[[], Client]


@dataclass(frozen=True)
class Run:
    """A training run that needs no model.

    Attributes:
        name: its run_id.
        prompts, samples: of a step.
        pause: seconds between two steps.
        first, last: mean chance that a sample solves its prompt.
        alike: how alike prompts are: what the parameters of their chances' Beta distribution add up to.
        k: by step, as `schedules.from_string` reads it.
        variant: of the advantages.
    """

    name: str
    prompts: int
    samples: int
    pause: float
    first: float
    last: float
    alike: float
    k: str
    variant: str = "sloo_minus_one"

    def train(self, connected: Connected, over: threading.Event, seconds: float) -> None:
        """Steps until it is over."""
        drawn, began, schedule = np.random.default_rng(len(self.name)), time.monotonic(), schedules.from_string(self.k)
        with connected() as pkpo:
            step = 0
            while not over.wait(self.pause):
                done = min(1.0, (time.monotonic() - began) / seconds)
                mean = self.first + (self.last - self.first) * done
                chances = drawn.beta(mean * self.alike, (1 - mean) * self.alike, (self.prompts, 1))
                rewards = (drawn.random((self.prompts, self.samples)) < chances).astype(float)
                pkpo.transform(rewards, k=schedule(step), run_id=self.name, variant=self.variant, k_policy="clamp")
                step += 1


RUNS = (
    Run("maze-7b", 64, 64, 0.9, 0.03, 0.35, 0.8, "16@0,4@60,1@110"),
    Run("countdown-2b", 128, 16, 0.5, 0.15, 0.6, 2.0, "8"),
    Run("gsm-2b-baseline", 128, 16, 0.5, 0.35, 0.75, 1.0, "1", "grpo"),
    Run("arc-9b", 32, 64, 1.5, 0.004, 0.04, 1.0, "32", "centered"),
)


def main() -> None:
    """Runs them all, and draws what was seen."""
    parser = argparse.ArgumentParser(prog="python -m deploy.observability.rehearsal", description=__doc__)
    parser.add_argument("file", help="the PNG to write")
    parser.add_argument("--seconds", type=float, default=180, help="that the runs take")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority = trustme.CA()
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        write_certificate(authority, folder)
        servers = [stack.enter_context(running_server(folder, number)) for number in range(SERVERS)]
        prometheus = stack.enter_context(running_prometheus(folder, [metrics for _, metrics, _ in servers]))
        threading.Timer(options.seconds / 4, os.kill, (servers[0][2], signal.SIGKILL)).start()
        each = itertools.cycle(partial(Client, address, credentials=credentials) for address, _, _ in servers)
        over = threading.Event()
        threads = [threading.Thread(target=run.train, args=(next(each), over, options.seconds)) for run in RUNS]
        threads += [threading.Thread(target=other, args=(next(each), over)) for other in (careless, replay)]
        for thread in threads:
            thread.start()
        time.sleep(options.seconds)
        command = [sys.executable, "-m", "deploy.observability.picture", f"http://{prometheus}", options.file,
                   "--minutes", f"{options.seconds / 60}", "--run-step", "3s"]  # fmt: skip
        drawn = subprocess.run(command, check=False)
        over.set()
        for thread in threads:
            thread.join()
    sys.exit(drawn.returncode)


def careless(connected: Connected, over: threading.Event) -> None:
    """Someone whose batches are wrong now and then."""
    drawn = np.random.default_rng(0)
    with connected() as pkpo:
        while not over.wait(float(drawn.exponential(4))):
            with suppress(PkpoError):
                if drawn.random() < 0.6:
                    pkpo.transform(np.zeros((4, 8)), k=16)
                else:
                    pkpo.transform(np.full((4, 8), np.inf), k=2)


def replay(connected: Connected, over: threading.Event) -> None:
    """A run that replays large batches on a stream, and estimates of them."""
    drawn = np.random.default_rng(1)
    with connected() as pkpo:
        while not over.wait(1):
            batches = [(drawn.random((1024, 16)) < 0.3).astype(float) for _ in range(4)]
            for _ in pkpo.stream(batches, k=8, run_id="replay-13b"):
                pass
            pkpo.estimate(batches[0], k=[1, 8])


def write_certificate(authority: trustme.CA, folder: Path) -> None:
    """Writes what servers are started with, in the middle of its time."""
    expires = datetime.now(timezone.utc) + timedelta(days=60)
    certificate = authority.issue_cert("127.0.0.1", not_after=expires)
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")


@contextmanager
def running_server(folder: Path, number: int) -> Iterator[tuple[str, str, int]]:
    """A server of two workers: its address, that of its metrics, and the process of a worker."""
    log = folder / f"{number}.log"
    command = [sys.executable, "-m", "pkpo_server", "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0",
               "--workers", "2",
               "--tls-certificate", f"{folder}/tls.crt", "--tls-key", f"{folder}/tls.key"]  # fmt: skip
    with log.open("w+") as written, subprocess.Popen(command, stderr=written) as process:
        try:
            while not {"serving", "metrics", "worker_serving"} <= (events := _events(log)).keys():
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.1)
            yield events["serving"]["address"], events["metrics"]["address"], events["worker_serving"]["pid"]
        finally:
            process.terminate()


def _events(log: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {line["event"]: line for line in lines}


@contextmanager
def running_prometheus(folder: Path, targets: list[str]) -> Iterator[str]:
    """A Prometheus that scrapes the servers every second: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FILE.with_name("rules.yaml"))],
        "scrape_configs": [
            {
                "job_name": "pkpo",
                "static_configs": [
                    {"targets": [target], "labels": {"namespace": "rl", "pod": f"pkpo-{number}"}}
                    for number, target in enumerate(targets)
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address={address}", "--log.level=error"]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            yield address
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
