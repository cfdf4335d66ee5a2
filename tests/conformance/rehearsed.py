"""A server that knows the suite's answers by heart, and gives those that it is told to give wrong: to test the kit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from conformance import suite
from conformance.calls import TRANSFORM
from conformance.conformance_pb2 import Case, Outcome
from conformance.judgement import MOST_NAMED
from pkpo.v1 import reward_transform_pb2 as pb

SUITE = suite.committed()
CASES = {case.name: case for case in SUITE.cases}
SERVICE = TRANSFORM.rpartition("/")[0]

# Changes what a right server would answer to a case.
Wrong = Callable[[Case, Outcome], None]


def conforming(case: Case) -> Outcome:
    """What a right server answers: it names no more offenders than it may."""
    outcome = Outcome.FromString(case.expected.SerializeToString())
    if outcome.HasField("refusal"):
        del outcome.refusal.fields[MOST_NAMED:]
    for answer in outcome.stream.responses:
        if answer.HasField("error"):
            del answer.error.violations[MOST_NAMED:]
    return outcome


class Rehearsed(grpc.GenericRpcHandler):
    """A server of grpcio's synchronous kind, which knows the suite's answers by heart and is wrong in one way."""

    def __init__(self, wrong: Wrong) -> None:
        self._outcomes: dict[tuple[bytes, ...], Outcome] = {}
        for case in SUITE.cases:
            outcome = conforming(case)
            wrong(case, outcome)
            self._outcomes.setdefault(_asked(case), outcome)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.removeprefix(f"{SERVICE}/")
        return {
            "Transform": grpc.unary_unary_rpc_method_handler(self._unary("Transform")),
            "Estimate": grpc.unary_unary_rpc_method_handler(self._unary("Estimate")),
            "TransformStream": grpc.stream_stream_rpc_method_handler(self._stream),
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(
                lambda _, context: rehearsed_info().SerializeToString()
            ),
        }[method]

    def _unary(self, method: str) -> Any:
        def answer(raw: bytes, context: grpc.ServicerContext) -> bytes:
            outcome = self._outcomes[method.encode(), raw]
            kind = outcome.WhichOneof("result")
            if kind == "refusal":
                _refuse(context, outcome)
            message: bytes = getattr(outcome, str(kind)).SerializeToString()
            return message

        return answer

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        asked = (b"TransformStream", *messages)
        outcome = self._outcomes[asked]
        if outcome.HasField("refusal"):
            _refuse(context, outcome)
        for answer in outcome.stream.responses:
            yield answer.SerializeToString()


def _asked(case: Case) -> tuple[bytes, ...]:
    call = case.WhichOneof("call")
    if call == "stream":
        return b"TransformStream", *(message.SerializeToString() for message in case.stream.requests)
    if call == "estimate":
        return b"Estimate", case.estimate.SerializeToString()
    return b"Transform", case.encoded_transform or case.transform.SerializeToString()


def _refuse(context: grpc.ServicerContext, outcome: Outcome) -> None:
    bad_request, detail = error_details_pb2.BadRequest(), any_pb2.Any()
    for field in outcome.refusal.fields:
        bad_request.field_violations.add(field=field)
    detail.Pack(bad_request)
    status = status_pb2.Status(code=outcome.refusal.code, message="no", details=[detail])
    context.abort_with_status(rpc_status.to_status(status))


def rehearsed_info() -> pb.GetServerInfoResponse:
    """Limits that no case goes over."""
    largest = 2**32 - 1
    return pb.GetServerInfoResponse(
        version="1",
        variants=[
            pb.VariantInfo(variant=variant, needs_seed=variant == pb.VARIANT_PASSK_BOOTSTRAP)
            for variant in pb.Variant.values()
            if variant
        ],
        limits=pb.Limits(**{field.name: largest for field in pb.Limits.DESCRIPTOR.fields}),
        default_variant=pb.VARIANT_SLOO_MINUS_ONE,
    )


@contextmanager
def rehearsed(wrong: Wrong) -> Iterator[str]:
    """The address of a server that is wrong in this way."""
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Rehearsed(wrong)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
