"""`make train`: a server, Prometheus and the trainer together, and what Prometheus saw.

    python -m trainer_example.observed [the trainer's own options]

Without a `prometheus` on the PATH it says so, and reads the service's counters itself at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from trainer_example.configuration import configuration_of

SCRAPE_SECONDS = 1
SERVICE_RATE = 'sum(rate(pkpo_rewards_total{{run="{run}"}}[10s]))'
SERVICE_TOTAL = 'sum(pkpo_rewards_total{{run="{run}"}})'
TRAINER_STEP = 'pkpo_trainer_steps_total{{run="{run}"}}'
ROWS = 12


@contextmanager
def running_server(log: Path) -> Iterator[tuple[str, str]]:
    """A pkpo-server of our own, from SERVING to its end: its address and that of its metrics."""
    command = [sys.executable, "-m", "pkpo_server", "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    with log.open("w+") as written, subprocess.Popen(command, stderr=written) as process:
        try:
            yield _said(log, process, "serving"), _said(log, process, "metrics")
        finally:
            process.terminate()


def _said(log: Path, process: subprocess.Popen[bytes], event: str) -> str:
    """The address of an event of the server's log, once it is there."""
    while True:
        exited = process.poll() is not None
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and json.loads(line)["event"] == event:
                return str(json.loads(line)["address"])
        if exited:
            sys.exit(f"pkpo-server did not start; {log} says why")
        time.sleep(0.1)


@contextmanager
def running_prometheus(folder: Path, targets: dict[str, str]) -> Iterator[str | None]:
    """A Prometheus that scrapes each job's target: its address; None where there is no Prometheus."""
    if shutil.which("prometheus") is None:
        print("there is no `prometheus` on the PATH (Debian: apt-get install prometheus): going on without its view")
        yield None
        return
    address = f"127.0.0.1:{free_port()}"
    configuration = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s"},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus",
               f"--web.listen-address={address}"]  # fmt: skip
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield address
        finally:
            process.terminate()


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def queried(address: str, path: str, **parameters: Any) -> list[dict[str, Any]]:
    """The result of a call of Prometheus' HTTP API."""
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result


def series(address: str, query: str, start: float, end: float) -> dict[float, float]:
    """The values of a query over time; empty where it has none."""
    result = queried(address, "query_range", query=query, start=start, end=end, step=SCRAPE_SECONDS)
    return {float(when): float(value) for when, value in result[0]["values"]} if result else {}


def print_seen(address: str, run: str, start: float, end: float) -> None:
    """The run as Prometheus saw it: steps, rewards transformed, and rewards a second, over time."""
    steps, totals, rates = (
        series(address, query.format(run=run), start, end) for query in (TRAINER_STEP, SERVICE_TOTAL, SERVICE_RATE)
    )
    if not totals:
        print("Prometheus saw no rewards of this run")
        return
    times = sorted(totals)
    highest = max(rates.values(), default=0.0)
    print(f"\nthe run, as Prometheus at {address} saw it\n\n seconds    step     rewards  rewards/s")
    for place in range(ROWS):
        when = times[(len(times) - 1) * place // (ROWS - 1)]
        step = max((value for time_, value in steps.items() if time_ <= when), default=0.0)  # it ends with the trainer
        rate = rates.get(when, 0.0)
        bar = "#" * round(30 * rate / highest) if highest else ""
        print(f"{when - start:8.0f}{step:8.0f}{totals[when]:12,.0f}{rate:11,.0f}  {bar}")
    print("(steps are the trainer's own, whose last scrape is up to a second before its end)")


def print_counted(metrics_address: str, run: str) -> None:
    """The run as the service's metrics port counts it."""
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
    for sample in (sample for family in families for sample in family.samples):
        if sample.labels.get("run") == run and sample.name.endswith("_total"):
            print(f"{sample.name:36}{sample.value:14,.0f}")


def main() -> None:
    """Starts everything, trains, and shows what Prometheus saw; ends with the trainer's status."""
    configuration = configuration_of(sys.argv[1:])
    Path(configuration.run_dir).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="observed-", dir=configuration.run_dir)).resolve()
    trainer_metrics = f"127.0.0.1:{free_port()}"
    with running_server(folder / "server.log") as (server, server_metrics):
        targets = {"pkpo": server_metrics, "trainer": trainer_metrics}
        with running_prometheus(folder, targets) as prometheus:
            print(f"pkpo-server serves {server}, its metrics http://{server_metrics}/metrics")
            print(f"the trainer's metrics: http://{trainer_metrics}/metrics")
            if prometheus is not None:
                print(f"Prometheus: http://{prometheus}/graph")
            start = time.time()
            port = trainer_metrics.rpartition(":")[2]
            command = [
                sys.executable,
                "-m",
                "trainer_example",
                *sys.argv[1:],
                "--server",
                server,
                "--metrics_port",
                port,
            ]
            status = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode
            time.sleep(2 * SCRAPE_SECONDS)  # the last steps are scraped
            if prometheus is not None:
                print_seen(prometheus, configuration.name, start, time.time())
            else:
                print_counted(server_metrics, configuration.name)
    print(f"\nmetrics, plots and the model are in {configuration.run_dir}")
    sys.exit(status)


if __name__ == "__main__":
    main()
