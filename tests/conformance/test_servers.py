"""The kit against servers: pkpo-server conforms, one that is wrong in one way does not, and the case says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme

from conformance.__main__ import main
from conformance.conformance_pb2 import Case, Outcome
from conformance.rehearsed import CASES, SUITE, Wrong, conforming, rehearsed
from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_pkpo_server_conforms(flags: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with LiveServer(*flags) as live:
        status = main(["server", live.address])
    said = capsys.readouterr().out.splitlines()
    # Those of the suite, what GetServerInfo says, and four requests over the limits it tells.
    number = len(SUITE.cases) + 5
    assert said == [f"{number} of {number} cases conform"]
    assert status == 0


def test_pkpo_server_conforms_behind_tls_and_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    files = {name: tmp_path / name for name in ("ca", "certificate", "key", "token")}
    authority.cert_pem.write_to_path(files["ca"])
    leaf.cert_chain_pems[0].write_to_path(files["certificate"])
    leaf.private_key_pem.write_to_path(files["key"])
    files["token"].write_text("s3cret-" * 5 + "\n")
    tls = ["--tls-certificate", str(files["certificate"]), "--tls-key", str(files["key"])]
    with LiveServer("--health-port", "0", *tls, "--tokens", str(files["token"]), wait=False) as live:
        poll(lambda: live.log_lines("serving"), "start", 240)
        address = live.address.replace("127.0.0.1", "localhost")
        trusting = ["server", address, "--only", "encoding/*", "--tls-ca", str(files["ca"])]
        assert main([*trusting, "--token-file", str(files["token"])]) == 0
        assert main(trusting) == 2
    assert "UNAUTHENTICATED" in capsys.readouterr().err


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "127.0.0.1:1", "--timeout", "0.2"]) == 2
    assert "no server at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["server", "127.0.0.1:1", "--token-file", __file__], "a token or a certificate travels over TLS only"),
        (["server", "127.0.0.1:1", "--tls", "--tls-cert", __file__], "--tls-cert and --tls-key need each other"),
        (["show", "no such case"], "no case is named 'no such case'"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def values_of(outcome: Outcome) -> Any:
    """The advantages of a Transform; none of another call."""
    return (outcome.transform.f32 if outcome.transform.HasField("f32") else outcome.transform.f64).values


def in_no_way(case: Case, outcome: Outcome) -> None:
    pass


def by_the_wrong_scale(case: Case, outcome: Outcome) -> None:
    if case.transform.scale == pb.SCALE_MEAN and values_of(outcome):
        values_of(outcome)[:] = [a / 2 for a in values_of(outcome)]


def in_sorted_order(case: Case, outcome: Outcome) -> None:
    if case.transform.groups.group_size and values_of(outcome):
        n, values = case.transform.groups.group_size, list(values_of(outcome))
        values_of(outcome)[:] = [a for i in range(0, len(values), n) for a in sorted(values[i : i + n])]


def by_computing_in_float32(case: Case, outcome: Outcome) -> None:
    if outcome.transform.HasField("f32"):
        outcome.transform.f32.values[:] = [a * (1 + 2.0**-23) for a in outcome.transform.f32.values]


def by_saying_no_status(case: Case, outcome: Outcome) -> None:
    if outcome.HasField("transform"):
        del outcome.transform.group_statuses[:]


def by_answering_float32_with_doubles(case: Case, outcome: Outcome) -> None:
    if outcome.transform.HasField("f32"):
        outcome.transform.f64.values.extend(list(outcome.transform.f32.values))


def by_one_subset_for_all_groups(case: Case, outcome: Outcome) -> None:
    if case.name == "bootstrap/from 0/second half":
        outcome.CopyFrom(CASES["bootstrap/from 0/first half"].expected)


def by_zeros_for_nan(case: Case, outcome: Outcome) -> None:
    for estimate in (*outcome.transform.estimates, *outcome.estimate.estimates):
        for values in (estimate.values, estimate.standard_errors):
            values[:] = [0.0 if value != value else value for value in values]


def by_no_standard_error(case: Case, outcome: Outcome) -> None:
    for estimate in (*outcome.transform.estimates, *outcome.estimate.estimates):
        del estimate.standard_errors[:]


def by_sorting_k(case: Case, outcome: Outcome) -> None:
    for estimates in (outcome.transform.estimates, outcome.estimate.estimates):
        estimates.sort(key=lambda estimate: estimate.k)


def by_other_fields(case: Case, outcome: Outcome) -> None:
    if outcome.HasField("refusal"):
        outcome.refusal.fields[:] = [field.removeprefix("groups.") for field in outcome.refusal.fields]


def by_unknown(case: Case, outcome: Outcome) -> None:
    """As grpcio does where a servicer raises."""
    if outcome.HasField("refusal"):
        outcome.refusal.code = 2


def by_naming_every_offender(case: Case, outcome: Outcome) -> None:
    if outcome.HasField("refusal"):
        outcome.refusal.fields[:] = case.expected.refusal.fields


def by_clamping_what_is_strict(case: Case, outcome: Outcome) -> None:
    if case.name == "refusal/transform/k over n":
        outcome.transform.f64.values.extend([0.0] * 4)


def by_reading_packed_runs_alone(case: Case, outcome: Outcome) -> None:
    if case.name.startswith("encoding/unpacked"):
        outcome.refusal.code = 13


def by_ending_a_stream_at_a_bad_message(case: Case, outcome: Outcome) -> None:
    if any(answer.HasField("error") for answer in outcome.stream.responses):
        outcome.refusal.code = 3


def by_skipping_bad_messages(case: Case, outcome: Outcome) -> None:
    if case.HasField("stream"):
        good = [answer for answer in outcome.stream.responses if answer.HasField("response")]
        del outcome.stream.responses[:]
        outcome.stream.responses.extend(good)


def by_numbering_answers_itself(case: Case, outcome: Outcome) -> None:
    for i, answer in enumerate(outcome.stream.responses):
        answer.sequence = i


def by_answering_twice(case: Case, outcome: Outcome) -> None:
    if outcome.HasField("stream"):
        outcome.stream.responses.extend(list(outcome.stream.responses)[:1])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (by_the_wrong_scale, "transform/s/f64/mean/uniform: advantage 0 of group 0 (n = 6) is "),
        (in_sorted_order, "every k of 12/sloo_minus_one: advantage "),
        (by_computing_in_float32, "transform/loo/f32/sum/ragged: advantage "),
        (
            by_saying_no_status,
            "clamp/loo/one for all: group_statuses[0] is GROUP_STATUS_UNSPECIFIED; must be GROUP_STATUS_TOO_SMALL",
        ),
        (
            by_answering_float32_with_doubles,
            "transform/grpo/f32/mean/ragged: has advantages of f64; must be f32, as the rewards are",
        ),
        (by_one_subset_for_all_groups, "bootstrap/from 0/second half: advantage "),
        (by_zeros_for_nan, "estimate/ragged/f64: k = 4: estimate of group 0 is 0.0; must be nan"),
        (by_no_standard_error, "estimate/ragged/f64: k = 4: has 0 standard errors; must have 5"),
        (by_sorting_k, "estimate/ragged/f64: has estimates for k = [1, 2, 4, 4, 6, 7, "),
        (
            by_other_fields,
            "refusal/transform/size 0: names the field 'group_size'; must name 'groups.group_size'",
        ),
        (by_unknown, "refusal/transform/unknown variant: is refused with UNKNOWN; must be INVALID_ARGUMENT"),
        (by_naming_every_offender, "refusal/transform/every k: names 40 fields; must name at most 8"),
        (
            by_clamping_what_is_strict,
            "refusal/transform/k over n: is advantages; must be refused with INVALID_ARGUMENT k[0]",
        ),
        (
            by_reading_packed_runs_alone,
            "encoding/unpacked rewards: is refused with INTERNAL; must be advantages",
        ),
        (
            by_ending_a_stream_at_a_bad_message,
            "stream/the first message bad: is refused with INVALID_ARGUMENT; must be a stream's answers",
        ),
        (by_skipping_bad_messages, "stream/a bad message among good ones: does not answer sequence 2"),
        (
            by_numbering_answers_itself,
            "stream/sequence numbers in no order: answers sequence 1 though there is none",
        ),
        (by_answering_twice, "stream/one message: answers sequence 7 again"),
    ],
    ids=lambda value: value.__name__.replace("_", " ") if callable(value) else "",
)
def test_a_wrong_server_is_told_where_it_is_wrong(wrong: Wrong, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with rehearsed(wrong) as address:
        assert main(["server", address]) == 1
    *differences, _ = capsys.readouterr().out.splitlines()
    assert any(difference.startswith(said) for difference in differences), differences[:20]
    assert {difference.split(": ")[0] for difference in differences} <= {*answered_otherwise(wrong)}


def answered_otherwise(wrong: Wrong) -> Iterator[str]:
    """The cases that the server is wrong about."""
    for name, case in CASES.items():
        outcome = conforming(case)
        wrong(case, outcome)
        if outcome.SerializeToString(deterministic=True) != conforming(case).SerializeToString(deterministic=True):
            yield name


def test_a_server_that_is_wrong_in_no_way_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    with rehearsed(in_no_way) as address:
        assert main(["server", address]) == 0
    number = len(SUITE.cases) + 1
    assert capsys.readouterr().out == f"{number} of {number} cases conform\n"


def test_names_and_cases_can_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "options/TZSM/*"]) == 0
    assert capsys.readouterr().out == "options/TZSM/0 for n\noptions/TZSM/0 or n\n"
    assert main(["show", "options/worked by hand"]) == 0
    assert '"variant": "VARIANT_S"' in capsys.readouterr().out
