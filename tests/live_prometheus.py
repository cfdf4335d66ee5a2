"""A real Prometheus, as a subprocess, and what it answers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from live_server import STOP_SECONDS, poll


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LivePrometheus:
    """Prometheus on a free port of the loopback, scraping and evaluating rules every second.

    Args:
        folder: for its configuration, data and log.
        targets: of each job, the address and further labels.
        rules: files of rules.
        alertmanager: address of one to tell.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, tuple[str, Mapping[str, str]]],
        rules: Sequence[Path] = (),
        alertmanager: str | None = None,
    ) -> None:
        if shutil.which("prometheus") is None:
            pytest.skip("needs prometheus on PATH")
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        managers = [{"static_configs": [{"targets": [alertmanager]}]}] if alertmanager else []
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(file) for file in rules],
            "alerting": {"alertmanagers": managers},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target], "labels": dict(labels)}]}
                for job, (target, labels) in {"prometheus": (self.address, {}), **targets}.items()
            ],
        }
        # JSON is YAML, which needs a package to write.
        (folder / "prometheus.yml").write_text(json.dumps(configuration))

    def __enter__(self) -> LivePrometheus:
        command = ["prometheus", f"--config.file={self._folder}/prometheus.yml",
                   f"--storage.tsdb.path={self._folder}/data", f"--web.listen-address={self.address}"]  # fmt: skip
        self._log = (self._folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(command, stderr=self._log)
        try:
            poll(self._ready, "ready Prometheus")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(STOP_SECONDS)
        self._log.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """The data of a call of its API; fails with what Prometheus says where it refuses."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as refused:
            raise AssertionError(f"{parameters}: {json.load(refused)['error']}") from refused

    def query(self, expr: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The values of an instant query now, by their labels in alphabetical order."""
        result = self.get("query", query=expr)["result"]
        return {tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in result}

    def _ready(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError((self._folder / "prometheus.log").read_text())
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False
