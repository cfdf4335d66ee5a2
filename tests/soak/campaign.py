"""A soak from start to end: services, callers and faults, and what is watched meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import psutil

from live_server import poll
from pkpo_client import Client, PkpoError
from soak import verdict
from soak.callers import PATIENT_SECONDS, Place
from soak.faults import KINDS, Fault, Injector
from soak.ledger import Failure, Heartbeat
from soak.questions import fill_caches
from soak.records import Record, Sample, sample_of
from soak.services import GUARDED, MAX_RUN_IDS, PLAIN, WORKERS, Identity, Service
from soak.verdict import Bounds, Rest

CALLERS = ("waiting", "asynchronous", "cancelling", "strangers")
GAUGES = ("pkpo_open_calls", "pkpo_open_streams", "pkpo_in_flight")
# Of its own accord; those of a killed one begin anew.
LIVES_THROUGHOUT = f"{GUARDED} server"
# docs/metrics.md: of a run with large groups, with every variant; and of answers by code and reason.
SERIES_OF_RUNS = (WORKERS * MAX_RUN_IDS + WORKERS) * (28 + 5 * 13)
BOUNDS = Bounds(series=SERIES_OF_RUNS + 1000)
# Of a process whose memory is to show what is kept: big batches leave nothing behind in the heaps of its threads.
_FRUGAL = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
_REST_SECONDS = 60.0
_LEAST_PAUSE, _MOST_PAUSE = 0.001, 2.0


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        minutes: of load with faults.
        seed: of all that is drawn.
        cores: what everything together may use.
        kinds: of faults.
        warm_seconds: of load without faults, before the first rest.
        gap: seconds between faults.
        fill: whether everything that computes is first made to keep as much as it ever will.
        rest_every: seconds.
        sample_every: seconds.
        bounds: what may be.
        env: of the servers.
    """

    minutes: float
    seed: int = 1
    cores: float = 0.6
    kinds: tuple[str, ...] = tuple(KINDS)
    warm_seconds: float = 30.0
    gap: float = 25.0
    fill: bool = True
    rest_every: float = 600.0
    sample_every: float = 10.0
    bounds: Bounds = BOUNDS
    env: Mapping[str, str] | None = None


@dataclass
class Told:
    """What was seen.

    Attributes:
        calls, checked, refused: by caller.
        counts: of what else callers did.
        failures: calls that ended otherwise.
        faults: that were injected.
        latencies: of right answers, by caller: when, and seconds.
        stalls: when a process of ours did not run.
        records: of every process.
        rests: with nobody calling.
        series_before, series_most: of each service's metrics.
        cores: used, on the average.
        findings: what must not be.
        excused: failures that a fault excuses, by its kind.
        grpc_lines: in the servers' logs, that gRPC wrote by itself.
        seconds: of load.
    """

    calls: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    latencies: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    records: dict[tuple[str, int], Record] = field(default_factory=dict)
    rests: list[Rest] = field(default_factory=list)
    series_before: dict[str, int] = field(default_factory=dict)
    series_most: dict[str, int] = field(default_factory=dict)
    cores: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)
    grpc_lines: int = 0
    seconds: float = 0.0

    def take(self, page: Mapping[str, Any]) -> None:
        """Adds what a process noted."""
        for name in ("calls", "checked", "refused", "counts"):
            getattr(self, name).update(page[name])
        self.failures += [Failure(**each) for each in page["failures"]]
        self.stalls += [(began, ended) for began, ended in page["stalls"]]
        for caller, began, seconds in page["latencies"]:
            self.latencies.setdefault(caller, []).append((began, seconds))

    def quiet(self) -> dict[str, list[float]]:
        """Seconds that answers took between faults, by caller."""
        return {
            caller: [
                seconds for at, seconds in each if not any(fault.touches(at, at + seconds) for fault in self.faults)
            ]
            for caller, each in self.latencies.items()
        }


class _Process:
    """A process of callers.

    Args:
        kind: of CALLERS.
        log: where its standard error goes.
        first: what it is told first.
    """

    def __init__(self, kind: str, log: Path, first: Mapping[str, Any]) -> None:
        self.role = f"{kind} callers"
        self._log = log
        self.last: dict[str, Any] = {"busy": 0, "tokens": []}
        self._lock = threading.Lock()
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "soak.callers", kind],
                cwd=Path(__file__).parents[1],
                env={**os.environ, **_FRUGAL},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._write(first)

    def tell(self, **command: Any) -> dict[str, Any]:
        """What it noted since it was last told anything."""
        with self._lock:
            self._write(command)
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.role} have ended")
        self.last = json.loads(line)
        return self.last

    def _write(self, command: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """No more calls."""
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def traceback(self) -> str:
        """The first that it wrote, or nothing."""
        _, found, rest = self._log.read_text(errors="replace").partition("Traceback")
        return (found + rest)[:1500]


class Campaign:
    """One soak.

    Args:
        plan: what to do.
        say: told of progress.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self.told = Told()
        self._plan = plan
        self._say = say
        self._rng = Random(plan.seed)
        self._lock = threading.Lock()
        self._pause = 0.03
        self._cpu: dict[int, float] = {}
        self._at = time.monotonic()

    def run(self) -> Told:
        """All of it."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pkpo-soak-")))
            self._heartbeat = Heartbeat()
            stack.callback(self._heartbeat.stop)
            self._identity = Identity(folder)
            env = self._plan.env
            self._services = {
                PLAIN: stack.enter_context(Service(PLAIN, folder, "--workers", str(WORKERS), env=env)),
                GUARDED: stack.enter_context(Service(GUARDED, folder, *self._identity.flags, env=env)),
            }
            self._processes = stack.enter_context(self._callers(folder))
            try:
                self._soak()
            except (OSError, RuntimeError, TimeoutError, PkpoError) as error:
                self.told.findings.append(f"the soak ended early: {type(error).__name__}: {error}"[:2000])
        told = self.told
        for service in self._services.values():
            service.read_log()
            told.findings += service.findings
            told.grpc_lines += service.grpc_lines
        self._judge()
        return told

    @contextmanager
    def _callers(self, folder: Path) -> Iterator[list[_Process]]:
        processes: list[_Process] = []
        try:
            for kind in CALLERS:
                first = {"place": asdict(self._place()), "seed": self._rng.getrandbits(32), "fill": self._plan.fill}
                processes.append(_Process(kind, folder / kind, first))
            yield processes
        finally:
            for each in processes:
                each.end()
                if each.traceback():
                    self.told.findings.append(f"the {each.role} wrote a traceback: {each.traceback()}")

    def _place(self) -> Place:
        addresses = {name: service.address for name, service in self._services.items()}
        identity = self._identity
        return Place(addresses, str(identity.authority), str(identity.token), identity.withdrawn)

    def _soak(self) -> None:
        plan, told = self._plan, self.told
        self._scrape(told.series_before)
        injector = Injector(
            self._services,
            self._identity,
            Random(self._rng.getrandbits(32)),
            plan.kinds,
            plan.gap,
            self._publish,
            self._say,
        )
        if plan.fill:
            self._fill()
        self._tell(going=True, pause=self._pause)
        self._load(plan.warm_seconds)
        self._rest()
        injector.start()
        left = plan.minutes * 60
        try:
            while left > 0:
                self._load(min(left, plan.rest_every))
                left -= plan.rest_every
                if left > 0:
                    with injector.lock:
                        self._rest()
            injector.stop()
            while injector.busy:
                self._load(plan.sample_every)
        finally:
            injector.stop(wait=True)
            told.faults += injector.faults
            told.findings += injector.findings
        self._rest()

    def _fill(self) -> None:
        credentials = grpc.ssl_channel_credentials(self._identity.authority.read_bytes())
        address, token = self._services[GUARDED].address, self._identity.token
        with Client(address, credentials=credentials, token=token, timeout=PATIENT_SECONDS) as client:
            fill_caches(client)

    def _load(self, seconds: float) -> None:
        """Looks on for so long."""
        self._tell(going=True)
        until = time.monotonic() + seconds
        self._cpu = self._used()
        self._at = time.monotonic()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, self._plan.sample_every))
            self._govern()
            self._tell(pause=self._pause)
            self._watch()
            self._scrape(self.told.series_most)
        self.told.seconds += seconds
        calls, failed = sum(self.told.calls.values()), len(self.told.failures)
        self._say(f"{self.told.seconds:.0f} s: {calls:,} calls, {failed:,} failures, pause {self._pause * 1e3:.0f} ms")

    def _rest(self) -> None:
        """Everything ends; what is still there then is noted."""
        self._tell(going=False)
        self._wait(lambda: not any(self._tell()), "rest of the callers")
        self._say("callers rest")
        first = self.told.rests[0].samples if self.told.rests else {}
        bounds = self._plan.bounds

        def settled() -> bool:
            samples = self._samples()
            return not any(value for each in self._gauges().values() for value in each.values()) and all(
                getattr(sample, what) <= getattr(first[role], what) + getattr(bounds, what)
                for role, sample in samples.items()
                for what in ("descriptors", "threads")
                if role in first
            )

        time.sleep(0.5)
        self._wait(settled, "")
        self._say(f"at rest: {self._gauges()}")
        self.told.rests.append(Rest(time.monotonic(), self._samples(), self._gauges()))

    def _wait(self, ask: Callable[[], bool], what: str) -> None:
        try:
            self._poll(ask, what, _REST_SECONDS)
        except TimeoutError as error:
            # What did not settle is seen by the verdict.
            if what:
                self.told.findings.append(str(error))

    def _poll(self, ask: Callable[[], bool], what: str, seconds: float) -> None:
        poll(lambda: ask() or time.sleep(0.2), what, seconds)

    def _tell(self, **command: Any) -> list[int]:
        """Tells all processes, and takes what they noted; how many callers are busy in each."""
        with self._lock:
            pages = [process.tell(**command) for process in self._processes]
            for page in pages:
                self.told.take(page)
            self.told.stalls += self._heartbeat.stalls
            self._heartbeat.stalls = []
        return [page["busy"] for page in pages]

    def _publish(self) -> None:
        """Callers learn of another token; returns once none has a call under way that was made with a former one."""
        self._tell(place=asdict(self._place()))
        token = self._identity.token.read_text().strip()

        def replaced() -> bool:
            self._tell()
            return not any(each != token for process in self._processes for each in process.last["tokens"])

        # One may have read the former just before the first time.
        for _ in range(2):
            self._poll(replaced, "end of the use of a token", 120.0)

    def _all(self) -> Iterator[tuple[str, psutil.Process]]:
        for service in self._services.values():
            yield from service.processes()
        for each in self._processes:
            yield each.role, psutil.Process(each.process.pid)

    def _samples(self) -> dict[str, Sample]:
        found: dict[str, Sample] = {}
        for role, process in self._all():
            try:
                sample = sample_of(process, time.monotonic())
            except psutil.Error:
                continue
            if role not in found or found[role].descriptors < sample.descriptors:
                found[role] = sample
        return found

    def _watch(self) -> None:
        now = time.monotonic()
        for role, process in self._all():
            try:
                sample = sample_of(process, now)
            except psutil.Error:
                continue
            if sample.resident:  # of one that is dead and not yet gone there is nothing
                self.told.records.setdefault((role, process.pid), Record(role, process.pid)).samples.append(sample)

    def _scrape(self, most: dict[str, int]) -> None:
        for name, service in self._services.items():
            try:
                lines = service.live.metrics_text().splitlines()
            except (OSError, RuntimeError, TimeoutError):
                continue  # it is away; that it comes back is the injector's to see
            most[name] = max(most.get(name, 0), sum(not line.startswith("#") for line in lines))
            internal = [line for line in lines if 'code="INTERNAL"' in line and not line.endswith(" 0.0")]
            if internal and f"{name} counts" not in str(self.told.findings):
                self.told.findings.append(f"{name} counts an internal error: {internal[0]}")

    def _gauges(self) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for name, service in self._services.items():
            metrics = service.live.metrics()
            found[name] = {
                gauge: sum(value for key, value in metrics.items() if key.partition("{")[0] == gauge)
                for gauge in GAUGES
            }
        return found

    def _used(self) -> dict[int, float]:
        used: dict[int, float] = {}
        for process in (*(process for _, process in self._all()), psutil.Process()):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            used[process.pid] = times.user + times.system
        return used

    def _govern(self) -> None:
        """Callers wait longer where all of this takes more of the machine than it may."""
        now, used = time.monotonic(), self._used()
        took = sum(seconds - self._cpu.get(pid, seconds) for pid, seconds in used.items())
        cores = took / max(now - self._at, 1e-3)
        self.told.cores.append(cores)
        self._cpu, self._at = used, now
        changed = self._pause * min(2.0, max(0.5, cores / self._plan.cores))
        self._pause = min(_MOST_PAUSE, max(_LEAST_PAUSE, changed))

    def _judge(self) -> None:
        told, bounds = self.told, self._plan.bounds
        findings, told.excused = verdict.of_calls(told.failures, told.faults, told.stalls)
        told.findings += findings
        told.findings += verdict.of_memory(told.records.values(), bounds)
        told.findings += verdict.of_rests(told.rests, bounds)
        told.findings += verdict.of_series(told.series_before, told.series_most, bounds)
        lives = [record for record in told.records.values() if record.role == LIVES_THROUGHOUT]
        if len(lives) != 1:
            told.findings.append(f"{LIVES_THROUGHOUT}: {len(lives)} processes; must be one throughout")
        if not all(told.checked[caller] for caller in verdict.PATIENT):
            told.findings.append(f"some callers had no answer: {dict(told.checked)}")
