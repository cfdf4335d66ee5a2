"""What must be true of every outcome, and how outcomes are told apart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from conformance import judgement, oracle
from conformance.conformance_pb2 import Case
from conformance.conformance_pb2 import Outcome as Expected
from fuzz import contract
from fuzz.service import ESTIMATE, INFO, STREAM, TRANSFORM, Outcome
from pkpo.v1 import reward_transform_pb2 as pb

MOST_VIOLATIONS = 8
LONGEST_MESSAGE = 120
LONGEST_DETAILS = 1000
# Exact arithmetic is dear: it is for requests of at most so many rewards, none beyond the doubles' middle, where
# squares neither overflow nor vanish.
MOST_EXACT = 32
LARGEST_EXACT, SMALLEST_EXACT = 1e75, 1e-75
_FIELD = re.compile(r"message|request|groups|groups\.(rewards|shape|group_sizes?)(\[\d+\])?|variant|scale|k_policy|seed"
                    r"|run_id|first_group|(k|estimate_k)(\[\d+\])?")  # fmt: skip
_NUMBER = re.compile(r"-?(\d[\d.e+-]*|inf|nan)|'.*'")

Behaviour = tuple[Any, ...]


def differences(
    method: str, messages: Sequence[bytes], outcome: Outcome, limits: Any, exact: Callable[[], bool]
) -> Iterator[str]:
    """What is wrong with an outcome, in words; nothing where all is well.

    Args:
        method: that was called.
        messages: that were sent.
        outcome: what became of it.
        limits: of the server.
        exact: asked where numbers can be compared with exact arithmetic: whether to.
    """
    for fault in outcome.faults:
        yield f"the log says: {fault}"
    if outcome.code not in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT):
        yield f"ends with {outcome.code.name}: {outcome.message}"
        return
    if outcome.code is grpc.StatusCode.INVALID_ARGUMENT:
        yield from _of_refusal(outcome)
    if method == STREAM:
        yield from _of_stream(messages, outcome, limits, exact)
    elif method in (TRANSFORM, ESTIMATE):
        yield from _of_unary(method, messages[0], outcome, limits, exact)
    elif outcome.code is not grpc.StatusCode.OK:
        yield f"{INFO} is refused"


def behaviour(method: str, messages: Sequence[bytes], outcome: Outcome) -> Behaviour:
    """What an outcome is like: inputs of one behaviour are alike enough that one of them is kept."""
    if method == STREAM:
        answers = [pb.TransformStreamResponse.FromString(answer) for answer in outcome.answers]
        said = frozenset(_NUMBER.sub("#", answer.error.message) for answer in answers if answer.HasField("error"))
        return method, outcome.code, len(messages), len(answers), said
    if outcome.code is not grpc.StatusCode.OK:
        status = status_pb2.Status.FromString(outcome.details)
        return method, outcome.code, tuple(_NUMBER.sub("#", text) for _, text in _violations(status))
    if method == ESTIMATE:
        asked = pb.EstimateRequest.FromString(messages[0])
        return method, asked.groups.WhichOneof("rewards"), asked.groups.WhichOneof("shape"), len(asked.k).bit_length()
    if method == INFO:
        return (method,)
    request = pb.TransformRequest.FromString(messages[0])
    response = pb.TransformResponse.FromString(outcome.answers[0])
    rewards = max(len(response.f64.values), len(response.f32.values))
    return (
        *(method, request.variant, request.scale, request.k_policy, request.groups.WhichOneof("rewards")),
        *(request.groups.WhichOneof("shape"), frozenset(response.group_statuses), rewards.bit_length()),
        *(len(request.k).bit_length(), len(request.estimate_k).bit_length(), bool(request.run_id)),
    )


def _of_refusal(outcome: Outcome) -> Iterator[str]:
    if not outcome.message or len(outcome.message) > LONGEST_MESSAGE or not outcome.message.isascii():
        yield f"says {outcome.message!r}; must be up to {LONGEST_MESSAGE} of ASCII"
    if len(outcome.details) > LONGEST_DETAILS:
        yield f"has {len(outcome.details)} bytes of details; must have at most {LONGEST_DETAILS}"
    status = status_pb2.Status.FromString(outcome.details)
    found = [*_violations(status)]
    if status.code != judgement.INVALID_ARGUMENT or not 1 <= len(found) <= MOST_VIOLATIONS:
        yield f"has details of code {status.code} with {len(found)} violations"
    yield from (f"names {field!r}, which is no field" for field, _ in found if not _FIELD.fullmatch(field))


def _violations(status: status_pb2.Status) -> Iterator[tuple[str, str]]:
    bad_request = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad_request):
            for violation in bad_request.field_violations:
                yield violation.field, violation.description


def _of_unary(method: str, raw: bytes, outcome: Outcome, limits: Any, exact: Callable[[], bool]) -> Iterator[str]:
    kind = pb.TransformRequest if method == TRANSFORM else pb.EstimateRequest
    answered = outcome.code is grpc.StatusCode.OK
    try:
        request: Any = kind.FromString(raw)
    except DecodeError:
        if answered:
            yield "is answered; must be refused: its bytes are no message"
        return
    taken = (
        contract.takes_transform(request, limits) if method == TRANSFORM else contract.takes_estimate(request, limits)
    )
    if taken is not None and taken != answered:
        yield f"is {'answered' if answered else 'refused: ' + outcome.message}; must not be"
    elif answered and method == TRANSFORM:
        yield from _of_transform(request, pb.TransformResponse.FromString(outcome.answers[0]), exact)
    elif answered:
        response = pb.EstimateResponse.FromString(outcome.answers[0])
        yield from _of_estimates(request.groups, request.k, response.estimates)
        if _can_be_exact(request.groups) and exact():
            expected, tolerance = oracle.estimate_response(request)
            case = Case(estimate=request, expected=Expected(estimate=expected), tolerance=tolerance)
            yield from judgement.of_case(case, Expected(estimate=response))


def _of_stream(messages: Sequence[bytes], outcome: Outcome, limits: Any, exact: Callable[[], bool]) -> Iterator[str]:
    asked: dict[int, list[pb.TransformStreamRequest]] = {}
    whole = True
    for raw in messages:
        try:
            message = pb.TransformStreamRequest.FromString(raw)
        except DecodeError:
            whole = False  # it may be answered under its number, or end the stream
            continue
        asked.setdefault(message.sequence, []).append(message)
    if whole and outcome.code is not grpc.StatusCode.OK:
        yield f"ends with {outcome.code.name}, though every message is one"
    if whole and len(outcome.answers) != len(messages):
        yield f"has {len(outcome.answers)} answers to {len(messages)} messages"
    if len(outcome.answers) > len(messages):
        yield f"has {len(outcome.answers)} answers to {len(messages)} messages"
    for raw in outcome.answers:
        answer = pb.TransformStreamResponse.FromString(raw)
        if answer.HasField("error"):
            if answer.error.code != judgement.INVALID_ARGUMENT or not answer.error.violations:
                yield f"sequence {answer.sequence} is refused with {answer.error}"
            asking = asked.get(answer.sequence, ())
            if whole and len(asking) == 1 and contract.takes_transform(asking[0].request, limits):
                yield f"refuses sequence {answer.sequence}, which is to be answered: {answer.error.message}"
        elif answer.sequence not in asked:
            yield f"answers sequence {answer.sequence}, though there is none"
        elif len(asked[answer.sequence]) == 1:  # of several it cannot be told which is answered
            (message,) = asked[answer.sequence]
            taken = contract.takes_transform(message.request, limits)
            if not message.HasField("request") or taken is False:
                yield f"answers sequence {answer.sequence}; must refuse it"
            else:
                yield from _of_transform(message.request, answer.response, exact)


def _of_transform(
    request: pb.TransformRequest, response: pb.TransformResponse, exact: Callable[[], bool]
) -> Iterator[str]:
    kind = request.groups.WhichOneof("rewards")
    if response.WhichOneof("advantages") != kind:
        yield f"has advantages of {response.WhichOneof('advantages')}; must be {kind}, as the rewards are"
        return
    rewards, advantages = (
        (each.f32 if kind == "f32" else each.f64).values
        for each in (request.groups, response)  # type: ignore[attr-defined]
    )
    if len(rewards) != len(advantages):
        yield f"has {len(advantages)} advantages of {len(rewards)} rewards"
    # Sums of what is finite are finite, unless they overflow, which is no advantage either.
    if not all(map(math.isfinite, advantages)):
        yield "has an advantage that is no number"
    statuses = response.group_statuses
    if statuses and (len(statuses) != _number_of_groups(request.groups) or not any(statuses)):
        yield f"has {len(statuses)} statuses of {_number_of_groups(request.groups)} groups"
    yield from _of_estimates(request.groups, request.estimate_k, response.estimates)
    if _can_be_exact(request.groups) and exact():
        try:
            expected, tolerance = oracle.transform_response(request)
        except (ValueError, ArithmeticError):
            # A float32 that may be rounded in two ways or is none, or advantages of 0 beside which nothing is small.
            return
        case = Case(transform=request, expected=Expected(transform=expected), tolerance=tolerance)
        yield from judgement.of_case(case, Expected(transform=response))


def _of_estimates(groups: pb.RewardGroups, ks: Sequence[int], estimates: Sequence[pb.MaxAtK]) -> Iterator[str]:
    if list(ks) != [estimate.k for estimate in estimates]:
        yield f"has estimates of other k than {list(ks)}"
        return
    sizes = list(groups.group_sizes.sizes) or [groups.group_size] * _number_of_groups(groups)
    for estimate in estimates:
        for i, n in enumerate(sizes):
            if math.isnan(estimate.values[i]) != (estimate.k > n) or math.isinf(estimate.values[i]):
                yield f"has the estimate {estimate.values[i]} for k = {estimate.k} of n = {n}"
            error = estimate.standard_errors[i]
            if math.isnan(error) != (estimate.k >= n) or math.isinf(error) or error < 0:
                yield f"has the standard error {error} for k = {estimate.k} of n = {n}"


def _number_of_groups(groups: pb.RewardGroups) -> int:
    if groups.WhichOneof("shape") == "group_sizes":
        return len(groups.group_sizes.sizes)
    return max(len(groups.f64.values), len(groups.f32.values)) // groups.group_size


def _can_be_exact(groups: pb.RewardGroups) -> bool:
    rewards = groups.f32.values if groups.WhichOneof("rewards") == "f32" else groups.f64.values
    return len(rewards) <= MOST_EXACT and all(
        reward == 0 or SMALLEST_EXACT <= abs(reward) <= LARGEST_EXACT for reward in rewards
    )
