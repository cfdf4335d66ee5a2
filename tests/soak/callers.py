"""Processes that call: `python -m soak.callers KIND`, told what to do on standard input, a JSON object a line.

They ask through the wires, and note what became of each call. At rest they have no call, no client and no connection.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc

from pkpo_client import AsyncClient, Client, LocalClient
from soak.ledger import Ledger
from soak.questions import Pool, fill_caches
from soak.services import GUARDED, PLAIN

# A client that may wait so long sees no failure, whatever happens to a service that comes back.
PATIENT_SECONDS = 240.0
# Longer than a dead connection goes unnoticed: what is connected and silent is no outage.
FALLBACK_SECONDS = 40.0
HURRIED_SECONDS = 10.0
# A run id is of use for so long; several are at any time.
_RUN_SECONDS, _RUNS_AT_ONCE = 10.0, 24


@dataclass
class Place:
    """Where the services are, and who calls.

    Attributes:
        addresses: by service.
        authority: file of the certificate to trust.
        token: file of the token that callers have.
        withdrawn: one that counted.
    """

    addresses: dict[str, str]
    authority: str
    token: str
    withdrawn: str


class Pace:
    """When to call, and how often.

    Attributes:
        pause: seconds between two calls of a caller, on the average.
    """

    def __init__(self, callers: int) -> None:
        self.pause = 0.05
        self._callers = callers
        self._busy = 0
        self._going = False
        self._over = False
        self._changed = threading.Condition()

    @property
    def going(self) -> bool:
        """Whether callers are to call."""
        return self._going

    @property
    def over(self) -> bool:
        """Whether they never will again."""
        return self._over

    @property
    def busy(self) -> int:
        """Callers that have not come to rest."""
        return self._busy

    def awaited(self) -> bool:
        """Waits until callers are to call, which the caller then does; False where they never will again."""
        with self._changed:
            self._changed.wait_for(lambda: self._going or self._over)
            self._busy += not self._over
            return not self._over

    def rested(self) -> None:
        """The caller calls no more, for now."""
        with self._changed:
            self._busy -= 1

    def set(self, going: bool, over: bool = False) -> None:
        """Callers are to call from now on, or to come to rest."""
        with self._changed:
            self._going, self._over = going, over
            self._changed.notify_all()

    def seconds(self, rng: Random) -> float:
        """Until the next call."""
        return rng.expovariate(1 / self.pause) if self.pause else 0.0

    def step(self, rng: Random) -> bool:
        """Waits between two calls; whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: not self._going, self.seconds(rng))
            return self._going


class Callers(ABC):
    """What the callers of a process have in common.

    Args:
        place: where to call.
        rng: what the callers' own are drawn from.
        ledger: where calls are noted.
    """

    def __init__(self, place: Place, rng: Random, ledger: Ledger) -> None:
        self.place = place
        self.rng = rng
        self.ledger = ledger
        # In use by calls that cannot learn of another one.
        self.tokens: Counter[str] = Counter()
        self.pace: Pace
        self._locked_pool = threading.Lock()
        self._pool = Pool(Random(rng.getrandbits(32)))
        self.threads: list[threading.Thread] = []

    @abstractmethod
    def kinds(self) -> list[Callable[[Random], Any]]:
        """One for each caller: what it does between two rests."""

    def start(self) -> None:
        """They wait until they are told to call."""
        kinds = self.kinds()
        self.pace = Pace(len(kinds))
        for kind in kinds:
            thread = threading.Thread(target=self._keep, args=(kind, Random(self.rng.getrandbits(32))), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _keep(self, kind: Callable[[Random], Any], rng: Random) -> None:
        while self.pace.awaited():
            try:
                while self.pace.going:
                    kind(rng)
            except Exception as error:
                self.ledger.fail("caller", "none", type(error).__name__, f"{kind}: {error!r}")
                time.sleep(1)
            finally:
                self.pace.rested()

    def question(self) -> Any:
        """One to ask."""
        with self._locked_pool:
            return self._pool.question()

    def transforms(self, number: int) -> Any:
        """Some for a stream."""
        with self._locked_pool:
            return self._pool.transforms(number)

    def options(self, service: str) -> dict[str, Any]:
        """Of a client of this service. A token that is replaced meanwhile is the client's to notice."""
        return {} if service == PLAIN else {"credentials": self.credentials(), "token": Path(self.place.token)}

    def credentials(self) -> Any:
        """That trust the guarded service."""
        return grpc.ssl_channel_credentials(Path(self.place.authority).read_bytes())


def run_id(rng: Random) -> str:
    """Of a run that has begun lately: they come and go."""
    return f"run-{int(time.monotonic() / _RUN_SECONDS) + rng.randrange(_RUNS_AT_ONCE)}"


def asked(question: Any, rng: Random) -> dict[str, Any]:
    """The arguments of a question, under a run id where that can be said."""
    named = question.method == "transform_detailed" and rng.random() < 0.9
    return {**question.arguments, "run_id": run_id(rng)} if named else question.arguments


class Waiting(Callers):
    """Threads with clients that wait."""

    def kinds(self) -> list[Callable[[Random], Any]]:
        """Of either service: patient calls, a stream, calls that fall back, and calls in a hurry."""
        return [
            lambda rng, service=service, kind=kind: kind(rng, service)  # type: ignore[misc]
            for service in (PLAIN, GUARDED)
            for kind in (self._patient, self._patient, self._stream, self._fallback, self._hurried)
        ]

    def _patient(self, rng: Random, service: str) -> None:
        self._ask(rng, service, "patient", PATIENT_SECONDS, rng.randint(1, 60))

    def _hurried(self, rng: Random, service: str) -> None:
        self._ask(rng, service, "hurried", HURRIED_SECONDS, rng.randint(1, 60))

    def _fallback(self, rng: Random, service: str) -> None:
        self._ask(rng, service, "fallback", FALLBACK_SECONDS, 1000, fallback="local")

    def _ask(self, rng: Random, service: str, caller: str, seconds: float, calls: int, **more: Any) -> None:
        with self._client(service, seconds, **more) as client:
            was_away = False
            for _ in range(calls):
                if not self.pace.step(rng):
                    break
                question = self.question()
                # A fallback takes as long again as the wait that it ends.
                with self.ledger.call(caller, service, seconds) as call:
                    call.right = question.is_answered_by(getattr(client, question.method)(**asked(question, rng)))
                away = client._outage.ongoing
                if away:
                    self.ledger.count("answers computed by a fallback")
                if away != was_away:
                    self.ledger.count("outages begun" if away else "outages ended")
                was_away = away
            if was_away:
                self._return(rng, service, client)

    def _client(self, service: str, seconds: float, **more: Any) -> Client:
        return Client(self.place.addresses[service], timeout=seconds, **self.options(service), **more)

    def _return(self, rng: Random, service: str, client: Client) -> None:
        """The client must find out by itself that the service has come back."""
        deadline = self.ledger.heartbeat.seconds + PATIENT_SECONDS
        while client._outage.ongoing:
            if self.ledger.heartbeat.seconds > deadline:
                self.ledger.fail("fallback", service, "AWAY", "the service is there, and the client does not return")
                return
            with self.ledger.call("fallback", service, FALLBACK_SECONDS) as call:
                question = self.question()
                call.right = question.is_answered_by(getattr(client, question.method)(**question.arguments))
            time.sleep(0.1)
        self.ledger.count("outages ended")

    def _stream(self, rng: Random, service: str) -> None:
        questions = self.transforms(rng.randint(1, 40))
        with (
            self._client(service, PATIENT_SECONDS) as client,
            client.stream((asked(each, rng) for each in questions), in_flight=rng.randint(1, 12)) as stream,
        ):
            answered = 0
            for question in questions:
                if not self.pace.step(rng):
                    return  # leaving early is fine
                with self.ledger.call("stream", service, PATIENT_SECONDS) as call:
                    call.right = question.is_answered_by(next(stream))
                    answered += 1
            if answered == len(questions) and next(stream, None) is not None:
                self.ledger.fail("stream", service, "TWICE", "a stream gave more answers than it had batches")


class Asynchronous(Callers):
    """The same on an event loop."""

    def kinds(self) -> list[Callable[[Random], Any]]:
        """One: a loop in which all of them are tasks."""
        return [self._loop]

    def _loop(self, rng: Random) -> None:
        asyncio.run(self._all(rng))

    async def _all(self, rng: Random) -> None:
        kinds = self._tasks()
        await asyncio.gather(
            *(self._again(kind, service, Random(rng.getrandbits(32))) for service in (PLAIN, GUARDED) for kind in kinds)
        )

    def _tasks(self) -> tuple[Callable[[Random, str], Awaitable[None]], ...]:
        return self._patient, self._stream, self._fallback

    async def _again(self, kind: Callable[[Random, str], Awaitable[None]], service: str, rng: Random) -> None:
        while self.pace.going:
            await kind(rng, service)

    async def _step(self, rng: Random) -> bool:
        left = self.pace.seconds(rng)
        while left > 0 and self.pace.going:
            await asyncio.sleep(min(left, 0.2))
            left -= 0.2
        return self.pace.going

    async def _patient(self, rng: Random, service: str) -> None:
        await self._ask(rng, service, "patient", PATIENT_SECONDS)

    async def _fallback(self, rng: Random, service: str) -> None:
        await self._ask(rng, service, "fallback", FALLBACK_SECONDS, fallback="local")

    def _client(self, service: str, seconds: float, **more: Any) -> AsyncClient:
        return AsyncClient(self.place.addresses[service], timeout=seconds, **self.options(service), **more)

    async def _ask(self, rng: Random, service: str, caller: str, seconds: float, **more: Any) -> None:
        async with self._client(service, seconds, **more) as client:
            for _ in range(rng.randint(1, 100)):
                if not await self._step(rng):
                    return
                question = self.question()
                with self.ledger.call(caller, service, seconds) as call:
                    call.right = question.is_answered_by(await getattr(client, question.method)(**asked(question, rng)))

    async def _stream(self, rng: Random, service: str) -> None:
        questions = self.transforms(rng.randint(1, 40))
        async with (
            self._client(service, PATIENT_SECONDS) as client,
            client.stream([asked(each, rng) for each in questions], in_flight=rng.randint(1, 12)) as stream,
        ):
            for question in questions:
                if not await self._step(rng):
                    return
                with self.ledger.call("stream", service, PATIENT_SECONDS) as call:
                    call.right = question.is_answered_by(await stream.__anext__())


class Cancelling(Asynchronous):
    """Tasks that are cancelled. With grpcio 1.83 asyncio's gRPC keeps some 5 kB of each such call for good."""

    def _tasks(self) -> tuple[Callable[[Random, str], Awaitable[None]], ...]:
        return (self._cancelled,)

    async def _cancelled(self, rng: Random, service: str) -> None:
        """Tasks that are given up at any moment, or not at all."""
        async with self._client(service, PATIENT_SECONDS) as client:
            for _ in range(rng.randint(1, 40)):
                for _ in range(5):
                    if not await self._step(rng):
                        return
                question = self.question()
                with self.ledger.call("given up", service, PATIENT_SECONDS) as call:
                    asking = asyncio.ensure_future(getattr(client, question.method)(**asked(question, rng)))
                    done, _ = await asyncio.wait({asking}, timeout=rng.expovariate(1 / 0.005))
                    if done or not asking.cancel():
                        call.right = question.is_answered_by(await asking)
                    else:
                        await asyncio.wait({asking})
                        self.ledger.count("calls given up")


def commands() -> Iterator[dict[str, Any]]:
    """What the process is told."""
    for line in sys.stdin:
        yield json.loads(line)


def main(kind: str) -> None:
    """Does what it is told until that ends."""
    from soak.strangers import Strangers

    told = commands()
    first = next(told)
    random.seed(first["seed"])
    ledger = Ledger()
    if first["fill"]:
        with LocalClient() as here:
            fill_caches(here)
    kinds: dict[str, type[Callers]] = {
        "waiting": Waiting,
        "asynchronous": Asynchronous,
        "cancelling": Cancelling,
        "strangers": Strangers,
    }
    callers = kinds[kind](Place(**first["place"]), Random(first["seed"]), ledger)
    callers.start()
    gc.freeze()
    for command in told:
        if "place" in command:
            callers.place = Place(**command["place"])
        if "pause" in command:
            callers.pace.pause = command["pause"]
        if "going" in command:
            callers.pace.set(command["going"])
        # Each call of asyncio's gRPC is part of a cycle, which keeps its messages and its connection until it is found.
        gc.collect()
        page = asdict(ledger.page())
        print(json.dumps({**page, "busy": callers.pace.busy, "tokens": [*callers.tokens]}), flush=True)
    callers.pace.set(False, over=True)
    for thread in callers.threads:
        thread.join(10)


if __name__ == "__main__":
    main(sys.argv[1])
