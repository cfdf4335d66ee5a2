"""The standard health service, for load balancers and probes.

The one that ships with gRPC holds a lock while it writes to a watcher, so that one watcher which does not read keeps
everyone, the shutdown included, from the next change. Here a change only wakes the watchers, and a shutdown ends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Each costs some kilobytes for as long as its caller likes.
MOST_WATCHERS = 1024
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Whether the server, and each service it names, takes calls. Not serving until told.

    Args:
        services: full names; "" (the server as a whole) is added.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(("", *services))
        self._status = _NOT_SERVING
        self._over = False
        self._watchers = 0
        self._changed = asyncio.Event()

    def serve(self) -> None:
        """Everything is serving."""
        self._change(_SERVING)

    def drain(self) -> None:
        """Nothing is serving any more; watchers are told, and let go."""
        self._over = True
        self._change(_NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The status now."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """The status now and after every change."""
        if self._watchers >= MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {MOST_WATCHERS} watchers already")
        self._watchers += 1
        try:
            await self._tell(request.service, context)
        finally:
            self._watchers -= 1

    async def _tell(self, service: str, context: Any) -> None:
        told = None
        while True:
            changed, over = self._changed, self._over
            status = self._status if service in self._services else _SERVICE_UNKNOWN
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            if over:
                return
            await changed.wait()

    def _change(self, status: Any) -> None:
        self._status = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
