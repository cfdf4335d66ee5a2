"""Wire to core to wire. Pure functions: no sockets, no clocks, no counters.

In, protobuf parses and the repeated fields are read as arrays. Out, an answer is written as the bytes of its message
around the bytes of its arrays, joined once: the same message, at the cost of a copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from google.protobuf.wrappers_pb2 import UInt64Value
from numpy.typing import NDArray

import pkpo_core
from pkpo import packed
from pkpo.packed import Part
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_core import (
    GroupStatus,
    InvalidArgument,
    KPolicy,
    MaxAtK,
    RewardGroups,
    Scale,
    Transformed,
    Variant,
    Violation,
)
from pkpo_core.errors import MOST_VIOLATIONS
from pkpo_server.refusal import InvalidRequest

Checkpoint = Callable[[], None]
_Message = TypeVar("_Message", bound=Message)

DEFAULT_VARIANT = Variant.SLOO_MINUS_ONE
RUN_ID = re.compile(r"[A-Za-z0-9._:/-]{0,128}")

VARIANTS: Mapping[int, Variant] = {
    pb.VARIANT_UNSPECIFIED: DEFAULT_VARIANT,
    **{pb.Variant.Value(f"VARIANT_{variant.name}"): variant for variant in Variant},
}
_VARIANT_NAMES = {number: variant.name for number, variant in VARIANTS.items()}
_SCALES: Mapping[int, Scale] = {
    pb.SCALE_UNSPECIFIED: Scale.SUM,
    **{pb.Scale.Value(f"SCALE_{scale.name}"): scale for scale in Scale},
}
_K_POLICIES: Mapping[int, KPolicy] = {
    pb.K_POLICY_UNSPECIFIED: KPolicy.STRICT,
    **{pb.KPolicy.Value(f"K_POLICY_{policy.name}"): policy for policy in KPolicy},
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold."""

    max_message_bytes: int
    max_rewards: int
    max_group_size: int
    max_groups: int
    max_estimate_k: int


# Frozen dataclasses take three times as long to make; those made for every request are not.
@dataclass(slots=True)
class Tally:
    """What an answer did, for metrics."""

    groups: int
    rewards: int
    zero_signal: int = 0
    clamped: int = 0
    too_small: int = 0
    # Of transforms whose variant uses k.
    sum_of_k: int = 0
    groups_with_k: int = 0
    # Of transforms, for the run's curve.
    transformed: RewardGroups | None = None


@dataclass(slots=True)
class Answer:
    """A message of the contract, as bytes in parts."""

    parts: tuple[Part, ...]
    tally: Tally

    def message(self) -> bytes:
        """The answer of a unary call."""
        return b"".join(self.parts)

    def stream_message(self, sequence: int) -> bytes:
        """The same as the answer to one message of a stream: a TransformStreamResponse."""
        number = packed.number_field(pb.TransformStreamResponse.SEQUENCE_FIELD_NUMBER, sequence)
        return b"".join((number, *packed.message_field(pb.TransformStreamResponse.RESPONSE_FIELD_NUMBER, self.parts)))


class Work(Protocol):
    """A decoded request that broke no rule of the wire."""

    def run(self, checkpoint: Checkpoint) -> Answer:
        """The answer. Calls `checkpoint` between slices of the work. Raises InvalidRequest."""


@dataclass(slots=True)
class TransformWork:
    """A TransformRequest."""

    groups: RewardGroups
    k: int | NDArray[np.uint32] | None
    variant: Variant
    scale: Scale
    k_policy: KPolicy
    estimate_k: tuple[int, ...]
    seed: int
    first_group: int

    def run(self, checkpoint: Checkpoint) -> Answer:
        try:
            transformed = pkpo_core.transform(
                self.groups,
                self.k,
                variant=self.variant,
                scale=self.scale,
                k_policy=self.k_policy,
                estimate_k=self.estimate_k,
                seed=self.seed,
                first_group=self.first_group,
                checkpoint=checkpoint,
            )
        except InvalidArgument as error:
            raise InvalidRequest(error.violations) from error
        statuses = transformed.group_statuses
        parts = _values(transformed.advantages)
        zero_signal = clamped = too_small = 0
        if np.count_nonzero(statuses):
            parts += packed.packed_field(pb.TransformResponse.GROUP_STATUSES_FIELD_NUMBER, statuses, "|u1")
            counts = np.bincount(statuses, minlength=len(GroupStatus))
            zero_signal = int(counts[GroupStatus.NO_SIGNAL])
            clamped = int(counts[GroupStatus.K_CLAMPED])
            too_small = int(counts[GroupStatus.TOO_SMALL])
        if transformed.estimates:
            parts += _estimates(pb.TransformResponse.ESTIMATES_FIELD_NUMBER, transformed.estimates)
        sum_of_k, groups_with_k = (0, 0) if pkpo_core.VARIANTS[self.variant].ignores_k else _summed(transformed)
        tally = Tally(
            statuses.size,
            self.groups.rewards.size,
            zero_signal,
            clamped,
            too_small,
            sum_of_k,
            groups_with_k,
            self.groups,
        )
        return Answer(tuple(parts), tally)


def _summed(transformed: Transformed) -> tuple[int, int]:
    """The sum of the k of the groups that have one, and their number."""
    k = transformed.k
    if isinstance(k, int):
        groups = transformed.group_statuses.size
        return k * groups, groups
    return int(k.sum()), int(np.count_nonzero(k))


@dataclass(slots=True)
class EstimateWork:
    """An EstimateRequest."""

    groups: RewardGroups
    k: tuple[int, ...]

    def run(self, checkpoint: Checkpoint) -> Answer:
        try:
            estimates = pkpo_core.estimate(self.groups, self.k, checkpoint=checkpoint)
        except InvalidArgument as error:
            raise InvalidRequest(error.violations) from error
        parts = _estimates(pb.EstimateResponse.ESTIMATES_FIELD_NUMBER, estimates)
        return Answer(tuple(parts), Tally(self.groups.number_of_groups, self.groups.rewards.size))


# --- in ---------------------------------------------------------------------------------------------------------------


def transform_request(raw: bytes) -> pb.TransformRequest:
    """The message of a Transform call. Raises InvalidRequest where the bytes are none."""
    return _parsed(pb.TransformRequest, raw)


def estimate_request(raw: bytes) -> pb.EstimateRequest:
    """The message of an Estimate call. Raises InvalidRequest where the bytes are none."""
    return _parsed(pb.EstimateRequest, raw)


def stream_request(raw: bytes) -> pb.TransformStreamRequest:
    """One message of a TransformStream call. Raises InvalidRequest where the bytes are none."""
    return _parsed(pb.TransformStreamRequest, raw)


def stream_sequence(raw: bytes) -> int | None:
    """The sequence number of a stream message whose request cannot be parsed; None where not even that can be read."""
    try:
        # It has the same number in the same place, and takes whatever else has the shape of fields.
        return int(UInt64Value.FromString(raw).value)
    except DecodeError:
        return None


def number_of_rewards(request: pb.TransformRequest | pb.EstimateRequest) -> int:
    """How many rewards a message has."""
    return _rewards_in(request.groups)


def _rewards_in(groups: pb.RewardGroups) -> int:
    return len(groups.f64.values) or len(groups.f32.values)


# Of one k each; more are refused, unless somebody has set more.
_MOST_ESTIMATES = 4096


def transform_visits(request: pb.TransformRequest) -> int:
    """About how many rewards are visited for an answer, once for each pass over them."""
    largest = _largest_group(request.groups)
    passes = largest.bit_length() + min(len(request.estimate_k), _MOST_ESTIMATES)
    if request.variant == pb.VARIANT_PASSK_BOOTSTRAP and request.k:
        # One random draw for each member of each subset, dearer than a visit. Any k may be sent.
        passes += 2 * min(int(packed.array(request.k, np.uint32).max()), largest)
    return number_of_rewards(request) * passes


def estimate_visits(request: pb.EstimateRequest) -> int:
    """About how many rewards are visited for an answer, once for each pass over them."""
    passes = _largest_group(request.groups).bit_length() + min(len(request.k), _MOST_ESTIMATES)
    return number_of_rewards(request) * passes


def transform_answer_bytes(request: pb.TransformRequest) -> int:
    """No less than the size of an answer, of a request that breaks no rule."""
    groups = request.groups
    rewards_bytes = 8 * len(groups.f64.values) + 4 * len(groups.f32.values)
    number = _number_of_groups(groups)
    return _answer_bytes(number, len(request.estimate_k), rewards_bytes + number)


def estimate_answer_bytes(request: pb.EstimateRequest) -> int:
    """No less than the size of an answer, of a request that breaks no rule."""
    return _answer_bytes(_number_of_groups(request.groups), len(request.k))


def _answer_bytes(number_of_groups: int, number_of_k: int, advantages_bytes: int = 0) -> int:
    """Of advantages and statuses, of an estimate and its standard error for each group and k, and of tags."""
    return advantages_bytes + number_of_k * (2 * 8 * number_of_groups + 32) + 64


def _number_of_groups(groups: pb.RewardGroups) -> int:
    return len(groups.group_sizes.sizes) or _rewards_in(groups) // max(1, groups.group_size)


def _largest_group(groups: pb.RewardGroups) -> int:
    sizes = groups.group_sizes.sizes
    largest = int(packed.array(sizes, np.uint32).max()) if sizes else groups.group_size
    return min(largest, _rewards_in(groups))


def transform_work(request: pb.TransformRequest, limits: Limits) -> TransformWork:
    """The work a request asks for, once it breaks no rule of the wire and no limit; core checks the rest.

    Raises:
        InvalidRequest: names every offender found, up to a bound.
    """
    found: list[Violation] = []
    variant = VARIANTS.get(request.variant)
    scale = _SCALES.get(request.scale)
    k_policy = _K_POLICIES.get(request.k_policy)
    if variant is None or scale is None or k_policy is None:
        found += _unknown_members(request)
    estimate_k = _estimate_k("estimate_k", request.estimate_k, limits, found)
    if not legal_run_id(request.run_id):
        found.append(_run_id_violation(request.run_id))
    groups = _reward_groups(request, limits, found)
    if groups is not None:
        number = groups.number_of_groups
        size = _answer_bytes(number, len(estimate_k), groups.rewards.nbytes + number)
        _check_answer("estimate_k" if estimate_k else "groups", size, limits, found)
    if found or groups is None or variant is None or scale is None or k_policy is None:
        raise InvalidRequest(found)
    k: int | NDArray[np.uint32] | None = None
    if len(request.k) == 1:
        k = request.k[0]
    elif request.k:
        k = packed.array(request.k, np.uint32)
    return TransformWork(groups, k, variant, scale, k_policy, estimate_k, request.seed, request.first_group)


def estimate_work(request: pb.EstimateRequest, limits: Limits) -> EstimateWork:
    """The work a request asks for, once it breaks no rule of the wire and no limit; core checks the rest.

    Raises:
        InvalidRequest: names every offender found, up to a bound.
    """
    found: list[Violation] = []
    k = _estimate_k("k", request.k, limits, found)
    groups = _reward_groups(request, limits, found)
    if groups is not None:
        _check_answer("k", _answer_bytes(groups.number_of_groups, len(k)), limits, found)
    if found or groups is None:
        raise InvalidRequest(found)
    return EstimateWork(groups, k)


def variant_name(number: int) -> str | None:
    """The name of a wire variant, the default's for 0; None for a number that is no variant."""
    return _VARIANT_NAMES.get(number)


def legal_run_id(run_id: str) -> bool:
    """Whether a run_id keeps to the contract."""
    return not run_id or RUN_ID.fullmatch(run_id) is not None


def _parsed(message: type[_Message], raw: bytes) -> _Message:
    """The message. Raises InvalidRequest where the bytes are none, MemoryError where there is not enough for it."""
    try:
        return message.FromString(raw)
    except DecodeError as error:
        # It says no more where there is no memory for the message: then there is none for as much either.
        bytearray(2 * len(raw))
        name = message.DESCRIPTOR.full_name
        raise InvalidRequest([Violation("message", f"cannot be read: its {len(raw)} bytes are no {name}")]) from error


def _reward_groups(
    request: pb.TransformRequest | pb.EstimateRequest, limits: Limits, found: list[Violation]
) -> RewardGroups | None:
    message = request.groups
    kind, shape = message.WhichOneof("rewards"), message.WhichOneof("shape")
    broken: list[Violation] = []
    _check_groups(message, kind, shape, limits, broken)
    if not broken:
        rewards = (
            packed.array(message.f64.values, np.float64)
            if kind == "f64"
            else packed.array(message.f32.values, np.float32)
        )
        sizes: int | NDArray[Any] = message.group_size
        if shape == "group_sizes":
            sizes = packed.array(message.group_sizes.sizes, np.uint32)
            broken += (
                Violation(
                    f"groups.group_sizes[{i}]",
                    f"is {sizes[i]}; must be at most max_group_size = {limits.max_group_size}",
                )
                for i in islice(np.flatnonzero(sizes > limits.max_group_size), MOST_VIOLATIONS)
            )
        if not broken:
            try:
                return RewardGroups(rewards, sizes)
            except InvalidArgument as error:
                broken += error.violations
    found += broken
    return None


def _check_groups(
    message: pb.RewardGroups, kind: str | None, shape: str | None, limits: Limits, found: list[Violation]
) -> None:
    def offends(field: str, description: str) -> None:
        found.append(Violation(field, description))

    rewards = 0
    if kind is None:
        offends("groups.rewards", "is absent; must be f64 or f32")
    else:
        rewards = len(message.f64.values if kind == "f64" else message.f32.values)
        if rewards > limits.max_rewards:
            offends("groups.rewards", f"holds {rewards}; must hold at most max_rewards = {limits.max_rewards}")
    if shape is None:
        offends("groups.shape", "is absent; must be group_size or group_sizes")
    elif shape == "group_size":
        size = message.group_size
        if size > limits.max_group_size:
            offends("groups.group_size", f"is {size}; must be at most max_group_size = {limits.max_group_size}")
        elif size and rewards // size > limits.max_groups:
            offends(
                "groups.group_size",
                f"is {size}, which makes {rewards // size} groups; must make at most max_groups = {limits.max_groups}",
            )
    elif len(message.group_sizes.sizes) > limits.max_groups:
        offends(
            "groups.group_sizes",
            f"holds {len(message.group_sizes.sizes)}; must hold at most max_groups = {limits.max_groups}",
        )


def _unknown_members(request: pb.TransformRequest) -> Iterator[Violation]:
    for name, number, members, enum in (
        ("variant", request.variant, VARIANTS, pb.Variant),
        ("scale", request.scale, _SCALES, pb.Scale),
        ("k_policy", request.k_policy, _K_POLICIES, pb.KPolicy),
    ):
        if number not in members:
            yield Violation(name, f"is {number}, which is no {enum.DESCRIPTOR.name}; must be 0 to {max(members)}")


def _estimate_k(name: str, values: Any, limits: Limits, found: list[Violation]) -> tuple[int, ...]:
    if not values:
        return ()
    if len(values) > limits.max_estimate_k:
        found.append(
            Violation(name, f"holds {len(values)}; must hold at most max_estimate_k = {limits.max_estimate_k}")
        )
        return ()
    estimate_k = tuple(values)
    zeros = (Violation(f"{name}[{i}]", "is 0; must be at least 1") for i, k in enumerate(estimate_k) if k == 0)
    found += islice(zeros, MOST_VIOLATIONS)
    return estimate_k


def _run_id_violation(run_id: str) -> Violation:
    return Violation(
        "run_id", f"is {run_id[:40]!a}, {len(run_id)} long; must be up to 128 of letters, digits and . _ : / -"
    )


def _check_answer(name: str, size: int, limits: Limits, found: list[Violation]) -> None:
    if size > limits.max_message_bytes:
        found.append(
            Violation(
                name,
                f"asks for an answer of {size} bytes; must be at most max_message_bytes = {limits.max_message_bytes}:"
                " send fewer groups",
            )
        )


# --- out --------------------------------------------------------------------------------------------------------------


def server_info(version: str, limits: Limits) -> bytes:
    """The answer to GetServerInfo."""
    numbers = {variant: number for number, variant in VARIANTS.items() if number}
    return pb.GetServerInfoResponse(
        version=version,
        variants=[
            pb.VariantInfo(
                variant=numbers[info.variant],  # type: ignore[arg-type]
                source=info.source,
                k_range=info.k_range,
                needs_seed=info.needs_seed,
            )
            for info in pkpo_core.VARIANTS.values()
        ],
        limits=pb.Limits(
            max_message_bytes=limits.max_message_bytes,
            max_rewards=limits.max_rewards,
            max_group_size=limits.max_group_size,
            max_groups=limits.max_groups,
            max_estimate_k=limits.max_estimate_k,
        ),
        default_variant=numbers[DEFAULT_VARIANT],  # type: ignore[arg-type]
    ).SerializeToString()


def stream_error(sequence: int, error: pb.TransformError) -> bytes:
    """The answer to one message of a stream that is not advantages."""
    return pb.TransformStreamResponse(sequence=sequence, error=error).SerializeToString()


def _values(advantages: NDArray[Any]) -> list[Part]:
    if advantages.dtype == np.float32:
        values = packed.packed_field(pb.FloatValues.VALUES_FIELD_NUMBER, advantages, "<f4")
        return packed.message_field(pb.TransformResponse.F32_FIELD_NUMBER, values)
    values = packed.packed_field(pb.DoubleValues.VALUES_FIELD_NUMBER, advantages, "<f8")
    return packed.message_field(pb.TransformResponse.F64_FIELD_NUMBER, values)


def _estimates(number: int, estimates: tuple[MaxAtK, ...]) -> Iterator[Part]:
    for estimate in estimates:
        yield from packed.message_field(
            number,
            (
                packed.number_field(pb.MaxAtK.K_FIELD_NUMBER, estimate.k),
                *packed.packed_field(pb.MaxAtK.VALUES_FIELD_NUMBER, estimate.values, "<f8"),
                *packed.packed_field(pb.MaxAtK.STANDARD_ERRORS_FIELD_NUMBER, estimate.standard_errors, "<f8"),
            ),
        )
