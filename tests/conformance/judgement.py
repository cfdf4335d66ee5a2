"""Where an outcome differs from the expected, in words. Empty where it conforms."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import grpc

from conformance.conformance_pb2 import Answers, Case, Messages, Outcome, Refusal, Results, Suite
from pkpo.v1 import reward_transform_pb2 as pb

# So many offenders are all named; of more at least one is.
NAMED_ALL = 4
MOST_NAMED = 8
INVALID_ARGUMENT: int = grpc.StatusCode.INVALID_ARGUMENT.value[0]
INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]


def of_client(suite: Suite, results: Results) -> list[str]:
    """What differs in what a client got: each begins with the name of its case."""
    cases = {case.name: case for case in suite.cases}
    said = [result.name for result in results.results]
    found = [f"{name}: is not in the suite" for name in dict.fromkeys(said) if name not in cases]
    found += [f"{name}: has {said.count(name)} results" for name in cases if said.count(name) > 1]
    got = {result.name: result.outcome for result in results.results}
    for name, case in cases.items():
        if name in got:
            found += (f"{name}: {difference}" for difference in of_case(case, got[name]))
        elif needed(case):
            found.append(f"{name}: has no result")
    return found


def refused(fields: Sequence[str]) -> Outcome:
    """The outcome that names these offenders."""
    return Outcome(refusal=Refusal(code=INVALID_ARGUMENT, fields=fields))


def needed(case: Case) -> bool:
    """Whether a client may not leave a case out: few can send bytes as they are."""
    return case.WhichOneof("call") != "encoded_transform"


def of_case(case: Case, outcome: Outcome) -> list[str]:
    """What differs in the outcome of one case."""
    expected, got = case.expected.WhichOneof("result"), outcome.WhichOneof("result")
    if got != expected:
        return [f"is {_described(outcome)}; must be {_described(case.expected)}"]
    if expected == "refusal":
        return [*_of_refusal(case.expected.refusal, outcome.refusal)]
    if expected == "stream":
        return [*_of_stream(case.stream, case.expected.stream, outcome.stream, case.tolerance)]
    if expected == "estimate":
        wanted, measured = case.expected.estimate.estimates, outcome.estimate.estimates
        return [*_of_estimates(case.estimate.groups, wanted, measured, case.tolerance)]
    request = case.transform
    if case.WhichOneof("call") == "encoded_transform":
        request = pb.TransformRequest.FromString(case.encoded_transform)
    return [*_of_transform(request.groups, case.expected.transform, outcome.transform, case.tolerance)]


def _described(outcome: Outcome) -> str:
    kind = outcome.WhichOneof("result")
    if kind == "refusal":
        return f"refused with {code_name(outcome.refusal.code)} {', '.join(outcome.refusal.fields)}".strip()
    return {None: "absent", "transform": "advantages", "estimate": "estimates", "stream": "a stream's answers"}[kind]


def code_name(code: int) -> str:
    """The name of a gRPC status code."""
    return next((status.name for status in grpc.StatusCode if status.value[0] == code), f"status {code}")


# --- refusals ---------------------------------------------------------------------------------------------------------


def _of_refusal(expected: Refusal, got: Refusal) -> Iterator[str]:
    # Where gRPC's own code parses messages, none but it can refuse what is no message.
    if expected.fields == ["message"] and got.code == INTERNAL and not got.fields:
        return
    if got.code != expected.code:
        yield f"is refused with {code_name(got.code)}; must be {code_name(expected.code)}"
        return
    yield from _of_fields(expected.fields, got.fields)


def _of_fields(expected: Sequence[str], got: Sequence[str]) -> Iterator[str]:
    for field in dict.fromkeys(got):
        if field not in expected:
            yield f"names the field {field!r}; must name {_listed(expected)}"
        if list(got).count(field) > 1:
            yield f"names the field {field!r} {list(got).count(field)} times"
    if len(expected) <= NAMED_ALL:
        for field in expected:
            if field not in got:
                yield f"does not name the field {field!r}"
    elif not got:
        yield f"names no field; must name some of {_listed(expected)}"
    if len(got) > MOST_NAMED:
        yield f"names {len(got)} fields; must name at most {MOST_NAMED}"


def _listed(fields: Sequence[str]) -> str:
    return ", ".join([*map(repr, fields[:NAMED_ALL]), "..."] if len(fields) > NAMED_ALL else map(repr, fields))


# --- streams ----------------------------------------------------------------------------------------------------------


def _of_stream(messages: Messages, expected: Answers, got: Answers, tolerance: float) -> Iterator[str]:
    """Answers belong to messages by sequence number; those that share one may come in either order."""
    groups = [message.request.groups for message in messages.requests]
    wanted: dict[int, list[tuple[pb.RewardGroups, pb.TransformStreamResponse]]] = defaultdict(list)
    for each, response in zip(groups, expected.responses, strict=True):
        wanted[response.sequence].append((each, response))
    for answer in got.responses:
        candidates = wanted.get(answer.sequence)
        if not candidates:
            once = "again" if answer.sequence in wanted else "though there is none"
            yield f"answers sequence {answer.sequence} {once}"
            continue
        differences = [[*_of_answer(*candidate, answer, tolerance)] for candidate in candidates]
        nearest = min(range(len(candidates)), key=lambda i: len(differences[i]))
        del candidates[nearest]
        yield from (f"sequence {answer.sequence}: {difference}" for difference in differences[nearest])
    for sequence, candidates in wanted.items():
        if candidates:
            yield f"does not answer sequence {sequence}" + (f", {len(candidates)} times" if len(candidates) > 1 else "")


def _of_answer(
    groups: pb.RewardGroups,
    expected: pb.TransformStreamResponse,
    got: pb.TransformStreamResponse,
    tolerance: float,
) -> Iterator[str]:
    if expected.WhichOneof("result") != got.WhichOneof("result"):
        said = {"response": "answered", "error": f"refused with {code_name(got.error.code)}", None: "empty"}
        yield f"is {said[got.WhichOneof('result')]}; must be {'refused' if expected.HasField('error') else 'answered'}"
    elif expected.HasField("response"):
        yield from _of_transform(groups, expected.response, got.response, tolerance)
    elif expected.error.code != got.error.code:
        yield f"is refused with {code_name(got.error.code)}; must be {code_name(expected.error.code)}"
    else:
        yield from _of_fields(*([v.field for v in error.violations] for error in (expected.error, got.error)))


# --- numbers ----------------------------------------------------------------------------------------------------------


def _of_transform(
    groups: pb.RewardGroups, expected: pb.TransformResponse, got: pb.TransformResponse, tolerance: float
) -> Iterator[str]:
    kind, measured_kind = expected.WhichOneof("advantages"), got.WhichOneof("advantages")
    if kind != measured_kind:
        yield f"has advantages of {measured_kind}; must be {kind}, as the rewards are"
        return
    wanted, measured = ((answer.f32 if kind == "f32" else answer.f64).values for answer in (expected, got))
    yield from _of_advantages(_sizes(groups), wanted, measured, tolerance)
    yield from _of_statuses(expected.group_statuses, got.group_statuses)
    yield from _of_estimates(groups, expected.estimates, got.estimates, tolerance)


def _of_advantages(
    sizes: Sequence[int], expected: Sequence[float], got: Sequence[float], tolerance: float
) -> Iterator[str]:
    if len(got) != len(expected):
        yield f"has {len(got)} advantages; must have {len(expected)}"
        return
    start = 0
    for group, n in enumerate(sizes):
        wanted = expected[start : start + n]
        allowed = tolerance * max(map(abs, wanted))
        for i, exact in enumerate(wanted):
            if not _near(got[start + i], exact, allowed):
                yield (
                    f"advantage {i} of group {group} (n = {n}) is {got[start + i]!r};"
                    f" must be {exact!r}, {_give_or_take(allowed)}"
                )
                break
        start += n


def _of_statuses(expected: Sequence[int], got: Sequence[int]) -> Iterator[str]:
    """None at all says that all are fine, and so does a list that says it of each."""
    number = max(len(expected), len(got))
    if len(got) not in (0, number) or len(expected) not in (0, number):
        yield f"has {len(got)} group_statuses; must have {len(expected)}"
        return
    for group in range(number):
        wanted, measured = (statuses[group] if statuses else 0 for statuses in (expected, got))
        if wanted != measured:
            yield f"group_statuses[{group}] is {_status_name(measured)}; must be {_status_name(wanted)}"


def _status_name(status: int) -> str:
    return pb.GroupStatus.Name(status) if status in pb.GroupStatus.values() else str(status)  # type: ignore[arg-type]


def _of_estimates(
    groups: pb.RewardGroups, expected: Sequence[pb.MaxAtK], got: Sequence[pb.MaxAtK], tolerance: float
) -> Iterator[str]:
    if [each.k for each in got] != [each.k for each in expected]:
        yield f"has estimates for k = {[each.k for each in got]}; must be {[each.k for each in expected]}"
        return
    largest = [*_largest_rewards(groups)]
    for wanted, measured in zip(expected, got, strict=True):
        errors = wanted.standard_errors
        for what, exact, values, scales in (
            ("estimate", wanted.values, measured.values, largest),
            ("standard error", errors, measured.standard_errors, [abs(error) for error in errors]),
        ):
            if len(values) != len(exact):
                yield f"k = {wanted.k}: has {len(values)} {what}s; must have {len(exact)}"
                continue
            for group, scale in enumerate(scales):
                if not _near(values[group], exact[group], tolerance * scale):
                    yield (
                        f"k = {wanted.k}: {what} of group {group} is {values[group]!r};"
                        f" must be {exact[group]!r}, {_give_or_take(tolerance * scale)}"
                    )
                    break


def _near(value: float, exact: float, allowed: float) -> bool:
    return math.isnan(value) if math.isnan(exact) else abs(value - exact) <= allowed


def _give_or_take(allowed: float) -> str:
    return f"give or take {allowed:.2g}" if allowed > 0 else "exactly"


def _sizes(groups: pb.RewardGroups) -> Sequence[int]:
    if groups.WhichOneof("shape") == "group_sizes":
        return groups.group_sizes.sizes
    return [groups.group_size] * (len(_rewards(groups)) // groups.group_size)


def _rewards(groups: pb.RewardGroups) -> Sequence[float]:
    return (groups.f32 if groups.WhichOneof("rewards") == "f32" else groups.f64).values


def _largest_rewards(groups: pb.RewardGroups) -> Iterable[float]:
    rewards, start = _rewards(groups), 0
    for n in _sizes(groups):
        yield max(map(abs, rewards[start : start + n]))
        start += n
