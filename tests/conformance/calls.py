"""The calls of a suite, made by grpcio from the contract's stubs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from conformance.conformance_pb2 import Answers, Case, Outcome, Refusal
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc

Metadata = Sequence[tuple[str, str]]
TRANSFORM = f"/{pb.DESCRIPTOR.services_by_name['RewardTransformService'].full_name}/Transform"


def outcome(channel: grpc.Channel, case: Case, *, timeout: float, metadata: Metadata = ()) -> Outcome:
    """What the server makes of a case."""
    stub: Any = pb_grpc.RewardTransformServiceStub(channel)
    call = case.WhichOneof("call")
    options: dict[str, Any] = {"timeout": timeout, "metadata": metadata}
    try:
        if call == "transform":
            return Outcome(transform=stub.Transform(case.transform, **options))
        if call == "estimate":
            return Outcome(estimate=stub.Estimate(case.estimate, **options))
        if call == "stream":
            return Outcome(stream=Answers(responses=stub.TransformStream(iter(case.stream.requests), **options)))
        as_it_is: Any = channel.unary_unary(TRANSFORM, response_deserializer=pb.TransformResponse.FromString)
        return Outcome(transform=as_it_is(case.encoded_transform, **options))
    except grpc.RpcError as error:
        return Outcome(refusal=Refusal(code=error.code().value[0], fields=_fields(error)))


def server_info(channel: grpc.Channel, *, timeout: float, metadata: Metadata = ()) -> pb.GetServerInfoResponse:
    """What the server says of itself. Raises grpc.RpcError."""
    stub: Any = pb_grpc.RewardTransformServiceStub(channel)
    info: pb.GetServerInfoResponse = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout, metadata=metadata)
    return info


def _fields(error: Any) -> list[str]:
    """Those that google.rpc.BadRequest names; none where the details cannot be read."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return []
    fields = []
    for detail in status.details if status is not None else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            fields += [violation.field for violation in bad_request.field_violations]
    return fields
