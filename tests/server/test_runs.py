"""Runs with series of their own: a run that ends gives its slot back, its series are removed, and no sum falls."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_server.run_files import CounterFile, RunFile, RunFiles
from pkpo_server.runs import NO_RUN, OTHER_RUN, Runs
from said import Said


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Slots:
    """Two slots, given back after ten seconds."""

    def __init__(self, slots: int = 2) -> None:
        self.clock, self.said = Clock(), Said()
        self.runs = Runs(slots, 10, self.said, clock=self.clock)  # type: ignore[arg-type]

    def at(self, seconds: float, *run_ids: str) -> list[str]:
        self.clock.now = 100 + seconds
        return [self.runs.name(run_id) for run_id in run_ids]


def test_a_run_that_is_idle_gives_its_slot_back() -> None:
    slots = Slots()
    assert slots.at(0, "a", "b", "c") == ["a", "b", OTHER_RUN]
    assert slots.at(5, "a") == ["a"]
    assert (slots.runs.seconds_left(), slots.runs.let_go()) == (5, [])
    slots.clock.now = 110
    assert slots.runs.let_go() == ["b"]
    assert (len(slots.runs), slots.runs.seconds_left()) == (1, 5)
    assert slots.at(11, "c", "b", "a") == ["c", OTHER_RUN, "a"]
    slots.clock.now = 200
    assert slots.runs.let_go() == ["c", "a"]
    assert (len(slots.runs), slots.runs.seconds_left()) == (0, None)


def test_that_no_slot_is_free_is_said_once_until_one_is() -> None:
    slots = Slots()
    slots.at(0, "a", "b", "c", "d", "c")
    assert slots.said.lines == [("runs_full", {"run_id": "c", "max_run_ids": 2})]
    slots.at(5, "b")
    slots.clock.now = 110
    slots.runs.let_go()
    slots.at(10, "e", "f", "a")
    assert [fields["run_id"] for _, fields in slots.said.lines] == ["c", "f"]


def test_some_names_take_no_slot() -> None:
    slots = Slots()
    assert slots.at(0, "", NO_RUN, OTHER_RUN, "a", "b") == [NO_RUN, NO_RUN, OTHER_RUN, "a", "b"]
    assert slots.said.lines == []
    assert Slots(0).at(0, "a", OTHER_RUN) == [NO_RUN, NO_RUN]


class Worker:
    """Counts as a worker does: a real counter of the library, kept in a real file."""

    def __init__(self, folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = RunFile(folder, number)
        monkeypatch.setattr(values, "ValueClass", self.file.value_class(values.MutexValue))
        registry = CollectorRegistry()
        self.groups = Counter("groups", "Groups.", ("run",), registry=registry)
        self.unnamed = Counter("requests", "Requests.", registry=registry)
        self.monkeypatch = monkeypatch

    def count(self, run: str, groups: float) -> None:
        self.monkeypatch.setattr(values, "ValueClass", self.file.value_class(values.MutexValue))
        self.groups.labels(run).inc(groups)

    def forget(self, *runs: str) -> None:
        for run in runs:
            self.groups.remove(run)
        self.file.forget(runs)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Worker]]:
    """Starts a worker of a number, in the folder of all."""
    with ExitStack() as stack:

        def worker(number: int) -> Worker:
            begun = Worker(tmp_path, number, monkeypatch)
            stack.callback(begun.file.close)
            return begun

        yield worker


def sums(reader: RunFiles) -> dict[str, float]:
    return {sample.labels["run"]: sample.value for metric in reader.collect() for sample in metric.samples}


def test_workers_add_up_and_a_sum_does_not_fall_when_one_lets_go(
    started: Callable[[int], Worker], tmp_path: Path
) -> None:
    first, second, reader = (
        started(0),
        started(1),
        RunFiles(tmp_path),
    )
    first.count("a", 1000)
    first.count("b", 7)
    second.count("a", 500)
    assert sums(reader) == {"a": 1500, "b": 7}
    first.forget("a")
    assert sums(reader) == {"a": 1500, "b": 7}
    second.count("a", 1)
    first.count("a", 2)
    assert sums(reader) == {"a": 1503, "b": 7}
    second.forget("a")
    assert sums(reader) == {"a": 1503, "b": 7}
    first.forget("a")
    assert sums(reader) == {"b": 7}
    first.count("a", 3)
    assert sums(reader) == {"a": 3, "b": 7}


@pytest.mark.parametrize("who", range(3))
def test_a_sum_stays_the_same_to_the_last_bit_whoever_lets_go(
    who: int, started: Callable[[int], Worker], tmp_path: Path
) -> None:
    workers, reader = [started(number) for number in range(3)], RunFiles(tmp_path)
    # (0.1 + 0.2) + 0.3 is not 0.1 + (0.2 + 0.3), and a counter that falls by a bit has been reset, says Prometheus.
    for worker, value in zip(workers, (0.1, 0.2, 0.3), strict=True):
        worker.count("a", value)
    before = sums(reader)
    workers[who].forget("a")
    assert sums(reader) == before


def test_a_reading_that_failed_takes_nothing_from_the_next(started: Callable[[int], Worker], tmp_path: Path) -> None:
    first, second, reader = started(0), started(1), RunFiles(tmp_path)
    first.count("a", 1000)
    second.count("a", 500)
    assert sums(reader) == {"a": 1500}
    first.forget("a")
    # As a file is for the moment in which it is made.
    empty = tmp_path / "2.runs"
    empty.touch()
    with pytest.raises(struct.error):
        sums(reader)
    empty.unlink()
    assert sums(reader) == {"a": 1500}


def test_a_run_that_came_back_between_two_readings_adds_to_what_it_had(
    started: Callable[[int], Worker], tmp_path: Path
) -> None:
    worker, reader = started(0), RunFiles(tmp_path)
    worker.count("a", 10)
    assert sums(reader) == {"a": 10}
    worker.forget("a")
    worker.count("a", 4)
    assert sums(reader) == {"a": 14}


def test_the_file_holds_what_is_held_and_a_successor_goes_on(started: Callable[[int], Worker], tmp_path: Path) -> None:
    worker = started(0)
    for number in range(1500):
        worker.count(f"run-{number}", 1)
        worker.forget(f"run-{number}")
    worker.count("a", 10)
    worker.count(NO_RUN, 1)
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [2**16]  # the least that a file has
    successor = started(0)
    runs = Runs(1, 10, Said(), successor.file)  # type: ignore[arg-type]
    assert len(runs) == 1
    assert [runs.name("b"), runs.name("a")] == [OTHER_RUN, "a"]
    successor.count("a", 1)
    assert sums(RunFiles(tmp_path)) == {"a": 11, NO_RUN: 1}


def test_what_has_no_run_is_kept_by_the_library(started: Callable[[int], Worker]) -> None:
    worker = started(0)
    worker.unnamed.inc()
    assert worker.file.runs() == set()
    assert isinstance(worker.unnamed._value, values.MutexValue)


def test_files_of_counters_can_be_read_while_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics may be asked for at any moment; of an empty file nothing could be said."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
    registry.register(RunFiles(tmp_path))
    allocate, asked = os.posix_fallocate, 0

    def allocate_and_ask(file: int, start: int, length: int) -> None:
        nonlocal asked
        assert generate_latest(registry) == b""
        allocate(file, start, length)
        assert generate_latest(registry) == b""
        asked += 1

    monkeypatch.setattr(os, "posix_fallocate", allocate_and_ask)
    CounterFile(str(tmp_path / "counter_0.db")).close()  # type: ignore[no-untyped-call]
    RunFile(tmp_path, 0).close()
    assert asked == 2
    assert generate_latest(registry) == b""
    assert {path.name for path in tmp_path.iterdir()} == {"counter_0.db", "0.runs"}


def request(run_id: str) -> pb.TransformRequest:
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1, 0, 1]), group_size=2)
    return pb.TransformRequest(groups=groups, variant=pb.VARIANT_S, k=[2], run_id=run_id)


def send(server: LiveServer, run_id: str, times: int = 1) -> None:
    """Each over a connection of its own, and so to a worker of the kernel's choice."""
    for _ in range(times):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options=options) as channel:
            stub: Any = pb_grpc.RewardTransformServiceStub(channel)
            stub.Transform(request(run_id), timeout=60)


def groups_of(run: str) -> str:
    return f'pkpo_groups_total{{run="{run}",variant="S"}}'


def of_run(server: LiveServer, run: str) -> list[str]:
    return [name for name in server.metrics() if f'run="{run}"' in name]


@pytest.fixture(params=["1", "2"])
def brief(request: Any) -> Iterator[tuple[LiveServer, int]]:
    """A server of so many workers that lets go of runs soon."""
    flags = ("--max-run-ids", "1", "--run-idle-seconds", "3")
    with LiveServer("--workers", request.param, *flags) as server:
        yield server, int(request.param)


def test_a_server_lets_go_of_runs_that_ended(brief: tuple[LiveServer, int]) -> None:
    server, workers = brief
    assert (server.metrics()["pkpo_runs"], server.metrics()["pkpo_runs_limit"]) == (0, workers)
    # Until each worker has met both, and so has no slot left.
    poll(lambda: send(server, "a") or server.metrics()["pkpo_runs"] == workers, "a run in each worker")
    poll(lambda: send(server, "b") or len(server.log_lines("runs_full")) == workers, "line of each worker")
    assert all(line["max_run_ids"] == 1 and line["run_id"] in "ab" for line in server.log_lines("runs_full"))
    poll(lambda: len(of_run(server, OTHER_RUN)) > 7, "series of all that have no slot, with their curve")
    assert server.metrics()[groups_of(OTHER_RUN)] > 0
    poll(lambda: not of_run(server, "a") and not of_run(server, "b"), "end of the runs' series")
    samples = server.metrics()
    assert samples["pkpo_runs"] == 0
    assert samples[groups_of(OTHER_RUN)] > 0
    send(server, "a", 4)
    poll(lambda: server.metrics().get(groups_of("a")) == 8, "a count from 0 on")
    assert not [line for line in server.raw_log() if not line.startswith("{")]


def test_the_runs_of_a_killed_worker_are_let_go_by_its_successor() -> None:
    with LiveServer("--workers", "2", "--run-idle-seconds", "5") as server:
        send(server, "a", 8)
        poll(lambda: server.metrics().get(groups_of("a")) == 16, "counts")
        for line in server.log_lines("worker_serving"):
            os.kill(line["pid"], signal.SIGKILL)
        poll(lambda: len(server.log_lines("worker_serving")) == 4, "successors", 60)
        assert server.metrics().get(groups_of("a")) == 16
        poll(lambda: not of_run(server, "a"), "end of its series")
