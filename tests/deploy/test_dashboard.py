"""The dashboard: what every panel asks is answered by a live Prometheus that scrapes live servers under load.

Two jobs are scraped, a server of several workers and one of a single process, and each panel is asked of each alone.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import trustme
import yaml

from live_prometheus import LivePrometheus
from live_server import START_SECONDS, LiveServer, poll
from pages import ROOT
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, PkpoError

FILES = ROOT / "deploy" / "helm" / "pkpo" / "files"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ASKING = [panel for panel in PANELS if panel["type"] != "text"]
JOBS = {"pkpo": "rl", "pkpo-eval": "eval"}
TOKEN = "of-the-rehearsal"
WINDOW_SECONDS = 6
# Each group of a run has the same rewards, or one of two that take turns, so that the curve is known exactly.
SOLVED = [1, 0, 0, 0, 1, 0, 0, 0]
PENALTIES = [-1.0, -1.0, -3.0, -3.0]
RUNS = {"solving", "penalised", "mixed", "stuck", "ragged", "streaming"}
MIXED = ([-4.0, -4.0, -2.0, -2.0], [0.5, 0.0, 0.0, 3.0])


def max_at_k(rewards: Sequence[float], k: int) -> float:
    """Mean of the largest of k, over all ways to draw k of the rewards."""
    ordered = sorted(rewards)
    return sum(math.comb(i, k - 1) * reward for i, reward in enumerate(ordered)) / math.comb(len(ordered), k)


class Load:
    """What several training runs and some careless callers do to a server, until it is over."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials) -> None:
        self._client = Client(address, token=TOKEN, credentials=credentials)
        self._address, self._credentials = address, credentials
        self._over = threading.Event()
        callers = (self._solving, self._penalised, self._stuck, self._ragged, self._streaming, self._careless)
        self._threads = [threading.Thread(target=self._repeat, args=(caller,)) for caller in callers]
        self.errors: list[BaseException] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _repeat(self, calls: Callable[[], None]) -> None:
        while not self._over.wait(0.1):
            try:
                calls()
            except BaseException as error:
                self.errors.append(error)
                return

    def _solving(self) -> None:
        self._client.transform(np.array([SOLVED] * 16), k=4, run_id="solving", variant="centered")

    def _penalised(self) -> None:
        self._client.transform(np.array([PENALTIES] * 16), k=2, run_id="penalised")
        self._client.transform(np.array([*MIXED] * 8), k=2, run_id="mixed")

    def _stuck(self) -> None:
        self._client.transform(np.zeros((16, 8)), k=8, run_id="stuck")
        self._client.estimate(np.array([SOLVED] * 4), k=[1, 2])

    def _ragged(self) -> None:
        rewards, groups = np.array([0.0, 1, 0, 1, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 2])
        self._client.transform(rewards, group_ids=groups, k=4, k_policy="clamp", run_id="ragged")

    def _streaming(self) -> None:
        batches = [np.random.default_rng(seed).random((512, 16)) for seed in range(3)]
        for _ in self._client.stream(batches, k=4, run_id="streaming"):
            pass

    def _careless(self) -> None:
        self._client.server_info()
        for mistake in (
            lambda: self._client.transform(np.zeros((4, 4)), k=9),
            lambda: self._client.transform(np.full((4, 4), np.inf), k=2),
        ):
            with suppress(PkpoError, ValueError):
                mistake()
        with grpc.secure_channel(self._address, self._credentials) as channel, suppress(grpc.RpcError):
            pb_grpc.RewardTransformServiceStub(channel).Transform(pb.TransformRequest(), timeout=10)


class Seen(NamedTuple):
    """What the tests look at."""

    prometheus: LivePrometheus
    started: float


def below(heading: str) -> list[dict[str, Any]]:
    """The panels of a row."""
    after = iter(DASHBOARD["panels"])
    next(panel for panel in after if (panel["type"], panel["title"]) == ("row", heading))
    return list(itertools.takewhile(lambda panel: panel["type"] != "row", after))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "tokens").write_text(f"{TOKEN}\n")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    flags = ("--tokens", str(folder / "tokens"), "--threads", "1")
    flags += ("--tls-certificate", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key"))
    with ExitStack() as stack:
        several = stack.enter_context(LiveServer("--workers", "2", *flags, wait=False))
        single = stack.enter_context(LiveServer(*flags, wait=False))
        for server in (several, single):
            poll(functools.partial(server.log_lines, "serving"), "server that serves", START_SECONDS)
        targets = {
            job: (server.metrics_address, {"namespace": namespace, "pod": f"{job}-0"})
            for (job, namespace), server in zip(JOBS.items(), (several, single), strict=True)
        }
        prometheus = stack.enter_context(LivePrometheus(folder, targets, [FILES / "rules.yaml"]))
        poll(lambda: len(prometheus.query("pkpo_build_info")) == len(JOBS), "scraped servers")
        os.kill(several.log_lines("worker_serving")[0]["pid"], signal.SIGKILL)
        poll(lambda: len(several.log_lines("worker_serving")) == 3, "worker in the place of the dead one")
        started = time.time()
        loads = [stack.enter_context(Load(server.address, credentials)) for server in (several, single)]
        poll(lambda: _settled(prometheus), "a window of load", 60)
        yield Seen(prometheus, started)
        for load in loads:
            assert not load.errors, load.errors


def _settled(prometheus: LivePrometheus) -> bool:
    """Whether every run has been seen by every job for longer than a window."""
    time.sleep(0.5)  # to ask all the time would take the processors from those who are asked about
    scrapes = prometheus.query(
        f'min by (job) (count_over_time(pkpo_k_sum_total{{run!="none"}}[1m])) > {WINDOW_SECONDS}'
    )
    return len(scrapes) == len(JOBS)


def substituted(expr: str, job: str, run: str = ".+") -> str:
    """A query as Grafana would send it, had someone chosen one job; or both, where they are named so."""
    chosen = {"namespace": JOBS.get(job, ".*"), "job": job, "instance": ".*", "run": run, "k": "2"}
    chosen |= {"__rate_interval": f"{WINDOW_SECONDS}s", "__range": f"{2 * WINDOW_SECONDS}s"}
    expr = re.sub(r"\$(\w+)", lambda match: chosen[match[1]], expr)
    assert "$" not in expr
    return expr


def answered(seen: Seen, target: dict[str, Any], job: str) -> list[tuple[dict[str, str], list[float]]]:
    """The series of a query: labels, and values."""
    expr = substituted(target["expr"], job)
    if target["instant"]:
        result = seen.prometheus.get("query", query=expr)["result"]
        return [(each["metric"], [float(each["value"][1])]) for each in result]
    result = seen.prometheus.get("query_range", query=expr, start=seen.started, end=time.time(), step=1)["result"]
    return [(each["metric"], [float(value) for _, value in each["values"]]) for each in result]


def legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    """What a series is called in the legend."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target["legendFormat"]).strip()


def named(value: Any) -> str:
    """What a case is called: by the panel's title, or the job."""
    return str(value["title"] if isinstance(value, dict) else value)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("panel", ASKING, ids=named)
def test_every_query_is_answered(seen: Seen, panel: dict[str, Any], job: str) -> None:
    for target in panel["targets"]:
        series = answered(seen, target, job)
        assert series, target["expr"]
        assert all(math.isfinite(value) for _, values in series for value in values), target["expr"]
        if "legendFormat" in target:
            names = [legend(target, labels) for labels, _ in series]
            assert all(names), f"a series of {target['legendFormat']} has no name"
            assert len(set(names)) == len(names), f"two series are called the same: {names}"


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("panel", [panel for panel in PANELS if panel["type"] == "heatmap"], ids=named)
def test_heatmaps_have_what_to_show(seen: Seen, panel: dict[str, Any], job: str) -> None:
    (target,) = panel["targets"]
    buckets = {labels["le"]: values[-1] for labels, values in answered(seen, target, job)}
    counts = [buckets[bound] for bound in sorted(buckets, key=float)]
    assert math.inf in map(float, buckets)
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert sum(later > earlier for earlier, later in zip([0.0, *counts], counts, strict=False)) > 1


@pytest.mark.parametrize("job", JOBS)
def test_what_has_a_colour_of_its_own_is_there(seen: Seen, job: str) -> None:
    for panel in ASKING:
        named = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
        if panel["type"] == "table" or not named:
            continue
        names = {legend(target, labels) for target in panel["targets"] for labels, _ in answered(seen, target, job)}
        # The largest groups of the load are of 16.
        assert named - {"k = 32", "k = 64"} <= names, panel["title"]


def whole_name(run: str, job: str) -> str:
    """What a run of a job is called where those of several are side by side."""
    return f"{run} {JOBS[job]} {job}"


def panel_of(title: str) -> dict[str, Any]:
    (found,) = (panel for panel in PANELS if panel["title"] == title)
    return dict(found)


@pytest.mark.parametrize("job", JOBS)
def test_the_curve_is_that_of_the_rewards(seen: Seen, job: str) -> None:
    (target,) = panel_of("pass@k over k, now")["targets"]
    expected = {("solving", k): max_at_k(SOLVED, k) for k in (1, 2, 4, 8)}
    expected |= {("penalised", k): max_at_k(PENALTIES, k) for k in (1, 2, 4)}
    expected |= {("mixed", k): sum(max_at_k(rewards, k) for rewards in MIXED) / 2 for k in (1, 2, 4)}
    expected |= {("stuck", k): 0.0 for k in (1, 2, 4, 8)}
    expected = {(whole_name(run, job), k): value for (run, k), value in expected.items()}

    def shown() -> bool:
        curve = {(labels["run"], int(labels["k"])): values[-1] for labels, values in answered(seen, target, job)}
        return {point: curve[point] for point in expected} == pytest.approx(expected, rel=1e-9)

    # Only once no scrape at either end of the window fell between two counters of one batch.
    poll(shown, f"exact curve like {expected}")


@pytest.mark.parametrize(("sign", "mean"), [("positive", 0.5), ("negative", -0.5)])
def test_a_run_may_have_no_part_of_one_sign(sign: str, mean: float, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool on PATH")
    (target,) = panel_of("pass@k over k, now")["targets"]
    labels = f'namespace="{JOBS["pkpo"]}", job="pkpo", run="a", k="4"'
    case = {
        "interval": "1s",
        "input_series": [
            {"series": f'pkpo_max_at_k_sum_total{{{labels}, sign="{sign}"}}', "values": "0+8x60"},
            {"series": f"pkpo_max_at_k_groups_total{{{labels}}}", "values": "0+16x60"},
        ],
        "promql_expr_test": [
            {
                "expr": substituted(target["expr"], "pkpo"),
                "eval_time": "60s",
                "exp_samples": [{"labels": f'{{run="{whole_name("a", "pkpo")}", k="4"}}', "value": mean}],
            }
        ],
    }
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "case.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("job", JOBS)
def test_one_run_is_shown_by_itself(seen: Seen, job: str) -> None:
    (target,) = panel_of("$run")["targets"]
    result = seen.prometheus.query(substituted(target["expr"], job, "solving"))
    shown = {dict(labels)["k"]: value for labels, value in result.items()}
    assert shown == pytest.approx({str(k): max_at_k(SOLVED, k) for k in (1, 2, 4, 8)}, abs=0.1)


@pytest.mark.parametrize("job", JOBS)
def test_the_runs_are_what_they_do(seen: Seen, job: str) -> None:
    def now(title: str) -> dict[str, float]:
        targets = panel_of(title)["targets"]
        shown = {legend(each, labels): values[-1] for each in targets for labels, values in answered(seen, each, job)}
        return {name.removesuffix(whole_name("", job)): value for name, value in shown.items()}

    k = now("k")
    assert {run: round(k[run]) for run in ("streaming", "solving", "penalised", "stuck")} == {
        "streaming": 4,
        "solving": 4,
        "penalised": 2,
        "stuck": 8,
    }
    silent = now("Groups without signal")
    assert silent["stuck"] == pytest.approx(1, abs=0.1)
    assert silent["solving"] == silent["streaming"] == 0
    small = now("Groups with k lowered, or too small")
    assert small["ragged"] == pytest.approx(2 / 3, abs=0.1)
    assert small["solving"] == 0
    reasons = now("Refusals by cause")
    assert reasons.keys() >= {"k", "groups.rewards", "unauthenticated"}
    assert now("Training runs")["runs"] == len(RUNS)
    assert now("Servers") == {"servers": 1, "workers": 2 if job == "pkpo" else 1}
    assert now("Answered in time")["in time"] <= 1
    assert now("Error budget left")["left"] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("job", JOBS)
def test_variables_offer_what_there_is(seen: Seen, job: str) -> None:
    offered = {}
    for variable in DASHBOARD["templating"]["list"]:
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", str(variable["query"]))
        if match is not None:
            found = seen.prometheus.get("series", **{"match[]": substituted(match[1], job)})
            offered[variable["name"]] = {series[match[2]] for series in found}
    assert offered["namespace"] == set(JOBS.values())
    assert offered["job"] == {job}
    assert offered["run"] == RUNS
    assert len(offered["instance"]) == 1


@pytest.mark.parametrize("panel", below("Training runs"), ids=named)
def test_runs_of_one_name_in_two_jobs_are_two(seen: Seen, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        series = [labels for labels, _ in answered(seen, target, "|".join(JOBS))]
        named = {legend(target, labels) if "legendFormat" in target else labels["run"] for labels in series}
        of_jobs = [{name for name in named if name.endswith(whole_name("", job))} for job in JOBS]
        assert set.union(*of_jobs) == named
        first, second = ({name.partition(" ")[0] for name in names} for names in of_jobs)
        assert first == second != set()


@pytest.mark.parametrize("job", JOBS)
def test_one_server_is_shown_by_itself(seen: Seen, job: str) -> None:
    memory = panel_of("Memory")["targets"][0]["expr"]
    (labels,) = seen.prometheus.query(substituted(memory, job))
    alone = substituted(memory.replace("$instance", dict(labels)["instance"]), "|".join(JOBS))
    assert set(seen.prometheus.query(alone)) == {labels}
    assert len(seen.prometheus.query(substituted(memory, "|".join(JOBS)))) == len(JOBS)


def test_other_jobs_are_left_alone(seen: Seen) -> None:
    memory = panel_of("Memory")["targets"][0]["expr"]
    assert seen.prometheus.query('process_resident_memory_bytes{job="prometheus"}')
    assert len(seen.prometheus.query(substituted(memory, "pkpo"))) == 1


def test_prometheus_evaluates_every_rule(seen: Seen) -> None:
    rules = [rule for group in seen.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    (annotation,) = DASHBOARD["annotations"]["list"]
    seen.prometheus.query(substituted(annotation["expr"], "pkpo"))


def test_a_picture_of_it_can_be_drawn(seen: Seen, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.observability.picture", f"http://{seen.prometheus.address}",
               str(tmp_path / "dashboard.png"), "--minutes", "1", "--run-step", "3s"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")
    assert f"{len(PANELS) - 1 + len(RUNS)} panels" in done.stdout  # one is repeated for every run
    assert "nothing to show" not in done.stdout


def test_it_is_what_the_code_makes(tmp_path: Path) -> None:
    made = tmp_path / "dashboard.json"
    command = [sys.executable, "-m", "deploy.observability.dashboard", str(made)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert made.read_text() == (FILES / "dashboard.json").read_text(), "python -m deploy.observability.dashboard"


@pytest.mark.parametrize("panel", PANELS, ids=named)
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    if panel["type"] in {"stat", "timeseries", "barchart"}:
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_panels_lie_beside_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
