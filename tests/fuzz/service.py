"""The server's calls without its sockets: the real servicer with all it stands on, asked in this process."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc
from grpc import aio
from prometheus_client import CollectorRegistry, generate_latest

import pkpo_core
from pkpo_server.admission import Admission
from pkpo_server.arrivals import Arrivals
from pkpo_server.codec import Limits
from pkpo_server.computation import Computation
from pkpo_server.exchange import Means
from pkpo_server.logs import BoundedLog
from pkpo_server.memory import Ceiling
from pkpo_server.metrics import Metrics
from pkpo_server.runs import Runs
from pkpo_server.servicer import SERVICE, RewardTransformServicer

# Small, so that small messages go over them too.
LIMITS = Limits(max_message_bytes=2**16, max_rewards=2048, max_group_size=512, max_groups=256, max_estimate_k=16)
TRANSFORM, STREAM, ESTIMATE, INFO = "Transform", "TransformStream", "Estimate", "GetServerInfo"


@dataclass
class Outcome:
    """What became of a call.

    Attributes:
        code: how it ended.
        message: that came with the code.
        details: google.rpc.Status, serialized; empty where there is none.
        answers: the messages that came back.
        faults: what the log says of our own faults.
    """

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    details: bytes = b""
    answers: list[bytes] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Service:
    """Answers calls as a server of one process does. Belongs to one event loop."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        pkpo_core.compile_kernels()
        self.limits = limits
        self._log = _Log()
        self._registry = CollectorRegistry()
        log: Any = self._log
        metrics = Metrics(self._registry, Runs(8, 7200, log))
        self._computation = Computation(1, most_bytes=2**30, most_rewards=2**30)
        # Every fault is to be seen, however many there are.
        means = Means(limits, self._computation, metrics, BoundedLog(log, lines_per_second=2**62))
        servicer = RewardTransformServicer(means, Admission(1024), Arrivals(Ceiling(0)), stream_in_flight=4)
        servicer.serve()
        handler = servicer.handler()
        self._methods: dict[str, Any] = {
            name: handler.service(SimpleNamespace(method=f"/{SERVICE}/{name}", invocation_metadata=()))  # type: ignore[arg-type]
            for name in (TRANSFORM, STREAM, ESTIMATE, INFO)
        }

    async def call(self, method: str, messages: Sequence[bytes]) -> Outcome:
        """What becomes of a call with these messages, of which all but streams have one."""
        outcome = Outcome()
        context = _Context(outcome, messages)
        try:
            if method == STREAM:
                await self._methods[method].stream_stream(None, context)
            else:
                outcome.answers.append(await self._methods[method].stream_unary(None, context))
        except _Aborted:
            pass
        except Exception:  # what grpc would answer with UNKNOWN
            outcome.code = grpc.StatusCode.UNKNOWN
            outcome.faults.append(traceback.format_exc())
        context.end()
        outcome.faults += self._log.faults
        self._log.faults.clear()
        return outcome

    def metrics(self) -> str:
        """What a scrape reads."""
        return generate_latest(self._registry).decode()

    def close(self) -> None:
        """Ends its threads."""
        self._computation.stop()


class _Aborted(Exception):
    pass


class _Context:
    """As much of grpc.aio.ServicerContext as the servicer uses."""

    def __init__(self, outcome: Outcome, messages: Sequence[bytes]) -> None:
        self._outcome = outcome
        self._messages = iter(messages)
        self._callbacks: list[Callable[[Any], None]] = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "in this process"

    def set_trailing_metadata(self, _: Any) -> None:
        pass

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        """The call is over, and its answer has left."""
        for callback in self._callbacks:
            callback(self)

    async def send_initial_metadata(self, _: Any) -> None:
        pass

    async def read(self) -> Any:
        return next(self._messages, aio.EOF)

    async def write(self, answer: bytes) -> None:
        self._outcome.answers.append(answer)

    async def abort(self, code: grpc.StatusCode, message: str, trailers: Any) -> None:
        self._outcome.code, self._outcome.message = code, message
        self._outcome.details = dict(trailers).get("grpc-status-details-bin", b"")
        raise _Aborted


class _Log:
    """Keeps what is our own fault."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = debug = info

    def error(self, event: str, **fields: Any) -> None:
        error = fields.get("exc_info")
        said = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else str(fields)
        self.faults.append(f"{event}: {said}")
