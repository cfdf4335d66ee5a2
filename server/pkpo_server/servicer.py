"""What each call means. Requests and answers are bytes here: they are parsed where a refusal can still be said well."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import grpc
from grpc import aio

from pkpo import __version__
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_core import Variant, Violation
from pkpo_server import codec, metrics
from pkpo_server.admission import Admission
from pkpo_server.arrivals import Arrivals
from pkpo_server.computation import Patience
from pkpo_server.exchange import (
    ESTIMATE,
    STREAM_MESSAGE,
    TRANSFORM,
    Caller,
    Exchange,
    Kind,
    Means,
    Request,
    log_refusal,
    refusal_of,
)
from pkpo_server.grants import EVERYTHING, NOTHING
from pkpo_server.refusal import Draining, InvalidRequest, NotReady, Overloaded, Refusal, Unauthenticated, Withheld
from pkpo_server.request_id import request_id
from pkpo_server.stream import Stream
from pkpo_server.tokens import Metadata, Tokens, why_refused

SERVICE = pb.DESCRIPTOR.services_by_name["RewardTransformService"].full_name
VERSION_KEY, REQUEST_ID_KEY = "pkpo-server-version", "pkpo-request-id"


class RewardTransformServicer:
    """The four calls of the contract.

    Args:
        means: what answering takes.
        admission: who gets in.
        arrivals: what is on its way to this process.
        stream_in_flight: how many messages of one stream are answered at once.
        tokens: those that are let in; None lets everyone in.
        tells: whether callers are told what the server is and takes.
    """

    def __init__(
        self,
        means: Means,
        admission: Admission,
        arrivals: Arrivals,
        stream_in_flight: int,
        tokens: Tokens | None = None,
        tells: bool = True,
    ) -> None:
        self._means = means
        self._admission = admission
        self._arrivals = arrivals
        self._stream_in_flight = stream_in_flight
        self._tokens = tokens
        self._streams: set[Stream] = set()
        self._info = codec.server_info(__version__, means.limits) if tells else None
        self._ready = False
        self._draining = False

    def handler(self) -> grpc.GenericRpcHandler:
        """The calls, for a gRPC server."""
        # The message of a unary call is read here, and not by gRPC before: a call counts from its headers on.
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            TRANSFORM.method: unary(partial(self._answer_unary, TRANSFORM)),
            STREAM_MESSAGE.method: stream(self._transform_stream),
            ESTIMATE.method: unary(partial(self._answer_unary, ESTIMATE)),
            metrics.GET_SERVER_INFO: unary(self._get_server_info),
        }
        known = grpc.method_handlers_generic_handler(SERVICE, handlers)
        return _Gate(known, self._refusal_unread, self._refuse_unread)

    def _refusal_unread(self, metadata: Metadata | None) -> Refusal | None:
        if self._tokens is not None and self._tokens.grant(metadata) is None:
            return Unauthenticated(why_refused(metadata))
        # Once nothing is open, no call would make room for another.
        return self._arrivals.refusal() if self._admission.open_calls else None

    async def _refuse_unread(self, refusal: Refusal, method: str, context: Any) -> NoReturn:
        caller = self._caller(method, context)
        self._account_unread(refusal, caller)
        await _abort(context, caller, refusal)

    def serve(self) -> None:
        """From now on calls are answered; before, they are refused as not ready."""
        self._ready = True

    def drain(self) -> None:
        """New calls are refused; open streams read no more messages, and end when those received are answered."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def _get_server_info(self, _: Any, context: Any) -> bytes:
        if self._info is None:
            return await self._refuse_unread(Withheld(), metrics.GET_SERVER_INFO, context)
        caller = self._caller(metrics.GET_SERVER_INFO, context)
        started = time.perf_counter()
        try:
            tenant = self._admit(caller)
        except Refusal as refusal:
            return await _abort(context, caller, refusal)
        elapsed = time.perf_counter() - started
        self._means.metrics.finished(caller.method, metrics.NO_VARIANT, grpc.StatusCode.OK, elapsed)
        self._leave(tenant)
        await context.send_initial_metadata(_names(caller))
        return self._info

    async def _answer_unary(self, kind: Kind, _: Any, context: Any) -> bytes:
        caller = self._caller(kind.method, context)
        try:
            tenant = self._admit(caller)
            # Not when the answer is ready: one that its caller does not read is held by gRPC for as long.
            context.add_done_callback(lambda _: self._leave(tenant))
            raw = await self._message(caller, context)
            exchange = Exchange(self._means, caller, kind, raw)
            context.add_done_callback(lambda _: exchange.sent())
            del raw
            answer = exchange.now()
            if answer is None:
                answer = await exchange.later()
            exchange.hold(answer)
            # Not in initial metadata, as on a stream: gRPC sends ours only by themselves, which takes longer than to
            # compute a small batch.
            context.set_trailing_metadata(_names(caller))
            return answer
        except aio.InternalError:
            # The transport is gone, and with it whom to tell.
            raise
        except Exception as error:
            failure = refusal_of(error, caller, self._means)
        return await _abort(context, caller, failure)

    async def _message(self, caller: Caller, context: Any) -> bytes:
        """The only message of a unary call. Raises Refusal, accounted for."""
        try:
            raw = await self._arrivals.message(context)
            if raw is None:
                raise InvalidRequest([Violation("message", "is absent; must be sent once")])
            return raw
        except Refusal as refusal:
            self._account_unread(refusal, caller)
            raise

    async def _transform_stream(self, _: Any, context: Any) -> None:
        caller = self._caller(STREAM_MESSAGE.method, context)
        try:
            tenant = self._admit(caller)
            try:
                # Only once it is let in: clients retry no call whose headers they have seen.
                await context.send_initial_metadata(_names(caller))
                await self._serve_stream(context, caller)
            finally:
                self._leave(tenant)
            return
        except aio.InternalError:
            raise
        except Exception as error:
            failure = refusal_of(error, caller, self._means)
        await _abort(context, caller, failure)

    async def _serve_stream(self, context: Any, caller: Caller) -> None:
        stream = Stream(context, self._means, caller, self._arrivals, self._stream_in_flight, self._tokens)
        self._streams.add(stream)
        if self._draining:
            stream.drain()
        self._means.metrics.open_streams.inc()
        try:
            await stream.serve()
        except (Draining, Overloaded, Unauthenticated) as refusal:
            log_refusal(refusal, caller, self._means)
            raise
        finally:
            self._means.metrics.open_streams.dec()
            self._streams.discard(stream)

    def _caller(self, method: str, context: Any) -> Caller:
        metadata = context.invocation_metadata() or ()
        name, traceparent = request_id(metadata)
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        grant = EVERYTHING if self._tokens is None else self._tokens.grant(metadata) or NOTHING
        return Caller(method, name, traceparent, context.peer, deadline, metadata, grant)

    def _admit(self, caller: Caller) -> str:
        """Lets a call in, which must leave as the tenant that is returned. Raises Refusal, accounted for."""
        try:
            if self._draining:
                raise Draining
            if not self._ready:
                raise NotReady
            if caller.grant is NOTHING:
                raise Unauthenticated(Unauthenticated.TAKEN_BACK)  # since the call was let in
            tenant = caller.tenant
            self._admission.enter(tenant)
            self._means.metrics.count_soon()
            return tenant
        except Refusal as refusal:
            self._account_unread(refusal, caller)
            raise

    def _leave(self, tenant: str) -> None:
        self._admission.leave(tenant)
        self._means.metrics.count_soon()

    def _account_unread(self, refusal: Refusal, caller: Caller) -> None:
        self._means.metrics.refused_unread(caller.method, refusal.code)
        log_refusal(refusal, caller, self._means)


def warm_up(means: Means) -> None:
    """Answers a request of every kind by every variant once, so that no caller's first one is slower than the next."""
    rewards = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    doubles = pb.RewardGroups(f64=pb.DoubleValues(values=rewards), group_size=4)
    floats = pb.RewardGroups(f32=pb.FloatValues(values=rewards), group_sizes=pb.GroupSizes(sizes=[2, 6]))
    for number, variant in codec.VARIANTS.items():
        k = [0] if variant is Variant.TZSM else [2]
        request = pb.TransformRequest(variant=number, k=k, k_policy=pb.K_POLICY_CLAMP)  # type: ignore[arg-type]
        request.groups.CopyFrom(doubles)
        _answer(TRANSFORM, request.SerializeToString(), means)
        request.groups.CopyFrom(floats)
        request.estimate_k.append(2)
        message = pb.TransformStreamRequest(sequence=1, request=request)
        _answer(STREAM_MESSAGE, message.SerializeToString(), means)
    _answer(ESTIMATE, pb.EstimateRequest(groups=doubles, k=[2]).SerializeToString(), means)
    InvalidRequest([Violation("k", "is 0; must be at least 1")]).trailing_metadata()


def _answer(kind: Kind, raw: bytes, means: Means) -> None:
    request = Request(metrics.NO_VARIANT)
    kind.encode(kind.read(raw, means.limits, request).run(Patience(None)), request)


class _Gate(grpc.GenericRpcHandler):
    """What is said of a call before its message is read, however large that is."""

    def __init__(
        self,
        known: grpc.GenericRpcHandler,
        refusal: Callable[[Metadata | None], Refusal | None],
        refuse: Callable[[Refusal, str, Any], Awaitable[None]],
    ) -> None:
        self._known = known
        self._refusal = refusal
        self._refuse = refuse

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = self._known.service(handler_call_details)
        if handler is None:
            return None
        refusal = self._refusal(handler_call_details.invocation_metadata)
        if refusal is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]

        async def refuse(_: Any, context: Any) -> None:
            await self._refuse(refusal, method, context)

        return grpc.stream_stream_rpc_method_handler(refuse)


def _names(caller: Caller) -> tuple[tuple[str, str], ...]:
    return ((VERSION_KEY, __version__), (REQUEST_ID_KEY, caller.request_id))


async def _abort(context: Any, caller: Caller, refusal: Refusal) -> NoReturn:
    await context.abort(refusal.code, refusal.message, (*refusal.trailing_metadata(), *_names(caller)))
    raise AssertionError("abort returned")
