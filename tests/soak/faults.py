"""The faults of a soak, drawn by a seed: what each does, and which failures it excuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import psutil

from faults.wire import Ending, gaps
from live_server import START_SECONDS, poll
from soak.services import GUARDED, PLAIN, WORKERS, Identity, Service

GONE = frozenset({"UNAVAILABLE", "UNREACHABLE", "DEADLINE_EXCEEDED", "CANCELLED"})
SLOW = frozenset({"DEADLINE_EXCEEDED", "UNREACHABLE", "UNAVAILABLE"})
# Until callers are back on a connection: at once, or when keepalive has found out that theirs is dead.
SOON, LATER = 15.0, 45.0
# A call is tried five times within 3.2 s at the least: what ends each try may not last longer.
_LASTING_SECONDS = 2.5
_NOTICED_SECONDS = 60.0


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        services: that it is done to.
        excuses: codes that a call may end with which has no time to wait, or no second try.
        recovery: seconds after its end for which it still does.
    """

    services: tuple[str, ...]
    excuses: frozenset[str]
    recovery: float


BOTH = (PLAIN, GUARDED)
KINDS = {
    "worker killed": Kind((PLAIN,), GONE, SOON),
    "restart": Kind((PLAIN,), GONE, SOON),
    "outage": Kind((PLAIN,), GONE, SOON),
    "worker stopped": Kind((PLAIN,), SLOW, LATER),
    "server stopped": Kind((GUARDED,), SLOW, LATER),
    "connections cut": Kind(BOTH, GONE, SOON),
    "cut in the middle": Kind(BOTH, GONE, SOON),
    "black hole": Kind(BOTH, SLOW, LATER),
    "half open": Kind(BOTH, SLOW, LATER),
    "nobody listens": Kind(BOTH, GONE, SOON),
    "delay": Kind(BOTH, SLOW, SOON),
    "narrow wire": Kind(BOTH, SLOW, SOON),
    # Of a connection that TLS gives up, gRPC's own client says UNKNOWN.
    "corruption": Kind((GUARDED,), GONE | {"UNKNOWN"}, SOON),
    "tokens rotated": Kind((GUARDED,), frozenset(), SOON),
    "certificate rotated": Kind((GUARDED,), frozenset(), SOON),
}


@dataclass(frozen=True)
class Fault:
    """One that was injected.

    Attributes:
        kind: of KINDS.
        service: that it was done to.
        began, ended: by the monotonic clock.
    """

    kind: str
    service: str
    began: float
    ended: float

    def excuses(self, service: str, code: str, began: float, ended: float) -> bool:
        """Whether a call to this service, at this time, may end so."""
        kind = KINDS[self.kind]
        during = began <= self.ended + kind.recovery and ended >= self.began
        return self.service == service and during and code in kind.excuses

    def touches(self, began: float, ended: float) -> bool:
        """Whether anything may have taken longer at this time because of it."""
        return began <= self.ended + KINDS[self.kind].recovery and ended >= self.began


def order(rng: Random, kinds: Sequence[str]) -> Iterator[str]:
    """Kinds without end: each once before any comes again."""
    while True:
        yield from rng.sample(kinds, len(kinds))


class Injector:
    """Injects one fault after another, in a thread of its own.

    Args:
        services: by name.
        identity: of the guarded one.
        rng: everything is drawn from it.
        kinds: of faults.
        gap: seconds between two, on the average; never less than a third of it.
        publish: tells the callers of another token, and returns once none that cannot learn of it has the former.
        say: told of each fault.

    Attributes:
        faults: those that were injected.
        findings: services that did not recover.
        lock: held while a fault lasts; who holds it has peace.
    """

    def __init__(
        self,
        services: dict[str, Service],
        identity: Identity,
        rng: Random,
        kinds: Sequence[str],
        gap: float,
        publish: Callable[[], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.faults: list[Fault] = []
        self.findings: list[str] = []
        self.lock = threading.Lock()
        self._services, self._identity, self._rng, self._gap, self._publish = services, identity, rng, gap, publish
        self._kinds = order(rng, kinds)
        self._over = threading.Event()
        self._say = say
        self._thread = threading.Thread(target=self._inject_all, name="injector", daemon=True)

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether another may come, or one is under way."""
        return self._thread.is_alive()

    def stop(self, wait: bool = False) -> None:
        """No more but the one under way, whose end may be waited for."""
        self._over.set()
        if wait and self._thread.ident is not None:
            self._thread.join()

    def _inject_all(self) -> None:
        while not self._over.wait(self._gap / 3 + self._rng.expovariate(1.5 / self._gap)):
            with self.lock:
                if self._over.is_set():
                    return
                self._inject(next(self._kinds))

    def _inject(self, kind: str) -> None:
        service = self._services[self._rng.choice(KINDS[kind].services)]
        began = time.monotonic()
        try:
            getattr(self, "_" + kind.replace(" ", "_"))(service)
        except Exception as error:
            self.findings.append(f"{kind} of {service.name}: no recovery: {type(error).__name__}: {error}"[:2000])
            if service.live.process.poll() is not None:
                service.start()
        finally:
            service.wire.heal()
        fault = Fault(kind, service.name, began, time.monotonic())
        self.faults.append(fault)
        self._say(f"{kind} of {service.name}, {fault.ended - began:.1f} s")

    def _last(self, least: float, most: float) -> None:
        time.sleep(self._rng.uniform(least, most))

    def _worker_killed(self, service: Service) -> None:
        worker = self._rng.choice(_workers(service))
        before = len(service.live.log_lines("worker_serving"))
        worker.kill()
        poll(lambda: len(service.live.log_lines("worker_serving")) > before, "worker in its place", START_SECONDS)

    def _restart(self, service: Service) -> None:
        service.stop()
        service.start()

    def _outage(self, service: Service) -> None:
        service.stop()
        self._last(12, 40)
        service.start()

    def _worker_stopped(self, service: Service) -> None:
        before = len(service.live.log_lines("worker_serving"))
        try:
            self._stop_for_a_while(self._rng.choice(_workers(service)))
        except psutil.NoSuchProcess:
            # One that stands still for long is replaced.
            poll(lambda: len(service.live.log_lines("worker_serving")) > before, "worker in its place", START_SECONDS)

    def _server_stopped(self, service: Service) -> None:
        self._stop_for_a_while(psutil.Process(service.live.process.pid))

    def _stop_for_a_while(self, process: psutil.Process) -> None:
        process.suspend()
        try:
            self._last(1, 12)
        finally:
            process.resume()

    def _connections_cut(self, service: Service) -> None:
        service.wire.cut(self._rng.choice(list(Ending)))

    def _cut_in_the_middle(self, service: Service) -> None:
        flow = self._flow(service)
        flow.cut_after(gaps(200_000, Random(self._rng.getrandbits(32))), self._rng.choice(list(Ending)))
        time.sleep(_LASTING_SECONDS)

    def _black_hole(self, service: Service) -> None:
        service.wire.hold()
        self._last(2, 36)

    def _half_open(self, service: Service) -> None:
        self._flow(service).hold()
        self._last(2, 12)

    def _nobody_listens(self, service: Service) -> None:
        service.wire.refuse()
        service.wire.cut()
        self._last(1, 8)
        service.wire.listen()

    def _delay(self, service: Service) -> None:
        self._flow(service).delay = self._rng.uniform(0.02, 0.5)
        self._last(3, 10)

    def _narrow_wire(self, service: Service) -> None:
        self._flow(service).rate = self._rng.uniform(3e5, 3e6)
        self._last(3, 10)

    def _corruption(self, service: Service) -> None:
        # A stream gives a batch up that it found broken off three times running.
        rng = Random(self._rng.getrandbits(32))
        self._flow(service).flip(islice(gaps(50_000, rng), 2), rng)
        time.sleep(_LASTING_SECONDS)

    def _tokens_rotated(self, service: Service) -> None:
        self._noticed(service, "tokens_changed", self._identity.add_token)
        self._identity.hand_out()
        self._publish()
        # For calls that were made with the former one just before.
        time.sleep(_LASTING_SECONDS)
        self._noticed(service, "tokens_changed", self._identity.withdraw_token)
        self._publish()

    def _certificate_rotated(self, service: Service) -> None:
        self._noticed(service, "certificate_changed", self._identity.renew)

    def _noticed(self, service: Service, event: str, change: Callable[[], Any]) -> None:
        before = len(service.live.log_lines(event))
        change()
        poll(lambda: len(service.live.log_lines(event)) > before, f"line with event {event}", _NOTICED_SECONDS)

    def _flow(self, service: Service) -> Any:
        return self._rng.choice((service.wire.requests, service.wire.answers))


def _workers(service: Service) -> list[psutil.Process]:
    return poll(
        lambda: found if len(found := psutil.Process(service.live.process.pid).children()) == WORKERS else None,
        "whole set of workers", START_SECONDS,
    )  # fmt: skip
