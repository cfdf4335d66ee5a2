"""How metrics are defined and read: one endpoint per server, however many processes it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pkpo_server.address import cannot_listen, tcp_address

# Each connection has a thread; one that says nothing for so long is closed, and gives it back.
SILENT_SECONDS = 10.0
# After a connection that could not be taken.
UNTAKEN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric: its type, name, unit, meaning, labels, and for several processes how a gauge is joined."""

    type: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    joined: str = "livesum"

    def build(self, registry: CollectorRegistry) -> Any:
        """The metric, registered."""
        options: dict[str, Any] = {"registry": registry}
        if self.buckets:
            options["buckets"] = self.buckets
        if self.type is Gauge:
            options["multiprocess_mode"] = self.joined
        return self.type(self.name, self.description, self.labels, **options)


class Processes(Collector):
    """The processor time, memory and files of several processes, summed, under the names one process has them.

    Args:
        pids: the processes that are alive; a container that changes.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        """The sums now."""
        sums = {"process_cpu_seconds": 0.0, "process_resident_memory_bytes": 0.0, "process_open_fds": 0.0}
        for pid in tuple(self._pids):
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                if metric.name in sums:
                    sums[metric.name] += metric.samples[0].value
        for name, value in sums.items():
            description = f"{name.removeprefix('process_').replace('_', ' ')} of all workers".capitalize()
            family = CounterMetricFamily if name == "process_cpu_seconds" else GaugeMetricFamily
            yield family(name, description, value=value)


def serve_metrics(host: str, port: int, registry: CollectorRegistry) -> str:
    """Serves a registry over HTTP, from a thread, for as long as the process lives; returns the address.

    Raises:
        CannotListen: the address is taken, or not ours.
    """
    # A creation time beside every counter would double the number of series, and no dashboard asks for it.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        server, _ = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        raise cannot_listen("metrics_", host, port, error) from error
    server.RequestHandlerClass = _impatient(server.RequestHandlerClass)
    server.get_request = _unhurried(server.get_request)  # type: ignore[method-assign]
    return tcp_address(host, server.server_port)


def _unhurried(get_request: Callable[[], Any]) -> Callable[[], Any]:
    """Takes a connection, or waits where none can be taken; the library's tries again at once, for as long as it asks.

    That is so where no more files may be opened.
    """

    def get() -> Any:
        try:
            return get_request()
        except OSError:
            time.sleep(UNTAKEN_SECONDS)
            raise

    return get


def _impatient(handler: Any) -> Any:
    """A handler of connections that closes those that are silent; the library's waits for ever."""

    class Impatient(handler):  # type: ignore[misc]
        timeout = SILENT_SECONDS

        def handle(self) -> None:
            with suppress(TimeoutError):
                super().handle()

    return Impatient
