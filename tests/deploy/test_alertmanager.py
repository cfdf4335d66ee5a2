"""One alert carried all the way: a server dies, Prometheus notices, Alertmanager tells a receiver, and tells it again
when the server is back."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from live_prometheus import LivePrometheus, free_port
from live_server import STOP_SECONDS, LiveServer, poll
from pages import ROOT

RULES = ROOT / "deploy" / "helm" / "pkpo" / "files" / "rules.yaml"
ALERT = "PkpoDown"


class Receiver:
    """Whom alerts are sent to: an HTTP server that keeps what it is told."""

    def __init__(self) -> None:
        told: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._told = told
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def alerts(self, status: str) -> list[dict[str, Any]]:
        """The alerts told of so far that are firing, or resolved."""
        return [alert for alert in tuple(self._told) if alert["status"] == status]


@contextmanager
def running_alertmanager(folder: Path, receiver: Receiver) -> Iterator[str]:
    """Alertmanager, telling the receiver at once: its address."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        pytest.skip("needs prometheus-alertmanager on PATH")
    address = f"127.0.0.1:{free_port()}"
    configuration = {
        "route": {"receiver": "test", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"},
        "receivers": [{"name": "test", "webhook_configs": [{"url": receiver.url, "send_resolved": True}]}],
    }
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(configuration))
    command = [program, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alertmanager",
               f"--web.listen-address={address}", "--cluster.listen-address="]  # fmt: skip
    with (folder / "alertmanager.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield address
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def known_alerts(address: str) -> list[dict[str, Any]]:
    """What Alertmanager's API knows; nothing while it starts."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/v2/alerts", timeout=30) as response:
            answer: list[dict[str, Any]] = json.load(response)
    except OSError:
        return []
    return answer


def impatient(folder: Path) -> Path:
    """The rules, but for the two minutes that a server may be away."""
    rules = yaml.safe_load(RULES.read_text())
    (rule,) = (rule for group in rules["groups"] for rule in group["rules"] if rule.get("alert") == ALERT)
    assert rule.pop("for") == "2m"
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    return folder / "rules.yaml"


def test_an_alert_reaches_whom_it_is_for(tmp_path: Path) -> None:
    with Receiver() as receiver, running_alertmanager(tmp_path, receiver) as alertmanager, LiveServer() as server:
        port = server.metrics_address.rpartition(":")[2]
        targets = {"pkpo": (server.metrics_address, {"namespace": "rl"})}
        with LivePrometheus(tmp_path, targets, [impatient(tmp_path)], alertmanager) as prometheus:
            poll(lambda: prometheus.query("pkpo_build_info"), "scraped server")
            assert not known_alerts(alertmanager)

            server.kill()
            (alert,) = poll(lambda: known_alerts(alertmanager), "alert in Alertmanager", 60)
            (told,) = poll(lambda: receiver.alerts("firing"), "alert at the receiver", 60)
            for each in (alert, told):
                assert each["labels"]["alertname"] == ALERT
                assert each["labels"]["severity"] == "page"
                assert (each["labels"]["namespace"], each["labels"]["job"]) == ("rl", "pkpo")
                assert each["annotations"]["summary"] == "No server of pkpo is up"
                assert "servers of job pkpo in namespace rl" in each["annotations"]["description"]
                assert each["annotations"]["runbook"] == "docs/alerts.md#pkpodown"

            with LiveServer("--metrics-port", port):
                (told,) = poll(lambda: receiver.alerts("resolved"), "end of the alert", 60)
                assert told["labels"]["alertname"] == ALERT
                poll(lambda: not known_alerts(alertmanager), "Alertmanager without alerts")
