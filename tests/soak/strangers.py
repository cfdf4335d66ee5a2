"""Callers that are a nuisance: who ask what cannot be, or may not ask, give up, read slowly, or speak no gRPC."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fuzz import sockets
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, LocalClient
from soak.callers import Callers, run_id
from soak.services import GUARDED, PLAIN

RAW_SECONDS = 20.0
# From 1.84 on one path that is no UTF-8 ends a server: tests/fuzz has the test of that.
_FRAMES_ARE_BORNE = tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 84)
_SLOW_GROUPS, _SLOW_SIZE, _SLOW_K = 512, 16, 4
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


class Strangers(Callers):
    """One thread for each kind of nuisance."""

    def kinds(self) -> list[Callable[[Random], Any]]:
        """Each to either service in turns, as it draws."""
        rewards = np.random.default_rng(7).random((_SLOW_GROUPS, _SLOW_SIZE))
        with LocalClient() as here:
            self._slow_answer = here.transform(rewards, _SLOW_K).ravel().tobytes()
        groups = pb.RewardGroups(f64=pb.DoubleValues(values=rewards.ravel()), group_size=_SLOW_SIZE)
        self._lock = threading.Lock()
        self._slow_request = pb.TransformRequest(groups=groups, k=[_SLOW_K])
        return [
            self._of_either(kind)
            for kind in (
                self._wrong, self._malformed, self._unknown, self._garbage, self._given_up, self._too_late, self._slow,
                self._idle, self._watch, self._info,
            )
        ]  # fmt: skip

    def _of_either(self, kind: Callable[[Random, str], None]) -> Callable[[Random], None]:
        def one(rng: Random) -> None:
            # One after another, each on a connection of its own.
            for _ in range(4):
                if not self.pace.step(rng):
                    return
            kind(rng, rng.choice((PLAIN, GUARDED)))

        return one

    @contextmanager
    def _channel(self, service: str) -> Iterator[grpc.Channel]:
        address = self.place.addresses[service]
        made = (
            grpc.insecure_channel(address, options=_OPTIONS)
            if service == PLAIN
            else grpc.secure_channel(address, self.credentials(), options=_OPTIONS)
        )
        with made as channel:
            yield channel

    @contextmanager
    def _stub(self, service: str) -> Iterator[tuple[Any, Any]]:
        """Of the service, and the metadata of one who may call."""
        with self._token() as token, self._channel(service) as channel:
            metadata = [] if service == PLAIN else [("authorization", f"Bearer {token}")]
            yield pb_grpc.RewardTransformServiceStub(channel), metadata

    @contextmanager
    def _token(self) -> Iterator[str]:
        token = Path(self.place.token).read_text().strip()
        with self._lock:
            self.tokens[token] += 1
        try:
            yield token
        finally:
            with self._lock:
                self.tokens[token] -= 1
                self.tokens += Counter()  # drops those that nobody uses

    def _wrong(self, rng: Random, service: str) -> None:
        """Arguments that the service refuses."""
        rewards = np.ones((2, 4))
        bad: dict[str, Any] = rng.choice(
            (
                {"rewards": rewards * np.nan, "k": 1},
                {"rewards": rewards * 1e101, "k": 1},
                {"rewards": rewards, "k": 5},
                {"rewards": rewards, "k": [1, 0]},
                {"rewards": rewards * 0.5, "k": 1, "variant": "binary"},
                {"rewards": rewards, "k": 4, "variant": "sloo"},
            )
        )
        with Client(self.place.addresses[service], timeout=RAW_SECONDS, **self.options(service)) as client:
            for _ in range(rng.randint(1, 5)):
                with self.ledger.call("wrong arguments", service, RAW_SECONDS, ["INVALID_ARGUMENT"], must=True):
                    client.transform(**bad, run_id=run_id(rng))

    def _malformed(self, rng: Random, service: str) -> None:
        """Requests that no client of ours would make."""
        groups = pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1, 2]), group_size=2)
        request = rng.choice(
            (
                pb.TransformRequest(),
                pb.TransformRequest(groups=groups, k=[1]),
                pb.TransformRequest(groups=groups, k=[1, 1, 1], variant=99),  # type: ignore[arg-type]
                pb.TransformRequest(run_id="no such id\n"),
            )
        )
        with (
            self._stub(service) as (stub, metadata),
            self.ledger.call("malformed requests", service, RAW_SECONDS, ["INVALID_ARGUMENT"], must=True),
        ):
            stub.Transform(request, timeout=RAW_SECONDS, metadata=metadata)

    def _unknown(self, rng: Random, _: str) -> None:
        """Without a token, with one that never was, or one that counts no more."""
        token = rng.choice((None, "f" * 48, self.place.withdrawn))
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with (
            self._channel(GUARDED) as channel,
            self.ledger.call("without a token", GUARDED, RAW_SECONDS, ["UNAUTHENTICATED"], must=True),
        ):
            stub: Any = pb_grpc.RewardTransformServiceStub(channel)
            if rng.random() < 0.7:
                stub.Transform(self._slow_request, timeout=RAW_SECONDS, metadata=metadata)
            else:
                message = pb.TransformStreamRequest(request=self._slow_request)
                [*stub.TransformStream(iter([message] * 5), timeout=RAW_SECONDS, metadata=metadata)]

    def _garbage(self, rng: Random, service: str) -> None:
        """Bytes that are no HTTP/2, or badly so; what comes back does not matter, only that others are answered."""
        frames = sockets.changed_frames(rng) if _FRAMES_ARE_BORNE else b""
        said = rng.choice((frames, frames, rng.randbytes(rng.randint(1, 5000)), b"GET / HTTP/1.1\r\n\r\n"))
        try:
            with self._connection(service) as connection:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass
        except OSError:
            pass
        self.ledger.count("connections that spoke garbage")

    def _idle(self, rng: Random, service: str) -> None:
        """Connections that say nothing."""
        try:
            with self._connection(service):
                deadline = time.monotonic() + rng.uniform(0, 20)
                while self.pace.going and time.monotonic() < deadline:
                    time.sleep(0.2)
        except OSError:
            pass
        self.ledger.count("idle connections")

    def _connection(self, service: str) -> socket.socket:
        host, port = self.place.addresses[service].rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=RAW_SECONDS)

    def _given_up(self, rng: Random, service: str) -> None:
        """Calls that are cancelled at any moment."""
        with self._stub(service) as (stub, metadata):
            for _ in range(rng.randint(1, 10)):
                with self.ledger.call("given up", service, RAW_SECONDS, ["CANCELLED"]) as call:
                    asking = stub.Transform.future(self._slow_request, timeout=RAW_SECONDS, metadata=metadata)
                    time.sleep(rng.expovariate(1 / 0.005))
                    self.ledger.count("calls given up" if asking.cancel() else "calls answered first")
                    call.right = self._is_right(asking.result())

    def _too_late(self, rng: Random, service: str) -> None:
        """Deadlines that pass."""
        with self._stub(service) as (stub, metadata):
            for _ in range(rng.randint(1, 10)):
                with self.ledger.call("too late", service, RAW_SECONDS, ["DEADLINE_EXCEEDED"]) as call:
                    seconds = rng.choice((1e-6, 0.001, 0.005, 0.02))
                    call.right = self._is_right(stub.Transform(self._slow_request, timeout=seconds, metadata=metadata))

    def _slow(self, rng: Random, service: str) -> None:
        """A stream that asks for more than it reads, for a while."""
        number = rng.randint(20, 80)
        with (
            self._stub(service) as (stub, metadata),
            self.ledger.call("slow readers", service, 2 * RAW_SECONDS) as call,
        ):
            messages = [pb.TransformStreamRequest(sequence=i, request=self._slow_request) for i in range(number)]
            answers = stub.TransformStream(iter(messages), timeout=2 * RAW_SECONDS, metadata=metadata)
            time.sleep(rng.uniform(0, 3))
            given = {}
            for answer in itertools.islice(answers, number + 1):
                given[answer.sequence] = self._is_right(answer.response)
                if rng.random() < 0.1:
                    time.sleep(rng.uniform(0, 0.2))
            call.right = len(given) == number and all(given.values())

    def _watch(self, rng: Random, service: str) -> None:
        """How the service is, for a while; anyone may ask."""
        with self._channel(service) as channel, self.ledger.call("health watches", service, RAW_SECONDS, ["CANCELLED"]):
            request = health_pb2.HealthCheckRequest()
            watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=RAW_SECONDS)
            next(watch)
            deadline = time.monotonic() + rng.uniform(0, 10)
            while self.pace.going and time.monotonic() < deadline:
                time.sleep(0.1)
            watch.cancel()
            for _ in watch:
                pass

    def _info(self, rng: Random, service: str) -> None:
        """What the service is."""
        with (
            self._stub(service) as (stub, metadata),
            self.ledger.call("server info", service, RAW_SECONDS) as call,
        ):
            answer = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=RAW_SECONDS, metadata=metadata)
            call.right = len(answer.variants) > 10

    def _is_right(self, response: pb.TransformResponse) -> bool:
        return np.asarray(response.f64.values).astype(np.float64).tobytes() == self._slow_answer
