"""One serving process: start, readiness, signals, drain."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from numba.core.event import Listener, install_listener
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

import pkpo_core
from pkpo import __version__
from pkpo_server import allowance, certificates, logs, memory, signals, tokens
from pkpo_server.address import (
    CannotListen,
    bound,
    cannot_listen,
    tcp_address,
    unix_address,
    warn_of_unknown_variables,
    warn_where_metrics_open,
    warn_where_open,
)
from pkpo_server.admission import Admission
from pkpo_server.arrivals import Arrivals
from pkpo_server.certificates import Certificates, UnusableCertificate
from pkpo_server.codec import Limits
from pkpo_server.computation import Computation, default_threads
from pkpo_server.exchange import Means
from pkpo_server.health import HEALTH_SERVICE, Health
from pkpo_server.logs import BoundedLog, Log
from pkpo_server.memory import Ceiling, default_ceiling
from pkpo_server.metrics import CERTIFICATE, TOKENS, Levels, Metrics
from pkpo_server.prometheus import serve_metrics
from pkpo_server.run_files import RunFile
from pkpo_server.runs import Runs
from pkpo_server.servicer import SERVICE, RewardTransformServicer, warm_up
from pkpo_server.settings import Settings
from pkpo_server.tokens import Tokens, UnusableTokens

# Our client pings every 20 s while calls are under way; the library's default would hang up on it as an abuser.
LEAST_PING_INTERVAL_MS = 10_000
# gRPC closes a connection that it has said goodbye on with its last call. What the caller still sends then resets it,
# and the end of a large answer is lost. So goodbye is said only when all is answered, and the answers have left.
LINGER_SECONDS = 0.25
# Our own pings find callers that vanished without a word, so that their streams do not stay open for hours.
KEEPALIVE_TIME_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
# Above what is admitted, since a refusal of ours says when to come back, and one of the transport's does not. With
# grpcio 1.72 a call that was refused also keeps its stream until the garbage collector has come by.
REFUSED_STREAMS = 256
# By itself gRPC cancels calls without a word when more than a thousand wait for the event loop. Each takes some 20 KB,
# given up or not: so many may wait as are all answered within two seconds.
LEAST_PENDING, PENDING_TIMES = 4096, 4
# So many of the largest requests wait or are computed, where nothing else is set.
REQUESTS_IN_FLIGHT = 8
# And no more of the ceiling than lets a process stay below it, but for one message: an answer that waits for its caller
# takes a little more than twice its size, and a process that does nothing 170 MiB. Beside messages
# that wait as well, it is the ceiling itself that bounds them.
SHARE_IN_FLIGHT = 1 / 6
# How long a thread that computes may hold the GIL while the event loop wants it: five times as long by itself.
SWITCH_SECONDS = 0.001
# Many workers in a small container would refuse everything as soon as they have loaded what they need.
LEAST_ROOM_BYTES = 128 * 2**20
# What grpcio calls the coroutine that takes calls, for as long as it does.
_TAKING = "_server_main_loop"
# Room for a trace context and a token.
MOST_METADATA_BYTES = 16 * 2**10


@dataclass(frozen=True, slots=True)
class Place:
    """Where one process listens, and whom it tells what.

    Attributes:
        address: as gRPC writes it.
        health_address: of the health port; None where there is none.
        shared: whether other processes listen on the same port, so that this one must not before it can serve.
        starting: called once what is set was found good, before anything listens.
        listening: told the address with its real port.
        health_listening: told that of the health port.
        serving: told the same, once calls are answered.
        abandoned: a file descriptor that ends when nobody is left to serve for; None where there is none.
    """

    address: str
    health_address: str | None
    shared: bool
    starting: Callable[[], None]
    listening: Callable[[str], None]
    health_listening: Callable[[str], None]
    serving: Callable[[str], None]
    abandoned: int | None = None


class Server:
    """The lifetime of one process that serves. Runs once.

    Args:
        settings: what was set.
        place: where to listen.
        registry: where metrics are registered.
        log: where to write.
        run_file: holds the counters of runs, where several processes share their metrics.

    Raises:
        UnusableCertificate, UnusableTokens: what is set cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        place: Place,
        registry: CollectorRegistry,
        log: Log,
        run_file: RunFile | None = None,
    ) -> None:
        self._settings = settings
        self._place = place
        self._log = log
        self._refusals = BoundedLog(log)
        self._preparing: threading.Thread
        self._taking: set[asyncio.Task[None]] = set()
        self._certificates = Certificates.of(settings, log)
        self._tokens = Tokens(settings.tokens, log) if settings.tokens is not None else None
        threads = settings.threads or default_threads(settings.workers)
        ceiling = default_ceiling(settings.workers) if settings.max_memory_bytes is None else settings.max_memory_bytes
        most_bytes = settings.max_bytes_in_flight or _bytes_in_flight(settings.max_message_bytes, ceiling)
        most_rewards = settings.max_rewards_in_flight or REQUESTS_IN_FLIGHT * settings.max_rewards
        self._computation = Computation(threads, most_bytes, most_rewards)
        self._admission = Admission(settings.max_concurrent_rpcs)
        limits = Limits(
            max_message_bytes=settings.max_message_bytes,
            max_rewards=settings.max_rewards,
            max_group_size=settings.max_group_size,
            max_groups=settings.max_groups,
            max_estimate_k=settings.max_estimate_k,
        )
        runs = Runs(settings.max_run_ids, settings.run_idle_seconds, log, run_file)
        metrics = Metrics(registry, runs, self._levels)
        metrics.capacity(settings.max_concurrent_rpcs, most_bytes, threads)
        self._means = Means(limits, self._computation, metrics, self._refusals)
        self._ceiling = Ceiling(ceiling)
        self._arrivals = Arrivals(self._ceiling)
        self._servicer = RewardTransformServicer(
            self._means,
            self._admission,
            self._arrivals,
            settings.stream_in_flight,
            self._tokens,
            settings.server_info,
        )

    def _levels(self) -> Levels:
        return Levels(self._admission.open_calls, self._computation.waiting, self._computation.held_bytes)

    async def run(self) -> int:
        """Serves until told to stop, and returns the exit status.

        Raises:
            CannotListen: the address is taken, or not ours.
        """
        stop = self._stop_signal()
        self._place.starting()
        self._means.metrics.watch_runs()
        self._watch_certificates()
        self._watch_tokens()
        health = Health([SERVICE], self._arrivals)
        server = self._grpc_server(health)
        probed = None if self._place.health_address is None else self._health_server(health)
        connections = allowance.Connections(self._log)
        if not self._place.shared:
            address = await self._started(server, probed)
        ready = self._prepared()
        either: set[asyncio.Future[Any]] = {ready, stop}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            memory.end_loading()
            if self._settings.max_memory_bytes is None:
                self._ceiling.leave_room(LEAST_ROOM_BYTES)
            self._servicer.serve()
            health.serve()
            if self._place.shared:
                address = await self._started(server, probed)
            self._place.serving(address)
            connections.watch()
        either = {stop, *self._taking}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            self._log.error("failed", message=f"gRPC takes no more calls: {_why_ended(self._taking)}")
            # It cannot be told to stop any more.
            os._exit(1)
        signal_name = stop.result()
        await self._drain([server] if probed is None else [server, probed], health, signal_name)
        if self._preparing.is_alive():
            # A compiler at work does not survive the end of the interpreter around it.
            os._exit(0)
        return 0

    def _grpc_server(self, health: Health) -> aio.Server:
        server = aio.server(options=_options(self._settings, self._place.shared))
        server.add_generic_rpc_handlers((self._servicer.handler(), health.handler()))
        # It has no place for tokens; who needs one has the .proto.
        if self._settings.reflection and self._settings.tokens is None:
            from grpc_reflection.v1alpha import reflection

            reflection.enable_server_reflection((SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
        return server

    def _health_server(self, health: Health) -> aio.Server:
        options = dict(_options(self._settings, self._place.shared)) | {
            "grpc.max_receive_message_length": 2**12,
            "grpc.max_allowed_incoming_connections": allowance.PROBING_CONNECTIONS,
        }
        server = aio.server(options=tuple(options.items()))
        server.add_generic_rpc_handlers((health.handler(),))
        return server

    async def _started(self, server: aio.Server, probed: aio.Server | None) -> str:
        """Starts to listen, on the health port too where there is one, and returns the address of the first."""
        credentials = self._certificates.server_credentials() if self._certificates is not None else None
        address = _listen(server, self._place.address, credentials)
        if self._settings.unix_socket is not None and self._settings.unix_socket_mode is not None:
            self._settings.unix_socket.chmod(int(self._settings.unix_socket_mode, 8))
        self._place.listening(address)
        if probed is not None and self._place.health_address is not None:
            self._place.health_listening(_listen(probed, self._place.health_address, prefix="health_"))
            await self._start(probed)
        await self._start(server)
        return address

    async def _start(self, server: aio.Server) -> None:
        # grpcio 1.84 and 1.85 end at a call whose path is no UTF-8, and leave a process that only seems to serve.
        others = asyncio.all_tasks()
        await server.start()
        started = asyncio.all_tasks() - others
        self._taking |= {task for task in started if getattr(task.get_coro(), "__name__", None) == _TAKING}

    def _watch_certificates(self) -> None:
        if self._certificates is not None:
            self._means.metrics.certificates_expire(self._certificates.expiry())
            self._means.metrics.secrets_unusable(CERTIFICATE, self._certificates.unusable)
            asyncio.get_running_loop().call_later(certificates.LOOKING_SECONDS, self._watch_certificates)

    def _watch_tokens(self) -> None:
        # Also where nobody calls: trouble with them is told before somebody needs one.
        if self._tokens is not None:
            self._tokens.look()
            self._means.metrics.secrets_unusable(TOKENS, self._tokens.unusable)
            asyncio.get_running_loop().call_later(tokens.LOOKING_SECONDS, self._watch_tokens)

    def _prepared(self) -> asyncio.Future[None]:
        # In a thread that nothing waits for: a signal during a first, slow compilation ends the process at once.
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def tell(error: BaseException | None) -> None:
            if not ready.done():
                ready.set_result(None) if error is None else ready.set_exception(error)

        def prepare() -> None:
            started = time.monotonic()
            try:
                with install_listener("numba:compile", _Compiling(self._log)):
                    pkpo_core.compile_kernels()
                warm_up(self._means)
            except Exception as error:
                loop.call_soon_threadsafe(tell, error)
            else:
                self._log.debug("prepared", seconds=round(time.monotonic() - started, 3))
                loop.call_soon_threadsafe(tell, None)

        self._preparing = threading.Thread(target=prepare, name="prepare", daemon=True)
        self._preparing.start()
        return ready

    def _stop_signal(self) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        stop = signals.stop_asked(self._log)
        if self._place.abandoned is not None:

            def on_abandoned(descriptor: int) -> None:
                loop.remove_reader(descriptor)
                if not stop.done():
                    stop.set_result("abandoned")

            loop.add_reader(self._place.abandoned, on_abandoned, self._place.abandoned)
        return stop

    async def _drain(self, servers: list[aio.Server], health: Health, signal_name: str) -> None:
        started = time.monotonic()
        self._log.info("draining", signal=signal_name, drain_seconds=self._settings.drain_seconds)
        health.drain()
        self._servicer.drain()
        await self._admission.empty(self._settings.drain_seconds)
        await asyncio.sleep(LINGER_SECONDS)
        await asyncio.gather(*(server.stop(None) for server in servers))
        self._computation.stop()
        self._means.metrics.count()
        self._refusals.flush()
        signals.ignore()
        self._log.info("stopped", seconds=round(time.monotonic() - started, 3))


class _Compiling(Listener):
    """Says that kernels are compiled, once, at the first that no cache holds."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._said = False

    def on_start(self, event: Any) -> None:
        """A kernel is compiled."""
        if not self._said:
            self._said = True
            self._log.info("compiling", message="kernels that no cache holds; all of them take some tens of seconds")

    def on_end(self, event: Any) -> None:
        """A kernel was compiled."""


def run_server(settings: Settings) -> int:
    """Serves from this process alone until told to stop, and returns the exit status."""
    log = logs.configure(settings.log_level)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    warn_of_unknown_variables(log)
    address = tcp_address(settings.host, settings.port)
    if settings.unix_socket is not None:
        address = unix_address(settings.unix_socket)

    def starting() -> None:
        metrics_address = serve_metrics(settings.metrics_host, settings.metrics_port, registry)
        log.info("metrics", address=metrics_address)
        warn_where_metrics_open(log, settings, metrics_address)

    def listening(address: str) -> None:
        log.info("listening", address=address)
        if settings.unix_socket is None:
            warn_where_open(log, settings, address)

    place = Place(
        address,
        None if settings.health_port is None else tcp_address(settings.health_host, settings.health_port),
        shared=False,
        starting=starting,
        listening=listening,
        health_listening=lambda address: log.info("health", address=address),
        serving=lambda address: log.info(
            "serving", address=address, version=__version__, connections=allowance.most_connections()
        ),
    )
    return run_place(settings, place, registry, log)


def run_place(
    settings: Settings, place: Place, registry: CollectorRegistry, log: Log, run_file: RunFile | None = None
) -> int:
    """Serves from this process until told to stop, and returns the exit status."""
    memory.map_big_blocks()
    sys.setswitchinterval(SWITCH_SECONDS)

    async def run() -> int:
        return await Server(settings, place, registry, log, run_file).run()

    try:
        return asyncio.run(run())
    except (CannotListen, UnusableCertificate, UnusableTokens) as error:
        log.error("failed", message=str(error))
    except Exception as error:
        log.error("failed", message="the server cannot go on", exc_info=error)
    return 1


def _why_ended(tasks: Iterable[asyncio.Task[None]]) -> str:
    (ended, *_) = (task for task in tasks if task.done())
    return "it was cancelled" if ended.cancelled() else repr(ended.exception())


def _bytes_in_flight(max_message_bytes: int, ceiling: int) -> int:
    """How many where nothing is set: of several messages, unless they would let the process outgrow its ceiling."""
    several = REQUESTS_IN_FLIGHT * max_message_bytes
    if not ceiling:
        return several
    return max(max_message_bytes, min(several, int(SHARE_IN_FLIGHT * ceiling)))


def _options(settings: Settings, shared: bool) -> list[tuple[str, int]]:
    pending = max(LEAST_PENDING, PENDING_TIMES * settings.max_concurrent_rpcs)
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_rpcs + REFUSED_STREAMS),
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        ("grpc.max_metadata_size", MOST_METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", allowance.most_connections()),
        ("grpc.so_reuseport", int(shared)),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
    ]
    if settings.max_connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", int(settings.max_connection_age_seconds * 1000)))
    return options


def _listen(
    server: aio.Server, address: str, credentials: grpc.ServerCredentials | None = None, prefix: str = ""
) -> str:
    """Adds an address to a server, and returns it with its real port.

    Args:
        prefix: of the settings that the address is from.

    Raises:
        CannotListen: that cannot be.
    """
    if address.startswith("unix:"):
        _refuse_a_socket_in_use(Path(address[5:]))
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except (RuntimeError, UnicodeError) as error:
        raise _why_not(address, prefix) from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _why_not(address: str, prefix: str) -> CannotListen:
    # gRPC does not tell what the system does.
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            bound(host, int(port)).close()
        except (OSError, UnicodeError) as error:
            return cannot_listen(prefix, host, int(port), error)
    return CannotListen(f"cannot listen on {address}")


def _refuse_a_socket_in_use(path: Path) -> None:
    # gRPC removes a socket that is already there, be it left over or another server's.
    if not path.parent.is_dir():
        raise CannotListen(f"cannot listen on unix:{path}: {path.parent} is no directory")
    if path.exists() and not path.is_socket():
        raise CannotListen(f"cannot listen on unix:{path}: it exists and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise CannotListen(f"cannot listen on unix:{path}: another process serves on it")
