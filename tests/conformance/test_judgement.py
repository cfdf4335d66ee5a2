"""Differences are seen, and are named by case, group, value and bound; what conforms is let pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance import judgement, server_info, suite
from conformance.__main__ import main
from conformance.conformance_pb2 import Case, Outcome, Result, Results
from conformance.rehearsed import CASES, SUITE, conforming, rehearsed_info
from pkpo.v1 import reward_transform_pb2 as pb

UNIFORM = "transform/sloo_minus_one/f64/sum/uniform"
ESTIMATES = "estimate_k/ragged/f64"


def perfect() -> Results:
    """What a client gets that does everything right, and cannot send bytes."""
    return Results(
        results=[Result(name=case.name, outcome=conforming(case)) for case in SUITE.cases if judgement.needed(case)]
    )


def changed(name: str, change: Callable[[Any], None]) -> tuple[Case, Outcome]:
    outcome = conforming(CASES[name])
    change(outcome)
    return CASES[name], outcome


def test_a_perfect_client_conforms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results"
    path.write_bytes(perfect().SerializeToString())
    assert main(["judge", str(suite.PATH), str(path)]) == 0
    number = sum(map(judgement.needed, SUITE.cases))
    assert capsys.readouterr().out == f"{number} of {number} cases conform\n"


def test_results_that_are_missing_doubled_or_of_no_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = perfect()
    missing, doubled = results.results.pop(0).name, results.results[5]
    results.results.add().CopyFrom(doubled)
    results.results.add(name="of no case")
    path = tmp_path / "results"
    path.write_bytes(results.SerializeToString())
    assert main(["judge", str(suite.PATH), str(path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "of no case: is not in the suite",
        f"{doubled.name}: has 2 results",
        f"{missing}: has no result",
    ]
    number = sum(map(judgement.needed, SUITE.cases))
    assert said[3:] == [f"{number - 2} of {number} cases conform"]


def test_files_that_are_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results"
    assert main(["judge", str(suite.PATH), str(path)]) == 2
    path.write_bytes(b"\xff\xff")
    assert main(["judge", str(suite.PATH), str(path)]) == 2
    assert "conformance: " in capsys.readouterr().err


def scaled(factor: float) -> Callable[[Any], None]:
    def change(outcome: Any) -> None:
        values = outcome.transform.f64.values
        values[:] = [value * factor for value in values]

    return change


def test_a_number_may_be_as_far_off_as_the_tolerance_and_no_further() -> None:
    assert judgement.of_case(*changed(UNIFORM, scaled(1 + 1e-14))) == []
    found = judgement.of_case(*changed(UNIFORM, scaled(1 + 3e-14)))
    assert [line.split(" is ")[0] for line in found] == [
        f"advantage {i} of group {group} (n = 6)" for group, i in enumerate(first_of_size(UNIFORM))
    ]


def first_of_size(name: str) -> list[int]:
    """Where each group of 6 has its first advantage of more than two thirds of its largest."""
    values = CASES[name].expected.transform.f64.values
    groups = [list(map(abs, values[i : i + 6])) for i in range(0, len(values), 6)]
    return [next(i for i, a in enumerate(group) if a > 0.667 * max(group)) for group in groups]


def test_nan_is_never_near_a_number_nor_a_number_near_nan() -> None:
    def lose(outcome: Any) -> None:
        outcome.transform.f64.values[3] = math.nan

    assert len(judgement.of_case(*changed(UNIFORM, lose))) == 1

    def invent(outcome: Any) -> None:
        outcome.transform.estimates[0].values[0] = 0.5
        outcome.transform.estimates[0].standard_errors[0] = 0.0

    said = judgement.of_case(*changed(ESTIMATES, invent))
    assert said == [
        "k = 4: estimate of group 0 is 0.5; must be nan, give or take 1e-14",
        "k = 4: standard error of group 0 is 0.0; must be nan, exactly",
    ]


def test_statuses_of_groups_that_are_all_fine_may_be_said() -> None:
    def say(outcome: Any) -> None:
        outcome.transform.group_statuses.extend([0] * 2)

    assert judgement.of_case(*changed("options/worked by hand", say)) == []


def test_a_stream_is_judged_in_any_order() -> None:
    def turn(outcome: Any) -> None:
        turned = list(reversed(outcome.stream.responses))
        del outcome.stream.responses[:]
        outcome.stream.responses.extend(turned)

    for name in CASES:
        if name.startswith("stream/"):
            assert judgement.of_case(*changed(name, turn)) == [], name


def test_offenders_may_be_named_in_any_order_and_of_many_some() -> None:
    def turn(outcome: Any) -> None:
        outcome.refusal.fields[:] = outcome.refusal.fields[::-1]

    def shorten(outcome: Any) -> None:
        outcome.refusal.fields[:] = [f"k[{i}]" for i in range(7, 12)]

    assert judgement.of_case(*changed("refusal/transform/several at once", turn)) == []
    assert judgement.of_case(*changed("refusal/transform/every k", shorten)) == []


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("refusal/transform/NaN", ["groups.rewards[1]"], "does not name the field 'groups.rewards[3]'"),
        ("refusal/transform/k 0", ["k"], "names the field 'k'; must name 'k[0]'"),
        ("refusal/transform/k 0", ["k[0]", "k[0]"], "names the field 'k[0]' 2 times"),
        ("refusal/transform/every k", [], "names no field; must name some of 'k[0]', 'k[1]', 'k[2]', 'k[3]', ..."),
        ("refusal/transform/every k", [f"k[{i}]" for i in range(9)], "names 9 fields; must name at most 8"),
    ],
)
def test_fields_that_are_wrong(name: str, fields: list[str], said: str) -> None:
    def change(outcome: Any) -> None:
        outcome.refusal.fields[:] = fields

    assert said in judgement.of_case(*changed(name, change))


def test_what_is_no_message_may_be_refused_by_grpc_itself() -> None:
    def refuse(outcome: Any) -> None:
        outcome.refusal.Clear()
        outcome.refusal.code = judgement.INTERNAL

    assert judgement.of_case(*changed("encoding/no message/text", refuse)) == []
    said = judgement.of_case(*changed("refusal/transform/k 0", refuse))
    assert said == ["is refused with INTERNAL; must be INVALID_ARGUMENT"]


def test_what_a_server_tells_of_itself() -> None:
    info = rehearsed_info()
    assert [*server_info.differences(info)] == []
    info.variants.pop(3)
    info.variants.add().CopyFrom(info.variants[0])
    info.variants.add(variant=99)
    info.variants[1].needs_seed = True
    info.default_variant = pb.VARIANT_S
    info.version = ""
    info.limits.max_groups = 0
    assert [*server_info.differences(info)] == [
        "version is empty",
        "variants has variant 1 2 times; must have it 1 times",
        "variants has variant 4 0 times; must have it 1 times",
        "variants has variant 99 1 times; must have it 0 times",
        "needs_seed of variant 2 is True; must be False",
        "default_variant is 2; must be 1",
        "limits.max_groups is 0",
    ]
