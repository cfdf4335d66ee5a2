"""The load is made as it says, what becomes of it is told apart, and every row is measured. No figure is judged."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from pkpo.v1 import reward_transform_pb2 as pb

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import overload  # noqa: E402
from benchmarks.load import Callers, Calls, Due, Kept, Tenant, Watched, callers  # noqa: E402
from benchmarks.processes import Running  # noqa: E402
from benchmarks.served import TRANSFORM  # noqa: E402

SLOW_SECONDS = 0.05
RETRY = (("grpc-retry-pushback-ms", "70"), ("grpc-status-details-bin", b"details"))
MESSAGE = pb.TransformRequest(seed=7).SerializeToString()


def _answer(raw: bytes, context: Any) -> bytes:
    """By the run id: what a server may do, one call at a time."""
    run_id = pb.TransformRequest.FromString(raw).run_id
    if run_id == "slow":
        time.sleep(SLOW_SECONDS)
    elif run_id == "refused":
        context.set_trailing_metadata(RETRY)
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    elif run_id == "refused without a word":
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    elif run_id == "failed":
        context.abort(grpc.StatusCode.INTERNAL, "")
    return b"other" if run_id == "wrong" else b"answer"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    service, method = TRANSFORM[1:].split("/")
    serving = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(_answer)
    serving.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = serving.add_insecure_port("127.0.0.1:0")
    serving.start()
    yield Running(f"127.0.0.1:{port}", psutil.Process())
    serving.stop(0).wait()


@pytest.fixture(scope="module")
def calling() -> Iterator[Callers]:
    with callers() as process:
        yield process


def _due(seconds: list[float], tenant: list[int] | None = None) -> Due:
    zeros = np.zeros(len(seconds), np.int64)
    return Due(np.array(seconds), zeros, zeros if tenant is None else np.array(tenant))


def test_a_call_s_time_counts_from_when_it_was_due(server: Running, calling: Callers) -> None:
    number = 8
    seen = calling.watched(
        server, TRANSFORM, [Tenant(server.address, 2, ("slow",))], [MESSAGE], _due([0.01] * number), 30.0
    )
    assert len(seen.calls.answered) == number
    # They were answered one after another, in whatever order; the n-th waited for those before.
    assert (np.sort(seen.calls.times) >= SLOW_SECONDS * np.arange(1, number + 1)).all()


def test_what_became_of_calls_is_told_apart(server: Running, calling: Callers) -> None:
    names = ("", "refused", "refused without a word", "failed", "wrong")
    tenants = [Tenant(server.address, 1, (name,)) for name in names]
    seen = calling.watched(
        server, TRANSFORM, tenants, [MESSAGE], _due([0.0] * len(names), list(range(len(names)))), 30.0
    )
    calls = seen.calls
    assert sorted(calls.answered.tenant.tolist()) == [0, 4]
    assert calls.refused.tenant.tolist() == [1]
    assert calls.refused.pushback.tolist() == [0.07]
    assert calls.unanswered.codes() == {"RESOURCE_EXHAUSTED": 1, "INTERNAL": 1}
    assert calls.wrong.tolist() == [False, False, False, False, True]
    stage = overload.Stage.of("all", overload.Window(seen, 0.0, 1.0))
    assert (stage.calls, stage.answered, stage.refused, stage.wrong) == (5, 2, 1, 1)


def test_a_call_over_its_deadline_has_no_answer(server: Running, calling: Callers) -> None:
    seen = calling.watched(
        server, TRANSFORM, [Tenant(server.address, 1, ("slow",))], [MESSAGE], _due([0.0] * 4), SLOW_SECONDS / 4
    )
    assert seen.calls.unanswered.codes() == {"DEADLINE_EXCEEDED": 4}


def test_tenants_carry_their_run_ids_in_turn(server: Running, calling: Callers) -> None:
    tenants = [Tenant(server.address, 2, ("", "wrong"))]
    calls = calling.watched(server, TRANSFORM, tenants, [MESSAGE], _due([0.0] * 6), 30.0).calls
    assert calls.wrong.tolist() == [False, True] * 3
    assert len(calling.watched(server, TRANSFORM, tenants, [MESSAGE], _due([]), 30.0).calls) == 0


@pytest.mark.parametrize("heeding", [True, False])
def test_a_closed_loop_keeps_calls_under_way(server: Running, calling: Callers, heeding: bool) -> None:
    loop = Kept(3, 1.0, np.zeros(1, np.int64), heeding)
    calls = calling.watched(server, TRANSFORM, [Tenant(server.address, 1, ("refused",))], [MESSAGE], loop, 30.0).calls
    assert len(calls.refused) == len(calls) >= 3
    starts = np.sort(calls.due)
    # Told to come again after 70 ms, three callers make at most 15 calls each in a second.
    assert not heeding or len(calls) <= 3 * 15
    under_way = [((calls.due <= at) & (calls.due + calls.times > at)).sum() for at in starts]
    assert max(under_way) <= 3


def test_recovered_is_when_calls_take_no_longer_than_usual() -> None:
    due = np.arange(0.0, 5.0, 0.01)
    times = np.where(due < 2.0, 1.0, 0.01)
    zeros, none = np.zeros(len(due), np.int64), np.full(len(due), np.nan)

    def calls(code: Any) -> Calls:
        return Calls(due, zeros, zeros, none, times, code, none, zeros.astype(bool))

    # The half second of which a twentieth may take longer begins just before.
    assert overload.recovery(calls(zeros), 1.0, 5.0, 0.5) == pytest.approx(1.0, abs=0.051)
    assert overload.recovery(calls(zeros), 2.0, 5.0, 0.5) == 0.0
    assert overload.recovery(calls(np.where(due < 3.0, 8, 0)), 1.0, 5.0, 0.5) == pytest.approx(2.0, abs=0.051)
    assert overload.recovery(calls(zeros), 1.0, 5.0, 0.001) == float("inf")


def _seen(due: list[float], times: list[float], processor: list[float]) -> Watched:
    number, zeros = len(due), np.zeros(len(due), np.int64)
    calls = Calls(
        np.array(due), zeros, zeros, np.zeros(number), np.array(times), zeros, np.full(number, np.nan), zeros == 1
    )
    at = np.arange(len(processor), dtype=float)
    return Watched(calls, at, 100.0 * (at + 1), np.array(processor), *[at / 4] * 3)


def test_one_load_made_at_two_times_is_one_stage() -> None:
    before = _seen([0.5, 1.5, 2.5], [0.1, 0.2, 9.0], [0.0, 0.5, 1.0, 1.0])
    after = _seen([0.5, 3.5], [9.0, 0.3], [0.0, 1.0, 1.0, 1.0, 1.5, 2.0])
    stage = overload.Stage.of("both", overload.Window(before, 0.0, 2.0), overload.Window(after, 3.0, 5.0))
    assert (stage.seconds, stage.calls, stage.answered, stage.p50) == (4.0, 0.75, 0.75, 0.2)
    assert stage.p99 == pytest.approx(np.percentile([0.1, 0.2, 0.3], 99))
    assert stage.busy == pytest.approx((1.0 + 1.0) / 4)
    assert stage.loop == pytest.approx(1.0 / 2.0)
    # 0.5 s into the one and into the other; 1.5 s into the one alone.
    assert stage.p99_of_fifths[1] == pytest.approx(np.percentile([0.1, 0.3], 99))
    assert stage.p99_of_fifths[3] == pytest.approx(0.2)
    assert max(stage.resident_of_fifths) == 500.0


def test_two_loads_are_made_as_one_in_order() -> None:
    merged = overload.merged([_due([0.1, 0.4], [0, 0]), _due([0.2, 0.3], [1, 1])])
    assert merged.seconds.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert merged.tenant.tolist() == [0, 1, 1, 0]


@pytest.mark.timeout(600)
def test_every_row_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "overload", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bars = re.findall(r"^\| .* \| tried +\|$", done.stdout, re.MULTILINE)
    stages = re.findall(r"^\| .* (?:\| [\d.]+% +){4}\| (?:[\d.e+-]+|nan) +\|$", done.stdout, re.MULTILINE)
    assert (len(bars), len(stages)) == (12, 9), done.stdout
