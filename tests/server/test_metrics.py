"""Metrics: every series that can be foreseen is there at zero, and what is counted is what happened."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import pkpo
from live_prometheus import LivePrometheus
from live_server import LiveServer, poll
from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_core import RewardGroups, Variant
from pkpo_server.codec import Tally
from pkpo_server.metrics import (
    CERTIFICATE_EXPIRY,
    COUNTING_SECONDS,
    DEFINITIONS,
    SECRETS_UNUSABLE,
    STAGES,
    Answered,
    Metrics,
    Stages,
    _RunSeries,
)
from pkpo_server.runs import Runs
from said import Said


def request(values: Any, size: int = 4, **fields: Any) -> pb.TransformRequest:
    message = pb.TransformRequest(**{"k": [2], **fields})
    message.groups.f64.CopyFrom(packed.double_values(np.asarray(values, dtype=float)))
    message.groups.group_size = size
    return message


def runs() -> Runs:
    return Runs(8, 3600, Said())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fresh() -> Iterator[LiveServer]:
    with LiveServer("--max-run-ids", "2") as live:
        yield live


@pytest.fixture(scope="module")
def fresh_stub(fresh: LiveServer) -> Iterator[Any]:
    with grpc.insecure_channel(fresh.address) as channel:
        yield pb_grpc.RewardTransformServiceStub(channel)


class Difference:
    """What changes in the samples from its making on."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._before = server.metrics()

    def now(self) -> dict[str, float]:
        after = self._server.metrics()
        # What several calls share with this one (process metrics, sums of seconds) is not asked for by equality.
        return {
            name: value - self._before.get(name, 0.0)
            for name, value in after.items()
            if name.startswith("pkpo_") and value != self._before.get(name, 0.0)
        }


def test_every_method_variant_and_code_is_there_at_zero(fresh: LiveServer) -> None:
    samples = fresh.metrics()
    for method, variants in {
        "Transform": [*Variant.__members__, "unknown"],
        "TransformStream": [*Variant.__members__, "unknown"],
        "Estimate": ["none"],
        "GetServerInfo": ["none"],
    }.items():
        for variant in variants:
            for code in (
                "OK",
                "INVALID_ARGUMENT",
                "RESOURCE_EXHAUSTED",
                "UNAVAILABLE",
                "DEADLINE_EXCEEDED",
                "CANCELLED",
            ):
                assert samples[f'pkpo_requests_total{{code="{code}",method="{method}",variant="{variant}"}}'] == 0
    for variant in Variant.__members__:
        assert samples[f'pkpo_groups_total{{run="none",variant="{variant}"}}'] == 0
        assert samples[f'pkpo_rewards_total{{run="none",variant="{variant}"}}'] == 0
        assert samples[f'pkpo_zero_signal_groups_total{{run="none",variant="{variant}"}}'] == 0
        assert samples[f'pkpo_kernel_seconds_total{{variant="{variant}"}}'] == 0
    assert samples['pkpo_refused_total{reason="k"}'] == 0
    assert samples['pkpo_in_flight{method="Transform"}'] == 0
    assert samples["pkpo_open_streams"] == 0
    assert samples["pkpo_batch_groups_count"] == 0
    assert samples["process_resident_memory_bytes"] > 0


def test_build_info_names_what_runs(fresh: LiveServer) -> None:
    (info,) = (name for name in fresh.metrics() if name.startswith("pkpo_build_info"))
    for label in ("version", "python", "numba", "numpy", "grpcio"):
        assert f'{label}="' in info
    assert f'version="{pkpo.__version__}"' in info


def test_a_transform_is_counted(fresh: LiveServer, fresh_stub: Any) -> None:
    difference = Difference(fresh)
    values = [0, 1, 0, 1, 1, 1, 1, 1, 0, 2, 4, 8]
    fresh_stub.Transform(request(values, run_id="run/a", variant=pb.VARIANT_CENTERED))
    changed = difference.now()
    assert changed['pkpo_requests_total{code="OK",method="Transform",variant="CENTERED"}'] == 1
    assert changed['pkpo_groups_total{run="run/a",variant="CENTERED"}'] == 3
    assert changed['pkpo_rewards_total{run="run/a",variant="CENTERED"}'] == 12
    assert changed['pkpo_zero_signal_groups_total{run="run/a",variant="CENTERED"}'] == 1
    assert changed["pkpo_batch_groups_sum"] == 3
    assert changed["pkpo_batch_rewards_sum"] == 12
    assert changed['pkpo_request_seconds_count{method="Transform"}'] == 1
    assert (
        changed['pkpo_request_seconds_sum{method="Transform"}']
        >= changed['pkpo_kernel_seconds_total{variant="CENTERED"}']
        > 0
    )
    assert not any("in_flight" in name for name in changed)
    assert fresh.metrics()['pkpo_clamped_groups_total{run="run/a",variant="CENTERED"}'] == 0


def test_a_run_has_its_curve_and_its_k(fresh: LiveServer, fresh_stub: Any) -> None:
    difference = Difference(fresh)
    groups = 'pkpo_max_at_k_groups_total{k="1",run="run/b"}'
    # One of four solved: pass@1, 2, 4 are 1/4, 1/2, 1.
    fresh_stub.Transform(request([0, 0, 0, 1] * 3, run_id="run/b", k=[3]))
    fresh_stub.Transform(request([-1, -1, -1, 1], run_id="run/b", k=[1]))
    fresh_stub.Transform(request([0, 0, 0, 1], run_id="run/b", variant=pb.VARIANT_GRPO, k=[]))
    fresh_stub.Transform(request([0, 0, 0, 1], run_id="run/b", variant=pb.VARIANT_TZSM, k=[0]))
    poll(lambda: fresh.metrics().get(groups) == 6, "curve")
    changed = difference.now()
    for k, solved, negative in ((1, 0.25, 0.5), (2, 0.5, 0), (4, 1, 0)):
        assert changed[f'pkpo_max_at_k_groups_total{{k="{k}",run="run/b"}}'] == 6
        # Of -1, -1, -1, 1: max@1, 2, 4 are -1/2, 0, 1.
        positive = 5 * solved + (1 if k == 4 else 0)
        assert changed[f'pkpo_max_at_k_sum_total{{k="{k}",run="run/b",sign="positive"}}'] == pytest.approx(positive)
        assert changed.get(f'pkpo_max_at_k_sum_total{{k="{k}",run="run/b",sign="negative"}}', 0) == negative
    assert changed['pkpo_k_sum_total{run="run/b"}'] == 3 * 3 + 1 + 4
    assert changed['pkpo_k_groups_total{run="run/b"}'] == 3 + 1 + 1
    assert not any('k="8"' in name for name in changed)


def test_stages_are_told_apart() -> None:
    registry = CollectorRegistry()
    counters = Metrics(registry, runs())

    async def answer() -> None:
        counters.answered(Answered("Transform", "S", "", Tally(2, 8), Stages(read=0.1, compute=0.2, write=0.3), 1.0))
        counters.count()

    asyncio.run(answer())
    for stage, seconds in {"read": 0.1, "compute": 0.2, "write": 0.3, "wait": 0.4}.items():
        labels = {"method": "Transform", "stage": stage}
        assert registry.get_sample_value("pkpo_stage_seconds_total", labels) == pytest.approx(seconds)


@pytest.mark.parametrize("groups", [2, 5000])
def test_a_request_s_stages_are_those_of_its_work(groups: int, fresh: LiveServer, fresh_stub: Any) -> None:
    """A bootstrap computes far longer than it reads or writes; what is computed is what the variant took."""
    difference = Difference(fresh)
    message = request(np.random.default_rng(0).random(32 * groups), 32, k=[16], variant=pb.VARIANT_PASSK_BOOTSTRAP)
    fresh_stub.Transform(message)
    changed = difference.now()
    stages = {s: changed.get(f'pkpo_stage_seconds_total{{method="Transform",stage="{s}"}}', 0.0) for s in STAGES}
    assert all(seconds > 0 for seconds in stages.values())
    assert stages["compute"] == pytest.approx(changed['pkpo_kernel_seconds_total{variant="PASSK_BOOTSTRAP"}'])
    if groups > 2:
        assert stages["compute"] > stages["read"] + stages["write"]


def test_open_calls_are_told_against_their_limit(fresh: LiveServer, fresh_stub: Any) -> None:
    samples = fresh.metrics()
    assert (samples["pkpo_open_calls"], samples["pkpo_open_calls_limit"]) == (0, 1024)
    assert samples["pkpo_threads"] >= 1
    done = threading.Event()

    def messages() -> Iterator[pb.TransformStreamRequest]:
        yield pb.TransformStreamRequest(sequence=1, request=request([0, 1, 2, 3]))
        done.wait(30)

    answers = fresh_stub.TransformStream(messages())
    assert next(answers).sequence == 1
    poll(lambda: fresh.metrics()["pkpo_open_calls"] == 1, "an open call")
    done.set()
    list(answers)
    poll(lambda: fresh.metrics()["pkpo_open_calls"] == 0, "no open call")


def test_clamped_and_small_groups_are_counted(fresh: LiveServer, fresh_stub: Any) -> None:
    difference = Difference(fresh)
    message = pb.TransformRequest(k=[3], k_policy=pb.K_POLICY_CLAMP)
    message.groups.f64.CopyFrom(packed.double_values(np.array([0.0, 1, 5, 0, 1])))
    message.groups.group_sizes.sizes.extend([2, 1, 2])
    fresh_stub.Transform(message)
    changed = difference.now()
    assert changed['pkpo_clamped_groups_total{run="none",variant="SLOO_MINUS_ONE"}'] == 2
    assert changed['pkpo_too_small_groups_total{run="none",variant="SLOO_MINUS_ONE"}'] == 1


def test_every_message_of_a_stream_is_counted(fresh: LiveServer, fresh_stub: Any) -> None:
    difference = Difference(fresh)
    messages = [pb.TransformStreamRequest(sequence=i, request=request([0, 1, 2, 3])) for i in range(3)]
    messages.append(pb.TransformStreamRequest(sequence=9, request=request([0, 1, 2, 3], k=[7])))
    list(fresh_stub.TransformStream(iter(messages)))
    changed = difference.now()
    assert changed['pkpo_requests_total{code="OK",method="TransformStream",variant="SLOO_MINUS_ONE"}'] == 3
    assert (
        changed['pkpo_requests_total{code="INVALID_ARGUMENT",method="TransformStream",variant="SLOO_MINUS_ONE"}'] == 1
    )
    assert changed['pkpo_refused_total{reason="k"}'] == 1
    assert changed['pkpo_groups_total{run="none",variant="SLOO_MINUS_ONE"}'] == 3


def test_estimates_and_info_are_counted(fresh: LiveServer, fresh_stub: Any) -> None:
    difference = Difference(fresh)
    fresh_stub.Estimate(pb.EstimateRequest(groups=request([0, 1, 2, 3]).groups, k=[1]))
    fresh_stub.GetServerInfo(pb.GetServerInfoRequest())
    changed = difference.now()
    assert changed['pkpo_requests_total{code="OK",method="Estimate",variant="none"}'] == 1
    assert changed['pkpo_requests_total{code="OK",method="GetServerInfo",variant="none"}'] == 1
    assert changed['pkpo_groups_total{run="none",variant="none"}'] == 1


def test_refusals_are_counted_by_reason(fresh: LiveServer, fresh_stub: Any) -> None:
    difference = Difference(fresh)
    bad = [
        (request([0, 1, 2, 3], k=[9]), "k", "SLOO_MINUS_ONE"),
        (request([0, 1, 2, float("nan")]), "groups.rewards", "SLOO_MINUS_ONE"),
        (request([0, 1, 2, 3], variant=77), "variant", "unknown"),
    ]
    for message, _, _ in bad:
        with pytest.raises(grpc.RpcError):
            fresh_stub.Transform(message)
    changed = difference.now()
    for _, reason, _ in bad:
        assert changed[f'pkpo_refused_total{{reason="{reason}"}}'] == 1
    assert changed['pkpo_requests_total{code="INVALID_ARGUMENT",method="Transform",variant="SLOO_MINUS_ONE"}'] == 2
    assert changed['pkpo_requests_total{code="INVALID_ARGUMENT",method="Transform",variant="unknown"}'] == 1
    assert not any(name.startswith("pkpo_groups_total") for name in changed)


def test_runs_are_bounded(fresh: LiveServer, fresh_stub: Any) -> None:
    for run_id in ("run/a", "run/b", "run/c", "run/d", "run/b"):
        fresh_stub.Transform(request([0, 1, 2, 3], run_id=run_id, variant=pb.VARIANT_S))
    samples = fresh.metrics()
    assert samples['pkpo_groups_total{run="run/b",variant="S"}'] == 2
    assert samples['pkpo_groups_total{run="other",variant="S"}'] == 2
    assert not any("run/c" in name or "run/d" in name for name in samples)
    assert (samples["pkpo_runs"], samples["pkpo_runs_limit"]) == (2, 2)


def test_the_text_is_well_formed(fresh: LiveServer) -> None:
    families = list(text_string_to_metric_families(fresh.metrics_text()))
    ours = [family for family in families if family.name.startswith("pkpo_")]
    # Without TLS and tokens their help is there, and no more.
    there = set(DEFINITIONS) - {CERTIFICATE_EXPIRY, SECRETS_UNUSABLE}
    assert {family.name for family in ours if family.samples} >= {each.name.removesuffix("_total") for each in there}
    assert {family.name for family in ours} == {each.name.removesuffix("_total") for each in DEFINITIONS}
    assert all(family.documentation for family in ours)


def test_a_curve_that_fails_costs_no_answer_and_stops_no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    counters = Metrics(registry, runs())
    groups = RewardGroups(np.array([0.0, 1.0]), 2)
    failures = [MemoryError()]
    keep = counters._curves.keep

    def failing_once(run: str, kept: RewardGroups) -> None:
        if failures:
            raise failures.pop()
        keep(run, kept)

    monkeypatch.setattr(counters._curves, "keep", failing_once)
    told: list[str] = []

    async def answer() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        for _ in range(3):
            tally = Tally(groups=1, rewards=2, transformed=groups)
            counters.answered(Answered("Transform", "S", "", tally, Stages(1e-5, 1e-4, 1e-5), 1e-3))
        await asyncio.sleep(4 * COUNTING_SECONDS)

    asyncio.run(answer())
    assert told == ["rewards were not counted"]
    assert registry.get_sample_value("pkpo_groups_total", {"variant": "S", "run": "none"}) == 3
    assert registry.get_sample_value("pkpo_max_at_k_groups_total", {"k": "1", "run": "none"}) == 2


def test_runs_take_turns_for_their_curves() -> None:
    """One each time, so that nobody waits for many."""
    registry = CollectorRegistry()
    counters = Metrics(registry, runs())

    async def answer() -> None:
        for run in "abc":
            tally = Tally(groups=1, rewards=2, transformed=RewardGroups(np.array([0.0, 1.0]), 2))
            counters.answered(Answered("Transform", "S", run, tally, Stages(1e-5, 1e-4, 1e-5), 1e-3))
        await asyncio.sleep(10 * COUNTING_SECONDS)

    asyncio.run(answer())
    assert [registry.get_sample_value("pkpo_max_at_k_groups_total", {"k": "2", "run": run}) for run in "abc"] == [1] * 3


def test_promtool_finds_nothing_to_say(fresh: LiveServer) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool on PATH")
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=fresh.metrics_text(), capture_output=True, text=True, timeout=60
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_prometheus_scrapes_it(fresh: LiveServer, fresh_stub: Any, tmp_path: Path) -> None:
    fresh_stub.Transform(request([0, 1, 2, 3], variant=pb.VARIANT_GRPO))
    with LivePrometheus(tmp_path, {"pkpo": (fresh.metrics_address, {})}) as prometheus:
        found = poll(lambda: prometheus.query('pkpo_groups_total{variant="GRPO",run="none"}'), "sample", 60)
    assert list(found.values()) == [1]


def test_what_cannot_be_counted_stops_no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    counters = Metrics(registry, runs())
    answered = Answered("Transform", "S", "", Tally(groups=2, rewards=8), Stages(1e-5, 1e-4, 1e-5), 1e-3)
    count, failures = counters._count, [OSError("no space left on device")]

    def failing_once(each: Answered, run: _RunSeries) -> None:
        if failures:
            raise failures.pop()
        count(each, run)

    monkeypatch.setattr(counters, "_count", failing_once)

    async def answer() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        for _ in range(2):
            counters.answered(answered)
            await asyncio.sleep(2 * COUNTING_SECONDS)

    asyncio.run(answer())
    counters.count()
    assert registry.get_sample_value("pkpo_groups_total", {"variant": "S", "run": "none"}) == 2
