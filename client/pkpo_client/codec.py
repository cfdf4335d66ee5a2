"""Work as protobuf messages, and messages as answers. The only module that knows both.

Out, a request is written as the bytes of its message around the bytes of the rewards, joined once. In, protobuf parses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from pkpo import packed
from pkpo.packed import Part
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client.errors import ServerError
from pkpo_client.options import K_POLICIES, SCALES, VARIANTS
from pkpo_client.results import Limits, MaxAtK, ServerInfo, VariantInfo
from pkpo_client.splitting import DEFAULT_LIMITS
from pkpo_client.work import Advantages, Batch, EstimateBatch, Info, Work

_SERVICE = pb.DESCRIPTOR.services_by_name["RewardTransformService"].full_name
_VARIANT_NAMES = {number: name for name, number in VARIANTS.items()}


@dataclass(frozen=True)
class Method:
    """How a kind of work travels.

    Attributes:
        path: of the RPC.
        request: the bytes of the message that asks for the work.
        response: the message that comes back.
        answer: what it says; raises `ServerError` where it does not fit the work.
    """

    path: str
    request: Callable[[Any], bytes]
    response: type[Message]
    answer: Callable[[Any, Any], Any]


def method(work: Work) -> Method:
    """How `work` travels."""
    return _METHODS[type(work)]


def answer(work: Work, response: Message | ServerError | None) -> Any:
    """What the response says of `work`. Raises ServerError where it is none, or does not fit the work."""
    if response is None:
        # gRPC takes a status of OK for an answer.
        raise _misfit("it ended well and had no message")
    if isinstance(response, ServerError):
        raise response
    return method(work).answer(work, response)


class Calls:
    """What can be called on a channel of either API. Requests are given as bytes.

    What comes back is a message, or the `ServerError` that says it is none.

    Attributes:
        unary: by kind of work.
        stream: TransformStream.
    """

    def __init__(self, channel: Any) -> None:
        self.unary: dict[type[Work], Any] = {
            kind: channel.unary_unary(travels.path, response_deserializer=_reading(travels.response))
            for kind, travels in _METHODS.items()
        }
        self.stream: Any = channel.stream_stream(
            _path("TransformStream"), response_deserializer=_reading(pb.TransformStreamResponse)
        )


def transform_request(batch: Batch) -> bytes:
    """The request for the advantages of a batch."""
    return b"".join(_transform_fields(batch))


def stream_request(sequence: int, batch: Batch) -> bytes:
    """The message of a stream that asks for the advantages of a batch."""
    number = packed.number_field(pb.TransformStreamRequest.SEQUENCE_FIELD_NUMBER, sequence)
    request = packed.message_field(pb.TransformStreamRequest.REQUEST_FIELD_NUMBER, _transform_fields(batch))
    return b"".join((number, *request))


def advantages(batch: Batch, response: pb.TransformResponse) -> Advantages:
    """What the response says of a batch."""
    dtype = batch.rewards.dtype
    if dtype == np.float32:
        values: NDArray[Any] = packed.array(response.f32.values, np.float32)
    else:
        values = packed.array(response.f64.values, np.float64)
    if len(values) != len(batch.rewards):
        raise _misfit(f"{len(values)} advantages of {dtype} for {len(batch.rewards)} rewards")
    said = response.group_statuses
    if not said:
        statuses = np.zeros(batch.number_of_groups, dtype=np.uint8)
    elif len(said) == batch.number_of_groups:
        statuses = packed.array(said, np.uint8)
    else:
        raise _misfit(f"{len(said)} group statuses for {batch.number_of_groups} groups")
    return Advantages(values, statuses, _estimates(response.estimates, batch.estimate_k, batch.number_of_groups))


def _transform_fields(batch: Batch) -> list[Part]:
    options = _options_fields(
        batch.variant, batch.scale, batch.k_policy, batch.estimate_k, batch.seed, batch.run_id, batch.first_group
    )
    fields = [options, *_groups_field(pb.TransformRequest.GROUPS_FIELD_NUMBER, batch)]
    if isinstance(batch.k, np.ndarray):
        fields.append(pb.TransformRequest(k=batch.k.tolist()).SerializeToString())
    elif batch.k is not None:
        fields.append(pb.TransformRequest(k=(batch.k,)).SerializeToString())
    return fields


# A training run asks for the same thing every time.
@lru_cache(maxsize=64)
def _options_fields(
    variant: str, scale: str, k_policy: str, estimate_k: tuple[int, ...], seed: int, run_id: str, first_group: int
) -> bytes:
    return pb.TransformRequest(
        variant=pb.Variant.ValueType(VARIANTS[variant]),
        scale=pb.Scale.ValueType(SCALES[scale]),
        k_policy=pb.KPolicy.ValueType(K_POLICIES[k_policy]),
        estimate_k=estimate_k,
        seed=seed,
        run_id=run_id,
        first_group=first_group,
    ).SerializeToString()


def _groups_field(number: int, batch: Batch | EstimateBatch) -> list[Part]:
    if batch.rewards.dtype == np.float32:
        values = packed.packed_field(pb.FloatValues.VALUES_FIELD_NUMBER, batch.rewards, "<f4")
        fields = packed.message_field(pb.RewardGroups.F32_FIELD_NUMBER, values)
    else:
        values = packed.packed_field(pb.DoubleValues.VALUES_FIELD_NUMBER, batch.rewards, "<f8")
        fields = packed.message_field(pb.RewardGroups.F64_FIELD_NUMBER, values)
    if isinstance(batch.group_sizes, int):
        fields.append(packed.number_field(pb.RewardGroups.GROUP_SIZE_FIELD_NUMBER, batch.group_sizes))
    else:
        sizes = pb.GroupSizes(sizes=batch.group_sizes.tolist())
        fields.append(pb.RewardGroups(group_sizes=sizes).SerializeToString())
    return packed.message_field(number, fields)


def _estimate_request(batch: EstimateBatch) -> bytes:
    k = pb.EstimateRequest(k=batch.k).SerializeToString()
    return b"".join((k, *_groups_field(pb.EstimateRequest.GROUPS_FIELD_NUMBER, batch)))


def _estimate_answer(batch: EstimateBatch, response: pb.EstimateResponse) -> tuple[MaxAtK, ...]:
    return _estimates(response.estimates, batch.k, batch.number_of_groups)


def _info_request(_: Info) -> bytes:
    return pb.GetServerInfoRequest().SerializeToString()


def _info_answer(_: Info, response: pb.GetServerInfoResponse) -> ServerInfo:
    said, default = response.limits, DEFAULT_LIMITS
    return ServerInfo(
        version=response.version,
        variants=tuple(
            VariantInfo(_variant_name(each.variant), each.source, each.k_range, each.needs_seed)
            for each in response.variants
        ),
        # A limit of 0 was not said.
        limits=Limits(
            max_message_bytes=said.max_message_bytes or default.max_message_bytes,
            max_rewards=said.max_rewards or default.max_rewards,
            max_group_size=said.max_group_size or default.max_group_size,
            max_groups=said.max_groups or default.max_groups,
            max_estimate_k=said.max_estimate_k or default.max_estimate_k,
        ),
        default_variant=_variant_name(response.default_variant),
    )


def _variant_name(number: int) -> str:
    """A newer server may know variants that this client does not."""
    return _VARIANT_NAMES.get(number, f"variant_{number}")


def _estimates(said: Any, ks: tuple[int, ...], groups: int) -> tuple[MaxAtK, ...]:
    if not said and not ks:
        return ()
    found = tuple(
        MaxAtK(
            each.k,
            packed.array(each.values, np.float64),
            packed.array(each.standard_errors, np.float64),
        )
        for each in said
    )
    if tuple(each.k for each in found) != ks:
        raise _misfit(f"estimates for k = {[each.k for each in found]} where {list(ks)} were asked for")
    for each in found:
        if not len(each.values) == len(each.standard_errors) == groups:
            raise _misfit(f"{len(each.values)} estimates, {len(each.standard_errors)} errors for {groups} groups")
    return found


def _misfit(what: str) -> ServerError:
    return ServerError(f"the server's answer does not fit the request: {what}", code="DATA_LOSS")


def _reading(kind: type[Message]) -> Callable[[bytes], Message | ServerError]:
    """What reads the messages of a kind."""

    # What it raised, gRPC would log, and answer with None.
    def read(raw: bytes) -> Message | ServerError:
        try:
            return kind.FromString(raw)
        except DecodeError as error:
            unreadable = _misfit(f"{len(raw)} bytes that are no {kind.DESCRIPTOR.full_name}")
            unreadable.__cause__ = error
            return unreadable

    return read


def _path(name: str) -> str:
    return f"/{_SERVICE}/{name}"


_METHODS: dict[type[Work], Method] = {
    Batch: Method(_path("Transform"), transform_request, pb.TransformResponse, advantages),
    EstimateBatch: Method(_path("Estimate"), _estimate_request, pb.EstimateResponse, _estimate_answer),
    Info: Method(_path("GetServerInfo"), _info_request, pb.GetServerInfoResponse, _info_answer),
}

__all__ = ["Calls", "Method", "advantages", "answer", "method", "stream_request", "transform_request"]
