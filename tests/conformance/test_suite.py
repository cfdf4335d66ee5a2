"""The suite: it is what is generated, it holds every kind of case, and its numbers are those of the oracle."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from conformance import generator, judgement, oracle, suite
from conformance.rehearsed import CASES, conforming
from pkpo.v1 import reward_transform_pb2 as pb

TESTS = Path(__file__).parents[1]


def test_it_is_what_is_generated() -> None:
    """`python -m conformance generate` makes it anew."""
    assert generator.generated() == suite.PATH.read_bytes()


def test_it_is_generated_the_same_in_another_process() -> None:
    code = "import sys; from conformance import generator; sys.stdout.buffer.write(generator.generated())"
    made = subprocess.run([sys.executable, "-c", code], cwd=TESTS, capture_output=True, check=True)
    assert made.stdout == suite.PATH.read_bytes()


def test_it_is_small() -> None:
    assert suite.PATH.stat().st_size < 2**20


def test_every_case_is_whole() -> None:
    for name, case in CASES.items():
        call, expected = case.WhichOneof("call"), case.expected.WhichOneof("result")
        answered = "transform" if call == "encoded_transform" else call
        assert expected in (answered, "refusal"), name
        assert judgement.of_case(case, conforming(case)) == [], name


def transforms() -> list[pb.TransformRequest]:
    """The requests that are answered."""
    return [case.transform for case in CASES.values() if case.expected.HasField("transform")]


def test_every_variant_scale_type_shape_and_status_is_asked_for() -> None:
    asked = Counter(
        (request.variant, request.scale, request.groups.WhichOneof("rewards"), request.groups.WhichOneof("shape"))
        for request in transforms()
    )
    for variant in pb.Variant.values():
        for scale in (pb.SCALE_SUM, pb.SCALE_MEAN):
            for kind in ("f64", "f32"):
                for shape in ("group_size", "group_sizes"):
                    assert asked[variant, scale, kind, shape], (variant, scale, kind, shape)
    given = {status for case in CASES.values() for status in case.expected.transform.group_statuses}
    assert given == set(pb.GroupStatus.values())


def test_every_way_to_be_wrong_is_there() -> None:
    """What the contract and docs/design.md refuse: each rule by the field it is about."""
    fields = {field.split("[")[0] for case in CASES.values() for field in case.expected.refusal.fields}
    assert fields == {
        "groups.rewards",
        "groups.shape",
        "groups.group_size",
        "groups.group_sizes",
        "variant",
        "scale",
        "k",
        "k_policy",
        "estimate_k",
        "run_id",
        "message",
    }


def test_tolerances_are_tight() -> None:
    """Some roundings of a double, and more only where an offset common to a group stands beside small differences."""
    for name, case in CASES.items():
        assert case.tolerance < 1e-12, name


def test_a_float32_is_expected_to_the_bit() -> None:
    """No advantage that counts may be rounded in two ways within the tolerance."""
    for case in CASES.values():
        if case.expected.transform.HasField("f32") and case.HasField("transform"):
            values, start = list(case.expected.transform.f32.values), 0
            for group in oracle.rewards_of(case.transform.groups):
                advantages = values[start : start + len(group)]
                # The next float32 is at least this share of a value away.
                assert all(a == 0 or abs(a) * 2.0**-24 > case.tolerance * max(map(abs, advantages)) for a in advantages)
                start += len(group)


def test_a_split_batch_is_answered_like_the_whole() -> None:
    wholes = [name for name in CASES if name.startswith("bootstrap/") and name.endswith("/whole")]
    assert len(wholes) == 3
    for name in wholes:
        halves = [CASES[name.replace("whole", f"{half} half")] for half in ("first", "second")]
        together = [value for half in halves for value in half.expected.transform.f64.values]
        assert together == list(CASES[name].expected.transform.f64.values)


def test_given_vectors_are_in_it() -> None:
    held = [case for case in CASES.values() if case.name.startswith("vectors/")]
    groups = sum(len(case.transform.groups.group_sizes.sizes) for case in held)
    estimates = sum(len(case.estimate.groups.group_sizes.sizes) for case in held)
    assert (groups, estimates) == (638, 42)


def test_encodings_mean_what_their_cases_say() -> None:
    """protobuf reads each legal one as a request that is answered, and none of the others."""
    (usual,) = (case for case in CASES.values() if case.name == "encoding/usual")
    same = [case for case in CASES.values() if case.expected.transform == usual.expected.transform]
    assert len(same) > 8
    assert len({case.encoded_transform for case in same}) == len(same)
