"""Work as protobuf messages, and messages as answers. The only module that knows both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client.errors import ServerError
from pkpo_client.options import K_POLICIES, SCALES, VARIANTS
from pkpo_client.results import Limits, MaxAtK, ServerInfo, VariantInfo
from pkpo_client.splitting import DEFAULT_LIMITS
from pkpo_client.work import Advantages, Batch, EstimateBatch, Info, Work

_VARIANT_NAMES = {number: name for name, number in VARIANTS.items()}


@dataclass(frozen=True)
class Method:
    """How a kind of work travels.

    Attributes:
        name: of the RPC.
        request: the message that asks for the work.
        answer: what the message that comes back says; raises `ServerError` where it does not fit the work.
    """

    name: str
    request: Callable[[Any], Any]
    answer: Callable[[Any, Any], Any]


def method(work: Work) -> Method:
    """How `work` travels."""
    return _METHODS[type(work)]


def transform_request(batch: Batch) -> pb.TransformRequest:
    """The request for the advantages of a batch."""
    request = pb.TransformRequest()
    _fill_transform(request, batch)
    return request


def stream_request(sequence: int, batch: Batch) -> pb.TransformStreamRequest:
    """The message of a stream that asks for the advantages of a batch."""
    message = pb.TransformStreamRequest(sequence=sequence)
    _fill_transform(message.request, batch)
    return message


def advantages(batch: Batch, response: pb.TransformResponse) -> Advantages:
    """What the response says of a batch."""
    dtype = batch.rewards.dtype
    if dtype == np.float32:
        values: NDArray[Any] = packed.array(response.f32.values, np.float32)
    else:
        values = packed.array(response.f64.values, np.float64)
    if len(values) != len(batch.rewards):
        raise _misfit(f"{len(values)} advantages of {dtype} for {len(batch.rewards)} rewards")
    statuses = packed.array(response.group_statuses, np.uint8)
    if len(statuses) == 0:
        statuses = np.zeros(batch.number_of_groups, dtype=np.uint8)
    elif len(statuses) != batch.number_of_groups:
        raise _misfit(f"{len(statuses)} group statuses for {batch.number_of_groups} groups")
    return Advantages(values, statuses, _estimates(response.estimates, batch.estimate_k, batch.number_of_groups))


def _fill_transform(request: pb.TransformRequest, batch: Batch) -> None:
    # Filled where it lies: handing a message to another's constructor copies all of its rewards.
    _fill_groups(request.groups, batch)
    request.variant = pb.Variant.ValueType(VARIANTS[batch.variant])
    request.scale = pb.Scale.ValueType(SCALES[batch.scale])
    request.k_policy = pb.KPolicy.ValueType(K_POLICIES[batch.k_policy])
    request.estimate_k.extend(batch.estimate_k)
    request.seed = batch.seed
    request.run_id = batch.run_id
    request.first_group = batch.first_group
    if isinstance(batch.k, np.ndarray):
        request.k.extend(batch.k.tolist())
    elif batch.k is not None:
        request.k.append(batch.k)


def _fill_groups(groups: pb.RewardGroups, batch: Batch | EstimateBatch) -> None:
    if batch.rewards.dtype == np.float32:
        packed.merge_packed(groups.f32, pb.FloatValues.VALUES_FIELD_NUMBER, batch.rewards, "<f4")
    else:
        packed.merge_packed(groups.f64, pb.DoubleValues.VALUES_FIELD_NUMBER, batch.rewards, "<f8")
    if isinstance(batch.group_sizes, int):
        groups.group_size = batch.group_sizes
    else:
        groups.group_sizes.sizes.extend(batch.group_sizes.tolist())


def _estimate_request(batch: EstimateBatch) -> pb.EstimateRequest:
    request = pb.EstimateRequest(k=batch.k)
    _fill_groups(request.groups, batch)
    return request


def _estimate_answer(batch: EstimateBatch, response: pb.EstimateResponse) -> tuple[MaxAtK, ...]:
    return _estimates(response.estimates, batch.k, batch.number_of_groups)


def _info_request(_: Info) -> pb.GetServerInfoRequest:
    return pb.GetServerInfoRequest()


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


_METHODS: dict[type[Work], Method] = {
    Batch: Method("Transform", transform_request, advantages),
    EstimateBatch: Method("Estimate", _estimate_request, _estimate_answer),
    Info: Method("GetServerInfo", _info_request, _info_answer),
}

__all__ = ["Method", "advantages", "method", "stream_request", "transform_request"]
