"""A proxy that injects faults in front of a real server, for tests."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from pkpo.v1 import reward_transform_pb2_grpc

Abort = Callable[[grpc.ServicerContext], Any]


class FaultyProxy(reward_transform_pb2_grpc.RewardTransformServiceServicer):
    """Passes calls on to a real server, except for the faults it is given.

    Attributes:
        address: where it serves.
        faults: by method, what happens to the next calls instead of passing them on.
        calls: how often each method was called.
        metadata: of the last call.
        stream: what answers a stream; replace it to inject faults. `pass_on` passes one on.
        ended: of each stream, set when its call has ended.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target)
        self._stub = reward_transform_pb2_grpc.RewardTransformServiceStub(self._channel)
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        reward_transform_pb2_grpc.add_RewardTransformServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.faults: dict[str, deque[Abort]] = {}
        self.calls: Counter[str] = Counter()
        self.metadata: dict[str, Any] = {}
        self.stream: Callable[[Iterator[Any], Any], Iterator[Any]] = self.pass_on
        self.ended: list[threading.Event] = []
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def pass_on(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from self._stub.TransformStream(requests)

    def Transform(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Transform", request, context)

    def Estimate(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("Estimate", request, context)

    def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._answer("GetServerInfo", request, context)

    def TransformStream(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.calls["TransformStream"] += 1
        self.metadata = dict(context.invocation_metadata())
        ended = threading.Event()
        self.ended.append(ended)
        context.add_callback(ended.set)
        yield from self.stream(requests, context)

    def _answer(self, method: str, request: Any, context: Any) -> Any:
        self.calls[method] += 1
        self.metadata = dict(context.invocation_metadata())
        faults = self.faults.get(method)
        if faults:
            return faults.popleft()(context)
        try:
            response, call = getattr(self._stub, method).with_call(request, timeout=30)
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())
        context.set_trailing_metadata([m for m in call.trailing_metadata() if m.key.startswith("pkpo-")])
        return response
