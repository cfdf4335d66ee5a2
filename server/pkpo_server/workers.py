"""Several serving processes behind one port and one metrics endpoint.

The supervisor holds the port with a bound socket that does not listen, so that it stays the same port whoever dies; the
kernel spreads new connections over the workers that listen on it. Workers are processes of their own, started afresh:
gRPC does not survive a fork. The supervisor imports neither gRPC nor the kernels.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, multiprocess

from pkpo import __version__
from pkpo_server import allowance, logs, signals
from pkpo_server.address import (
    CannotListen,
    bound,
    cannot_listen,
    tcp_address,
    warn_of_unknown_variables,
    warn_where_metrics_open,
    warn_where_open,
)
from pkpo_server.logs import Log
from pkpo_server.prometheus import Definition, Processes, serve_metrics
from pkpo_server.pulse import Pulse, beat
from pkpo_server.run_files import CounterFile, RunFile, RunFiles
from pkpo_server.settings import WORKER_VARIABLE, InvalidSettings, Settings, flag, settings_of, variable

_METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_FOLDER_PREFIX = "pkpo-metrics-"

# Of one worker, and again while its file is written anew.
BYTES_PER_RUN = 2 * 11 * 2**10

# A worker that dies at once every time is tried ever less often; one that served this long starts over.
LEAST_BACKOFF_SECONDS, MOST_BACKOFF_SECONDS, GOOD_LIFE_SECONDS = 0.1, 10.0, 60.0
# Beyond the drain: for a worker to notice, and to exit.
EXIT_SECONDS = 5.0

WORKERS = Definition(Gauge, "pkpo_workers", "processes", "Workers serving (with several workers only).")
WORKER_RESTARTS = Definition(
    Counter,
    "pkpo_worker_restarts_total",
    "processes",
    "Workers that died and were replaced (with several workers only).",
)
DEFINITIONS = (WORKERS, WORKER_RESTARTS)


class Supervisor:
    """Keeps as many workers serving as were asked for, until told to stop. Runs once.

    Args:
        settings: what was set.
        log: where to write.
    """

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._address = ""
        self._health_address: str | None = None
        self._folder = ""
        self._living: dict[int, asyncio.subprocess.Process] = {}
        self._serving: set[int] = set()
        self._ever_served = False
        self._announced = False
        self._failed = False
        # Workers hold the other end, and read its end when this process is gone, however it went.
        self._life, self._alive = os.pipe()
        registry = CollectorRegistry()
        self._registry = registry
        self._workers: Gauge = WORKERS.build(registry)
        self._restarts: Counter = WORKER_RESTARTS.build(registry)

    async def run(self) -> int:
        """Serves until told to stop, and returns the exit status.

        Raises:
            CannotListen: the address is taken, or not ours.
            InvalidSettings: there is no room for what so many runs may need.
        """
        _require_room(self._settings)
        stop = signals.stop_asked(self._log, self._force)
        with _metrics_folder() as self._folder, _reserved("", self._settings.host, self._settings.port) as reservation:
            self._address = tcp_address(self._settings.host, reservation.getsockname()[1])
            self._serve_metrics()
            warn_where_open(self._log, self._settings, self._address)
            with self._health_reservation() as health_reservation:
                if health_reservation is not None:
                    port = health_reservation.getsockname()[1]
                    self._health_address = tcp_address(self._settings.health_host, port)
                    self._log.info("health", address=self._health_address)
                return await self._keep_all(stop)

    def _health_reservation(self) -> AbstractContextManager[socket.socket | None]:
        if self._settings.health_port is None:
            return nullcontext()
        return _reserved("health_", self._settings.health_host, self._settings.health_port)

    def _serve_metrics(self) -> None:
        multiprocess.MultiProcessCollector(self._registry, path=self._folder)  # type: ignore[no-untyped-call]
        self._registry.register(RunFiles(Path(self._folder)))
        self._registry.register(Processes(_Pids(self._living)))
        address = serve_metrics(self._settings.metrics_host, self._settings.metrics_port, self._registry)
        self._log.info("metrics", address=address)
        warn_where_metrics_open(self._log, self._settings, address)

    async def _keep_all(self, stop: asyncio.Future[str]) -> int:
        first_served = asyncio.get_running_loop().create_future()
        keepers = [asyncio.create_task(self._keep(0, stop, first_served))]
        # The first one compiles the kernels where no cache holds them; the others then load them.
        await asyncio.wait({first_served, stop, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            keepers += [asyncio.create_task(self._keep(i, stop)) for i in range(1, self._settings.workers)]
        signal_name = await stop
        self._log.info("draining", signal=signal_name, drain_seconds=self._settings.drain_seconds)
        for process in self._living.values():
            with suppress(ProcessLookupError):
                process.terminate()
        _, late = await asyncio.wait(keepers, timeout=self._settings.drain_seconds + EXIT_SECONDS)
        if late:
            self._log.error("killed", workers=sorted(self._living))
            self._kill()
            await asyncio.wait(late)
        for keeper in keepers:
            keeper.result()
        signals.ignore()
        self._log.info("stopped")
        return 1 if late or self._failed else 0

    async def _keep(
        self, index: int, stop: asyncio.Future[str], first_served: asyncio.Future[None] | None = None
    ) -> None:
        backoff = LEAST_BACKOFF_SECONDS
        while not stop.done():
            started = time.monotonic()
            try:
                process, pulse = await self._start(index)
            except OSError as error:
                self._log.error("worker_not_started", worker=index, message=str(error), restart_seconds=backoff)
                if not self._ever_served:
                    self._fail(stop)
                    return
                await asyncio.wait({stop}, timeout=backoff)
                backoff = min(2 * backoff, MOST_BACKOFF_SECONDS)
                continue
            if stop.done():
                process.terminate()
            still = asyncio.create_task(self._kill_if_stuck(index, process, pulse))
            if await pulse.began:
                self._note_serving(index, process.pid)
                if first_served is not None and not first_served.done():
                    first_served.set_result(None)
            status = await process.wait()
            still.cancel()
            del self._living[index]
            self._serving.discard(index)
            self._workers.set(len(self._serving))
            # Its counters stay, for its successor to go on from; what was in flight is not any more.
            multiprocess.mark_process_dead(index, self._folder)  # type: ignore[no-untyped-call]
            if stop.done():
                self._failed |= status not in (0, -signal.SIGTERM)
                return
            if not self._ever_served:
                self._log.error("failed", message="the first worker could not start", status=status)
                self._fail(stop)
                return
            if time.monotonic() - started > GOOD_LIFE_SECONDS:
                backoff = LEAST_BACKOFF_SECONDS
            self._log.error("worker_died", worker=index, pid=process.pid, status=status, restart_seconds=backoff)
            self._restarts.inc()
            await asyncio.wait({stop}, timeout=backoff)
            backoff = min(2 * backoff, MOST_BACKOFF_SECONDS)

    async def _kill_if_stuck(self, index: int, process: asyncio.subprocess.Process, pulse: Pulse) -> None:
        if await pulse.began:
            seconds = await pulse.stopped()
            self._log.error("worker_stuck", worker=index, pid=process.pid, seconds=seconds)
            with suppress(ProcessLookupError):
                process.kill()

    def _fail(self, stop: asyncio.Future[str]) -> None:
        self._failed = True
        if not stop.done():
            stop.set_result("failed")

    async def _start(self, index: int) -> tuple[asyncio.subprocess.Process, Pulse]:
        told, tell = os.pipe()
        role = {
            "index": index,
            "address": self._address,
            "health_address": self._health_address,
            "tell": tell,
            "life": self._life,
            "settings": self._settings.texts(),
        }
        environment = os.environ | {WORKER_VARIABLE: json.dumps(role), _METRICS_FOLDER_VARIABLE: self._folder}
        try:
            # A session of its own: Ctrl-C in a terminal reaches the supervisor alone, which then tells the workers.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "pkpo_server",
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(tell, self._life),
                start_new_session=True,
            )
        finally:
            os.close(tell)
        self._living[index] = process
        return process, Pulse(told)

    def _note_serving(self, index: int, pid: int) -> None:
        self._ever_served = True
        self._serving.add(index)
        self._workers.set(len(self._serving))
        self._log.info("worker_serving", worker=index, pid=pid)
        if len(self._serving) == self._settings.workers and not self._announced:
            self._announced = True
            workers = self._settings.workers
            connections = workers * allowance.most_connections()
            self._log.info(
                "serving", address=self._address, version=__version__, workers=workers, connections=connections
            )

    def _force(self) -> None:
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self) -> None:
        for process in self._living.values():
            with suppress(ProcessLookupError):
                process.kill()


class _Pids:
    """The process ids of the workers that live, whenever they are asked for."""

    def __init__(self, living: dict[int, asyncio.subprocess.Process]) -> None:
        self._living = living

    def __iter__(self) -> Any:
        return iter([process.pid for process in tuple(self._living.values())])


def run_supervisor(settings: Settings) -> int:
    """Serves from several processes until told to stop, and returns the exit status."""
    log = logs.configure(settings.log_level)
    warn_of_unknown_variables(log)
    try:
        return asyncio.run(Supervisor(settings, log).run())
    except CannotListen as error:
        log.error("failed", message=str(error))
        return 1


def run_worker(role: str) -> int:
    """One of them: serves until told to stop, and returns the exit status.

    Args:
        role: what the supervisor says in the environment.
    """
    told = json.loads(role)
    settings = settings_of(told["settings"])
    allowance.require(settings)
    log = logs.configure(settings.log_level, worker=told["index"])

    from prometheus_client import values

    # Files are named by the worker's number, not its process: a successor goes on counting where the dead one stopped.
    others = values.MultiProcessValue(lambda: told["index"])  # type: ignore[no-untyped-call]
    values.MmapedDict = CounterFile  # type: ignore[attr-defined,assignment]
    # The library cannot take series out of its files, and says so; those that are taken out are in ours.
    warnings.filterwarnings("ignore", "Removal of labels", UserWarning)

    from pkpo_server.lifecycle import Place, run_place

    def serving(_: str) -> None:
        os.set_blocking(told["tell"], False)
        beat(told["tell"])

    place = Place(
        told["address"],
        told["health_address"],
        shared=True,
        starting=lambda: None,
        listening=lambda _: None,
        health_listening=lambda _: None,
        serving=serving,
        abandoned=told["life"],
    )
    with closing(RunFile(Path(os.environ[_METRICS_FOLDER_VARIABLE]), told["index"])) as run_file:
        values.ValueClass = run_file.value_class(others)
        return run_place(settings, place, CollectorRegistry(), log, run_file)


def _require_room(settings: Settings) -> None:
    """Raises InvalidSettings where the counters of as many runs as there may be would not fit: workers die of that."""
    needed = settings.workers * settings.max_run_ids * BYTES_PER_RUN
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InvalidSettings(f"TMPDIR: {error.strerror}; must be a folder that can be written to") from error
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InvalidSettings(
            f"{flag('max_run_ids')} ({variable('max_run_ids')}): {settings.max_run_ids} runs for each of"
            f" {settings.workers} workers may need {needed} bytes in {place}, of which {free} are free; must be at most"
            f" {free // (settings.workers * BYTES_PER_RUN)}, or TMPDIR another place"
        )


@contextmanager
def _metrics_folder() -> Iterator[str]:
    """A new folder, locked for as long as it is used.

    Those that are not were left by supervisors that were killed, and are removed: they would fill the memory in which a
    container keeps them.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    # Of another name until it is locked, so that nobody takes it for left.
    try:
        made = tempfile.mkdtemp(prefix=f".{_FOLDER_PREFIX}")
    except OSError as error:
        raise InvalidSettings(f"TMPDIR: cannot make {error.filename}: {error.strerror}") from error
    with _locked(Path(made)):
        folder = Path(made).with_name(Path(made).name.removeprefix("."))
        os.rename(made, folder)
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder, as none of our workers does. Raises BlockingIOError where another process has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _reserved(prefix: str, host: str, port: int) -> socket.socket:
    try:
        if port:
            # Sharing a port is for our own workers: another server that listens on it must not be joined unseen.
            bound(host, port).close()
        return bound(host, port, shared=True)
    except (OSError, UnicodeError) as error:
        raise cannot_listen(prefix, host, port, error) from error
