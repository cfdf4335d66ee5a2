"""The standard health service, for load balancers and probes.

The one that ships with gRPC holds a lock while it writes to a watcher, so that one watcher which does not read keeps
everyone, the shutdown included, from the next change. Here a change only wakes the watchers, and a shutdown ends them.

Whoever asks needs no token, and gRPC takes messages of any method up to the same size. So one that asks for health has
little time to arrive, as the name of a service does at once, and next to none where the process is as large as it may
become. It is asked for all the same then: whoever cannot be asked is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from pkpo_server.arrivals import Arrivals
from pkpo_server.refusal import Refusal

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Each costs some kilobytes for as long as its caller likes.
MOST_WATCHERS = 1024
# So long the message of whoever asks may take.
ASKING_SECONDS = 2.0
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Whether the server, and each service it names, takes calls. Not serving until told.

    Args:
        services: full names; "" (the server as a whole) is added.
        arrivals: what is on its way to this process.
    """

    def __init__(self, services: Collection[str], arrivals: Arrivals) -> None:
        self._services = frozenset(("", *services))
        self._arrivals = arrivals
        self._status = _NOT_SERVING
        self._over = False
        self._watchers = 0
        self._changed = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """The calls, for a gRPC server."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)

    def serve(self) -> None:
        """Everything is serving."""
        self._change(_SERVING)

    def drain(self) -> None:
        """Nothing is serving any more; watchers are told, and let go."""
        self._over = True
        self._change(_NOT_SERVING)

    async def _check(self, _: Any, context: Any) -> bytes:
        """The status now."""
        if await self._service(context) not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _said(self._status)

    async def _watch(self, _: Any, context: Any) -> None:
        """The status now and after every change."""
        if self._watchers >= MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {MOST_WATCHERS} watchers already")
        self._watchers += 1
        try:
            await self._tell(await self._service(context), context)
        finally:
            self._watchers -= 1

    async def _service(self, context: Any) -> str:
        """The name that is asked for."""
        try:
            raw = await self._arrivals.message(context, ASKING_SECONDS)
            return str(health_pb2.HealthCheckRequest.FromString(raw or b"").service)
        except Refusal as refusal:
            return await _abort(context, refusal.code, refusal.message)
        except DecodeError:
            return await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "no grpc.health.v1.HealthCheckRequest")

    async def _tell(self, service: str, context: Any) -> None:
        told = None
        while True:
            changed, over = self._changed, self._over
            status = self._status if service in self._services else _SERVICE_UNKNOWN
            if status != told:
                await context.write(_said(status))
                told = status
            if over:
                return
            await changed.wait()

    def _change(self, status: Any) -> None:
        self._status = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _said(status: Any) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())


async def _abort(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort returned")
