"""deploy/compose.yaml: by the letter of its specification, by what it promises, and with the real parts there are.

Of Grafana there is none here: that its files agree with each other is all that is checked. The trainer's flags are
tried in tests/trainer.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from live_prometheus import LivePrometheus, free_port
from live_server import STOP_SECONDS, LiveServer, poll
from pages import ROOT
from pkpo_client import Client
from pkpo_server.settings import Settings

FOLDER = ROOT / "deploy"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()

every_service = pytest.mark.parametrize("name", SERVICES)


def mounts(name: str) -> dict[str, str]:
    """What is mounted where in a service: a file of deploy/ or the name of a volume, by place."""
    split = (volume.split(":") for volume in SERVICES[name].get("volumes", ()))
    return {place: source for source, place, *_ in split}


def here(name: str, place: str) -> Path:
    """The file of ours that a service sees in a place."""
    return FOLDER / mounts(name)[place]


def test_the_specification_is_kept() -> None:
    compose_spec.PyOptions(apply_merge=True).from_yaml(TEXT).validate()


@every_service
def test_nothing_may_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "user"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@every_service
def test_every_image_is_ours_or_of_one_version_and_no_registry(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        build = service["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert "target" not in build or f" AS {build['target']}\n" in DOCKERFILE
        assert all(f"\nARG {argument}=" in DOCKERFILE for argument in build.get("args", {}))
    else:
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


@every_service
def test_everything_mounted_is_there(name: str) -> None:
    for place, source in mounts(name).items():
        if source.startswith("."):
            assert (FOLDER / source).is_file(), place
        else:
            assert source in COMPOSE["volumes"], place


@every_service
def test_what_is_waited_for_tells_when_it_is_healthy(name: str) -> None:
    told_by_its_image = name == "server" and "\nHEALTHCHECK " in DOCKERFILE
    assert told_by_its_image or "test" in SERVICES[name]["healthcheck"]
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        assert wanted == {"condition": "service_healthy"}
        assert other in SERVICES


def test_the_server_has_time_to_drain() -> None:
    assert int(SERVICES["server"]["stop_grace_period"].removesuffix("s")) > Settings.drain_seconds


def test_grafana_finds_its_prometheus_and_its_dashboard() -> None:
    (source,) = yaml.safe_load(here("grafana", "/etc/grafana/provisioning/datasources/pkpo.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["jsonData"]["timeInterval"] == prometheus_configuration()["global"]["scrape_interval"]
    (provider,) = yaml.safe_load(here("grafana", "/etc/grafana/provisioning/dashboards/pkpo.yaml").read_text())[
        "providers"
    ]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert str(Path(home).parent) == provider["options"]["path"]
    dashboard = json.loads(here("grafana", home).read_text())
    # It asks whichever Prometheus is chosen, and the only one is.
    assert [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "datasource"] == [
        source["type"]
    ]


def prometheus_configuration() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(here("prometheus", "/etc/prometheus/prometheus.yml").read_text())
    return read


def with_our_files(configuration: dict[str, Any]) -> dict[str, Any]:
    """The rules where they are on this machine."""
    return {**configuration, "rule_files": [str(here("prometheus", place)) for place in configuration["rule_files"]]}


def test_promtool_has_no_complaint(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool")
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(with_our_files(prometheus_configuration())))
    checked = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout


def test_targets_are_where_services_serve() -> None:
    """By the names that services have for each other."""
    scraped = {
        each["job_name"]: each["static_configs"][0]["targets"] for each in prometheus_configuration()["scrape_configs"]
    }
    assert scraped["pkpo"] == [f"server:{Settings.metrics_port}"]
    assert f"--server=server:{Settings.port}" in SERVICES["trainer"]["command"]
    (port,) = (flag[15:] for flag in SERVICES["trainer"]["command"] if flag.startswith("--metrics_port="))
    assert scraped["trainer"] == [f"trainer:{port}"]


@contextmanager
def running_alertmanager(folder: Path) -> Iterator[str]:
    """An Alertmanager with the configuration of the service: its address."""
    if shutil.which("prometheus-alertmanager") is None:
        pytest.skip("needs prometheus-alertmanager")
    address = f"127.0.0.1:{free_port()}"
    file = here("alertmanager", "/etc/alertmanager/alertmanager.yml")
    command = ["prometheus-alertmanager", f"--config.file={file}", f"--storage.path={folder}/alertmanager",
               f"--web.listen-address={address}", "--cluster.listen-address="]  # fmt: skip
    with (folder / "alertmanager.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            poll(lambda: process.poll() is not None or reached(f"http://{address}/-/ready"), "ready Alertmanager")
            yield address
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def reached(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


def test_prometheus_sees_the_server_and_tells_alertmanager(tmp_path: Path) -> None:
    """With its own configuration, in which only addresses are those of this machine."""
    command = SERVICES["server"].get("command", [])
    with LiveServer(*command) as server, running_alertmanager(tmp_path) as alertmanager:
        prometheus = LivePrometheus(tmp_path, {})
        addresses = {
            "server:9464": server.metrics_address,
            "127.0.0.1:9090": prometheus.address,
            "alertmanager:9093": alertmanager,
            "trainer:9465": f"127.0.0.1:{free_port()}",
        }
        text = yaml.safe_dump(with_our_files(prometheus_configuration()))
        for service, address in addresses.items():
            assert service in text
            text = text.replace(service, address)
        (tmp_path / "prometheus.yml").write_text(text.replace("5s", "1s"))
        with prometheus, Client(server.address) as client:
            client.transform([[1, 1, 0, 0]], k=2, run_id="compose")
            counted = 'pkpo_rewards_total{job="pkpo", namespace="compose", pod="server", run="compose"}'
            assert list(poll(lambda: prometheus.query(counted), "rewards of the run").values()) == [4]
            poll(lambda: prometheus.query('up{job="prometheus"} == 1'), "Prometheus itself")
            active = prometheus.get("alertmanagers")["activeAlertmanagers"]
            assert [each["url"] for each in active] == [f"http://{alertmanager}/api/v2/alerts"]
            health = {rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]}
            assert health <= {"ok", "unknown"}  # not evaluated yet
