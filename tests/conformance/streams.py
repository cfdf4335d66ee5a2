"""Cases of TransformStream: every message answered once, under its own number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conformance import oracle
from conformance.answers import LARGEST_WORD, VARIANTS, draws, sample
from conformance.conformance_pb2 import Answers, Case, Messages, Outcome
from conformance.judgement import INVALID_ARGUMENT
from conformance.refusals import bad_transforms
from conformance.requests import groups, request, reward_groups
from pkpo.v1 import reward_transform_pb2 as pb

Message = tuple[int, pb.TransformRequest, Sequence[str]]  # sequence, request, and the fields that offend


def streams() -> Iterator[Case]:
    """All of them."""
    good = [_good(i) for i in range(6)]
    bad, fields = bad_transforms()["k over n"]
    named = [(sequence, request, ()) for sequence, request in enumerate(good)]
    yield _stream("no messages", [])
    yield _stream("one message", [(7, good[0], ())])
    yield _stream("in order", named)
    yield _stream(
        "sequence numbers in no order", [(s, good[i], ()) for i, s in enumerate((5, 0, 2**40, 3, LARGEST_WORD))]
    )
    yield _stream("a sequence number twice", [(4, good[0], ()), (4, good[1], ()), (9, good[2], ())])
    yield _stream("the same message twice", [(1, good[0], ()), (1, good[0], ())])
    yield _stream("all of sequence 0", [(0, each, ()) for each in good[:3]])
    yield _stream("a bad message among good ones", [*named[:2], (2, bad, fields), *named[3:]])
    yield _stream("the first message bad", [(0, bad, fields), *named[1:]])
    yield _stream("nothing but bad messages", [(i, bad, fields) for i in range(3)])
    yield _stream("good and bad under one number", [(8, good[0], ()), (8, bad, fields), (8, good[1], ())])
    yield _stream("every way to be bad", [(i, *each) for i, each in enumerate(bad_transforms().values())])
    yield _stream("a message without a request", [(3, pb.TransformRequest(), ["groups.rewards", "groups.shape"])])
    yield _stream("every variant", [(variant, _of_variant(variant), ()) for variant in VARIANTS])
    yield _stream("float rewards among double ones", [(i, _typed(i), ()) for i in range(4)])
    yield _stream("large and small", [(i, _sized(700 if i % 4 == 0 else 4, i), ()) for i in range(8)])
    yield _stream("100 messages", [(1000 - i, request(groups=groups(size=2), seed=i), ()) for i in range(100)])


def _stream(name: str, messages: Sequence[Message]) -> Case:
    case = Case(name=f"stream/{name}", stream=Messages(), expected=Outcome(stream=Answers()))
    for sequence, asked, fields in messages:
        case.stream.requests.add(sequence=sequence, request=asked)
        answer = case.expected.stream.responses.add(sequence=sequence)
        if fields:
            violations = [pb.FieldViolation(field=field) for field in fields]
            answer.error.MergeFrom(pb.TransformError(code=INVALID_ARGUMENT, violations=violations))
        else:
            response, tolerance = oracle.transform_response(asked)
            answer.response.CopyFrom(response)
            case.tolerance = max(case.tolerance, tolerance)
    return case


def _good(i: int) -> pb.TransformRequest:
    rewards = [sample(0, "continuous", 4, draws("stream", i, j)) for j in range(2)]
    return pb.TransformRequest(groups=reward_groups(rewards, uniform=True), k=[1 + i % 4], estimate_k=[1, 4])


def _of_variant(variant: int) -> pb.TransformRequest:
    rewards = sample(variant, "continuous", 4, draws("stream of", variant))
    k = 4 if variant == pb.VARIANT_TZSM else 2
    return pb.TransformRequest(groups=reward_groups([rewards]), variant=variant, k=[k], scale=pb.SCALE_MEAN, seed=3)  # type: ignore[arg-type]


def _typed(i: int) -> pb.TransformRequest:
    return pb.TransformRequest(groups=reward_groups([[0.5, 0.25, 1.0 + i]], "f32" if i % 2 else "f64"), k=[2])


def _sized(n: int, i: int) -> pb.TransformRequest:
    rewards = sample(0, "binary", n, draws("sized", i))
    return pb.TransformRequest(groups=reward_groups([rewards]), k=[3])
