"""A slice of the soak; and that it finds what is wrong: a server that is, and records of one that would be."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.page import with_table
from live_server import poll
from pkpo_client import DeadlineExceeded, LocalClient, MaxAtK, Unavailable
from soak import ledger, questions, verdict
from soak.campaign import Campaign, Plan, Told
from soak.faults import KINDS, Fault, Injector
from soak.ledger import Failure, Ledger
from soak.records import Record, Sample, slope
from soak.report import report, tables
from soak.services import PLAIN, Identity, Service, is_fault
from soak.verdict import Bounds, Rest

# What takes no time to recover from.
BRIEF = ("connections cut", "corruption", "certificate rotated")
BOUNDS = Bounds()
# Kernels that are wrong now and then, fail now and then, and keep what they should not.
WRONG = """
import pkpo_core
transform, kept, calls = pkpo_core.transform, [], iter(range(10**9))
def wrong(groups, k=None, **more):
    answer = transform(groups, k, **more)
    call = next(calls)
    kept.append(bytearray(2**21))
    if call > 40 and call % 7 == 0:
        answer.advantages[-1] += 1e-9
    if call > 40 and call % 11 == 0:
        raise RuntimeError("out of order")
    return answer
pkpo_core.transform = wrong
"""


def plan(**more: object) -> Plan:
    usual = {"cores": 1.0, "fill": False, "warm_seconds": 2, "gap": 1.0, "sample_every": 1.0, "kinds": BRIEF}
    return Plan(0.1, **{**usual, **more})  # type: ignore[arg-type]


def test_a_slice_finds_nothing() -> None:
    told = Campaign(plan()).run()
    assert told.findings == []
    assert told.faults
    assert min(told.checked[caller] for caller in verdict.PATIENT) > 5
    assert told.refused["without a token"] > 0
    kept = report(plan(), told)
    assert kept["verdict"] == "pass"
    assert {record["role"] for record in kept["records"]} >= {"guarded server", "plain worker", "waiting callers"}
    page = with_table("<!-- soak -->\n<!-- end of soak -->", "soak", tables(kept))
    assert "guarded server" in page
    assert re.search(r"Metric series, at most: [\d,]+ of the \w+ service, which began with \d+; ", page)
    assert "(never: worker killed, " in page, "a slice has few kinds of faults"


def test_a_server_that_is_wrong_is_found_to_be(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG)
    told = Campaign(plan(kinds=("delay",), env={"PYTHONPATH": str(tmp_path)}, bounds=Bounds(ceiling=350))).run()
    findings = "\n".join(told.findings)
    assert ": WRONG after" in findings
    assert ": INTERNAL after" in findings
    assert "guarded: the log says" in findings
    assert "RuntimeError: out of order" in findings
    assert "counts an internal error" in findings
    assert "MiB; must be at most 350" in findings


class Longest(Random):
    """Whatever may last, lasts as long as it may."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_a_worker_that_is_replaced_while_it_stands_still_has_recovered(tmp_path: Path) -> None:
    with Service(PLAIN, tmp_path, "--workers", "2") as service:
        faults = Injector({PLAIN: service}, Identity(tmp_path), Longest(1), ["worker stopped"], 1.0, lambda: None)
        before = len(service.live.log_lines("worker_serving"))
        faults._inject("worker stopped")
        assert faults.findings == []
        assert service.live.log_lines("worker_stuck")
        assert len(service.live.log_lines("worker_serving")) > before
    assert service.findings == []


# --- of calls ---------------------------------------------------------------------------------------------------------

CUT = Fault("connections cut", "plain", 100.0, 101.0)
ROTATED = Fault("tokens rotated", "guarded", 100.0, 101.0)


def found(
    *failures: Failure, faults: tuple[Fault, ...] = (CUT, ROTATED), stalls: tuple[tuple[float, float], ...] = ()
) -> list[str]:
    return verdict.of_calls(failures, faults, stalls)[0]


def failure(caller: str = "hurried", service: str = "plain", code: str = "UNAVAILABLE", at: float = 100.5) -> Failure:
    return Failure(caller, service, code, at, at + 1.0)


def test_a_fault_excuses_callers_that_do_not_wait() -> None:
    assert found(failure()) == []
    assert found(failure(at=101.0 + KINDS[CUT.kind].recovery)) == []


@pytest.mark.parametrize(
    "inexcusable",
    [
        failure(caller="patient"),
        failure(caller="stream"),
        failure(caller="fallback"),
        failure(service="guarded"),
        failure(service="guarded", code="UNAUTHENTICATED"),
        failure(code="INTERNAL"),
        failure(code="UNKNOWN"),
        failure(code="RESOURCE_EXHAUSTED"),
        failure(code="WRONG"),
        failure(code="ANSWERED"),
        failure(code="STUCK"),
        failure(code="LATE"),
        failure(code="TypeError"),
        failure(at=98.0),
        failure(at=102.0 + KINDS[CUT.kind].recovery),
    ],
    ids=str,
)
def test_nothing_else_is_excused(inexcusable: Failure) -> None:
    assert len(found(inexcusable)) == 1


def test_a_machine_that_stood_still_excuses_what_is_late_and_not_what_is_wrong() -> None:
    stalls = ((200.0, 210.0),)
    assert found(failure("patient", code="DEADLINE_EXCEEDED", at=205.0), stalls=stalls) == []
    assert found(failure("patient", code="WRONG", at=205.0), stalls=stalls)
    assert found(failure("patient", code="DEADLINE_EXCEEDED", at=300.0), stalls=stalls)


def test_many_findings_are_counted() -> None:
    told = found(*[failure(code="WRONG")] * 100)
    assert len(told) < 30
    assert told[-1] == "and 80 more calls"


# --- of the ledger ----------------------------------------------------------------------------------------------------


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(ledger, "SLACK_SECONDS", 0.3)
    made = Ledger()
    yield made
    made.heartbeat.stop()


def codes(noted: Ledger) -> list[str]:
    return [each["code"] for each in noted.page().failures]


def test_answers_and_errors_are_noted(noted: Ledger) -> None:
    with noted.call("patient", "plain", 1.0) as call:
        call.right = True
    page = noted.page()
    assert (page.calls, page.checked, page.failures) == ({"patient": 1}, {"patient": 1}, [])
    assert [caller for caller, _, _ in page.latencies] == ["patient"]
    with noted.call("patient", "plain", 1.0) as call:
        call.right = False
    with noted.call("patient", "plain", 1.0):
        raise Unavailable("away")
    with noted.call("strangers", "plain", 1.0, ["DEADLINE_EXCEEDED"]):
        raise DeadlineExceeded("late")
    with noted.call("strangers", "plain", 1.0, ["INVALID_ARGUMENT"], must=True):
        pass
    with noted.call("strangers", "plain", 1.0):
        raise TypeError("a defect of the client's")
    assert codes(noted) == ["WRONG", "UNAVAILABLE", "ANSWERED", "TypeError"]


def test_a_call_without_an_outcome_is_found_once_and_so_is_its_late_end(noted: Ledger) -> None:
    over = threading.Event()

    def ask() -> None:
        with noted.call("patient", "plain", 0.1):
            over.wait(60)

    asking = threading.Thread(target=ask)
    asking.start()
    assert poll(lambda: codes(noted), "stuck call") == ["STUCK"]
    assert codes(noted) == []
    over.set()
    asking.join()
    assert codes(noted) == ["LATE"]


def test_time_in_which_the_process_did_not_run_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    times = iter([now, now + 0.25, now + 100.25])
    monkeypatch.setattr(ledger, "time", SimpleNamespace(monotonic=lambda: next(times, now + 100.25)))
    heartbeat = ledger.Heartbeat()
    poll(lambda: heartbeat.stalls, "stall")
    heartbeat.stop()
    assert heartbeat.stalls == [(now + 0.25, now + 100.25)]
    assert heartbeat.seconds < 1.5


# --- of answers -------------------------------------------------------------------------------------------------------


def test_answers_are_compared_to_the_bit() -> None:
    with LocalClient() as here:
        rewards = np.random.default_rng(1).random((3, 8))
        asked = {"rewards": rewards, "k": 2, "estimate_k": [1, 8]}
        question = questions.Question("transform_detailed", asked, here.transform_detailed(**asked))
        assert question.is_answered_by(here.transform_detailed(**asked))
        for place in ("advantages", "group_statuses"):
            wrong = here.transform_detailed(**asked)
            values = getattr(wrong, place)
            values.flat[0] = np.nextafter(values.flat[0], 1) if place == "advantages" else 1
            assert not question.is_answered_by(wrong)
        assert not question.is_answered_by(here.transform_detailed(**{**asked, "estimate_k": [1, 7]}))
        assert not question.is_answered_by(here.transform_detailed(**{**asked, "rewards": rewards.astype("f4")}))
    zeros = MaxAtK(1, np.zeros(2), np.zeros(2))
    assert not questions.same_bits(zeros, MaxAtK(1, -np.zeros(2), np.zeros(2)))


def test_what_this_process_computes_is_compared_with_exact_arithmetic() -> None:
    rewards = np.random.default_rng(1).random((2, 6))
    asked = {"rewards": rewards, "k": 3, "variant": "s", "scale": "sum", "k_policy": "clamp", "seed": 0}
    with LocalClient() as here:
        answer = here.transform_detailed(**asked)
    questions.assert_exact(asked, answer)
    answer.advantages[1, 2] *= 1 + 1e-9
    with pytest.raises(AssertionError):
        questions.assert_exact(asked, answer)


# --- of processes -----------------------------------------------------------------------------------------------------


def record(leaking: float, seconds: float = 3600.0, noise: float = 15.0) -> Record:
    """An hour of a server that leaks so many MiB in it, warms up for ten minutes, and has batches of all sizes."""
    rng = np.random.default_rng(5)
    times = np.arange(0.0, seconds, seconds / 240)
    values = 150 + 40 * (1 - np.exp(-times / 200)) + noise * rng.random(len(times)) ** 3 + leaking * times / 3600
    samples = [Sample(at, value, value, 20, 10) for at, value in zip(times.tolist(), values.tolist(), strict=True)]
    return Record("server", 1, samples)


def test_memory_that_rises_is_found() -> None:
    assert [*verdict.of_memory([record(0.0), record(-50.0)], BOUNDS)] == []
    (told,) = verdict.of_memory([record(30.0)], BOUNDS)
    assert "server: memory rises by" in told
    assert [*verdict.of_memory([record(30.0, seconds=60.0)], BOUNDS)] == []  # too short to be judged but by its ceiling
    (told,) = verdict.of_memory([record(36000.0 * 2, seconds=60.0)], BOUNDS)
    assert "must be at most 700" in told


def test_a_slope_is_that_of_most_of_the_points() -> None:
    times = np.arange(50.0)
    values = 3.0 * times
    values[[7, 20, 33]] += 1e6
    assert slope(times.tolist(), values.tolist()) == pytest.approx(3.0)


def test_what_is_held_at_rest_is_found() -> None:
    def rest(descriptors: int = 20, threads: int = 10, calls: float = 0.0) -> Rest:
        return Rest(0.0, {"server": Sample(0.0, 1.0, 1.0, descriptors, threads)}, {"plain": {"pkpo_open_calls": calls}})

    assert [*verdict.of_rests([rest(), rest(22, 12)], BOUNDS)] == []
    for leaking, said in (
        (rest(descriptors=29), "29 descriptors at rest"),
        (rest(threads=23), "23 threads at rest"),
        (rest(calls=1.0), "pkpo_open_calls is 1 at rest"),
    ):
        (told,) = verdict.of_rests([rest(), leaking, rest()], BOUNDS)
        assert said in told


def test_series_without_end_are_found() -> None:
    bounds = Bounds(series=100)
    assert [*verdict.of_series({"plain": 500}, {"plain": 600}, bounds)] == []
    (told,) = verdict.of_series({"plain": 500}, {"plain": 601}, bounds)
    assert "601 metric series" in told


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"event": "serving", "level": "info"}, False),
        ({"event": "worker_died", "level": "error"}, False),
        ({"event": "refused", "level": "warning"}, False),
        ({"event": "internal_error", "level": "error"}, True),
        ({"event": "killed", "level": "error"}, True),
        ({"event": "failed", "level": "error", "exception": "Traceback"}, True),
        ({"event": "x", "level": "error", "logger": "grpc", "exception": "UnicodeDecodeError: bytes"}, False),
        ({"event": "x", "level": "error", "logger": "grpc", "exception": "ExecuteBatchError: Failed"}, False),
        ({"event": "x", "level": "error", "logger": "grpc", "exception": "KeyError: x"}, True),
    ],
)
def test_logs_are_judged(said: dict[str, str], fault: bool) -> None:
    assert is_fault(said) is fault


def test_a_restart_of_the_server_that_must_live_is_found() -> None:
    campaign = Campaign(plan())
    campaign.told = told = Told()
    told.checked.update(dict.fromkeys(verdict.PATIENT, 1))
    told.rests.append(Rest(0.0, {}, {}))
    for process in (1, 2):
        told.records["guarded server", process] = Record("guarded server", process)
    campaign._judge()
    assert told.findings == ["guarded server: 2 processes; must be one throughout"]
