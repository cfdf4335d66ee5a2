"""What a token is for: the runs its line in the file names, and nothing beyond."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, InvalidArgument, PermissionDenied
from pkpo_client.integrations.objective import Objective
from pkpo_server.address import peer_host
from pkpo_server.exchange import Caller
from pkpo_server.grants import EVERYTHING, Grant
from pkpo_server.refusal import LONGEST_MESSAGE
from pkpo_server.refusal import PermissionDenied as Refused
from pkpo_server.tokens import LOOKING_SECONDS, Tokens, UnusableTokens
from said import Said

PLAIN, TEAM, ROTATED = "token-for-everything", "token-of-team-a-alone", "token-of-changing-rights"
ROWS = [[0.0, 1.0]]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, Path]]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"{PLAIN}\n{TEAM} name=team-a runs=team-a/*,eval-?\n{ROTATED} runs=team-a/*\n")
    with LiveServer("--tokens", str(tokens)) as server:
        yield server, tokens


def request(run_id: str) -> pb.TransformRequest:
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=ROWS[0]), group_size=2)
    return pb.TransformRequest(k=[1], groups=groups, run_id=run_id)


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def test_a_token_is_for_the_runs_its_line_names(guarded: tuple[LiveServer, Path]) -> None:
    server, _ = guarded
    before, said = server.metrics(), len(server.log_lines("refused"))
    with Client(server.address, token=TEAM) as client, Client(server.address, token=PLAIN) as anyone:
        for run_id in ("team-a/1", "team-a/", "eval-7"):
            client.transform(ROWS, 1, run_id=run_id)
        for run_id in ("team-b/1", "team-a", "eval-17", "Team-a/1", ""):
            with pytest.raises(PermissionDenied, match="team-a/\\*, eval-\\?") as caught:
                client.transform(ROWS, 1, run_id=run_id)
            assert repr(run_id) in str(caught.value) or not run_id
            assert TEAM not in str(caught.value)
            anyone.transform(ROWS, 1, run_id=run_id)
        # They count under no run, and tell of none.
        client.estimate(ROWS, 1)
        client.server_info()
    samples = server.metrics()
    for name in (
        'pkpo_refused_total{reason="permission"}',
        'pkpo_requests_total{code="PERMISSION_DENIED",method="Transform",variant="SLOO_MINUS_ONE"}',
    ):
        assert samples[name] - before[name] == 5
    lines = poll(lambda: len(found := server.log_lines("refused")[said:]) == 5 and found, "lines")
    assert {(line["code"], line["reason"], line["tenant"]) for line in lines} == {
        ("PERMISSION_DENIED", "permission", "team-a")
    }
    assert [line.get("run_id") for line in lines] == ["team-b/1", "team-a", "eval-17", "Team-a/1", None]
    assert not any(token in line for line in server.raw_log() for token in (TEAM, PLAIN))


def test_a_run_id_that_breaks_the_contract_is_an_invalid_argument_for_everyone(
    guarded: tuple[LiveServer, Path],
) -> None:
    server, _ = guarded
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.RewardTransformServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Transform(request("team-a/ü"), metadata=bearer(TEAM), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_each_message_of_a_stream_is_for_a_run_of_its_token_s_as_it_is_now(guarded: tuple[LiveServer, Path]) -> None:
    """What is refused is answered under its number, and the stream goes on, also when the token gets other rights."""
    server, tokens = guarded
    rotated = threading.Event()

    def messages() -> Iterator[pb.TransformStreamRequest]:
        for number, run_id in enumerate(("team-a/1", "team-b/1", "", "team-a/2"), start=1):
            yield pb.TransformStreamRequest(sequence=number, request=request(run_id))
        assert rotated.wait(60)
        for number, run_id in enumerate(("team-a/1", "team-b/1"), start=5):
            yield pb.TransformStreamRequest(sequence=number, request=request(run_id))

    with grpc.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.RewardTransformServiceStub(channel)
        answers = stub.TransformStream(messages(), metadata=bearer(ROTATED), timeout=120)
        found = [next(answers) for _ in range(4)]
        tokens.write_text(tokens.read_text().replace(f"{ROTATED} runs=team-a/*", f"{ROTATED} runs=team-b/*"))
        time.sleep(LOOKING_SECONDS)
        rotated.set()
        found += answers
    denied = {answer.sequence: answer.error for answer in found if answer.HasField("error")}
    assert sorted(answer.sequence for answer in found) == [1, 2, 3, 4, 5, 6]
    assert {number: error.code for number, error in denied.items()} == dict.fromkeys(
        (2, 3, 5), grpc.StatusCode.PERMISSION_DENIED.value[0]
    )
    assert "'team-b/1'" in denied[2].message
    assert "team-a/*" in denied[2].message


def test_the_client_raises_what_a_stream_was_refused_and_goes_on(guarded: tuple[LiveServer, Path]) -> None:
    server, _ = guarded
    with Client(server.address, token=TEAM) as client:
        with client.stream([ROWS], 1, run_id="team-b/1") as results, pytest.raises(PermissionDenied, match="team-b/1"):
            next(results)
        assert len(list(client.stream([ROWS], 1, run_id="team-a/1"))) == 1


def test_an_objective_asks_whether_its_k_is_legal_under_its_own_run(
    guarded: tuple[LiveServer, Path], tmp_path: Path
) -> None:
    server, _ = guarded
    own = tmp_path / "own"
    own.write_text(TEAM)
    for k, run_id, refusal in (
        ("1@0,1@9", "team-a/1", None),
        ("1@0,3@9", "team-a/1", InvalidArgument),
        ("1", "team-b/1", PermissionDenied),
    ):
        objective = Objective(k=k, address=server.address, run_id=run_id, token_file=str(own))
        with nullcontext() if refusal is None else pytest.raises(refusal):
            objective.transform(np.array(ROWS), 0)


def test_the_command_says_which_run_it_is_for(guarded: tuple[LiveServer, Path], tmp_path: Path) -> None:
    server, _ = guarded
    own = tmp_path / "own"
    own.write_text(TEAM)
    flags = ("--address", server.address, "--token-file", str(own), "--k", "1")

    def transformed(*more: str) -> subprocess.CompletedProcess[str]:
        rollouts = "".join(f'{{"prompt_id": "a", "reward": {reward}}}\n' for reward in ROWS[0])
        command = [sys.executable, "-m", "pkpo_client.command", "transform", "-", *flags, *more]
        return subprocess.run(command, input=rollouts, capture_output=True, text=True, timeout=120)

    done = transformed("--run-id", "eval-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("advantage") == 2
    denied = transformed()
    assert denied.returncode == 1
    assert "run_id is empty; this token is for team-a/*, eval-?" in denied.stderr
    assert TEAM not in denied.stderr


MALFORMED = {
    f"{TEAM} team-a/*": "word 1 after the token",
    f"{TEAM} # of team a": "word 1 after the token",
    f"{TEAM} name=a rights=b": "word 2 after the token",
    f"{TEAM} name=": "name= must",
    f"{TEAM} name={'a' * 65}": "name= must",
    f"{TEAM} name=tëam": "name= must",
    f"{TEAM} runs=": "pattern 1 of runs=",
    f"{TEAM} runs=a,,b": "pattern 2 of runs=",
    f"{TEAM} runs=a,[bc]": "pattern 2 of runs=",
    f"{TEAM} runs=a, b": "pattern 2 of runs=",
    f"{TEAM} runs=a runs=b": "runs= is there twice",
    f"{TEAM} name=a name=b": "name= is there twice",
    f"name=team-a-of-tokens {TEAM}": "must begin with the token",
    f"runs=* {TEAM}": "must begin with the token",
    f"{PLAIN} runs=a": "an earlier line",
    f"half {TEAM}": "4 bytes",
}


@pytest.mark.parametrize(("line", "said"), MALFORMED.items())
def test_a_line_that_cannot_be_one_is_said_without_its_token(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# tokens\n{PLAIN}\n{line}\n")
    with pytest.raises(UnusableTokens, match=said) as caught:
        Tokens(path, Said())  # type: ignore[arg-type]
    assert f"{path}: line 3" in str(caught.value)
    assert TEAM not in str(caught.value)
    assert PLAIN not in str(caught.value)


def test_a_line_that_cannot_be_one_ends_the_start(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{TEAM} run=a\n")
    with LiveServer("--tokens", str(path), wait=False) as server:
        assert server.process.wait(60) == 1
        (line,) = poll(lambda: server.log_lines("failed"), "line")
    assert f"{path}: line 1: word 1" in line["message"]
    assert not any(TEAM in each for each in server.raw_log())


def test_a_line_that_cannot_be_one_leaves_the_former_rights(tmp_path: Path) -> None:
    path, said = tmp_path / "tokens", Said()
    path.write_text(f"{TEAM} runs=a\n")
    tokens = Tokens(path, said)  # type: ignore[arg-type]
    for text, runs in ((f"{TEAM} runs=b c\n", ("a",)), (f"{TEAM} runs=c,d\n{PLAIN}\n", ("c", "d"))):
        path.write_text(text)
        tokens._looked -= LOOKING_SECONDS
        assert tokens.grant(bearer(TEAM)) == Grant(runs=runs)
    assert tokens.grant(bearer(PLAIN)) == EVERYTHING
    (unusable, told), (changed, _) = said.lines
    assert (unusable, changed) == ("tokens_unusable", "tokens_changed")
    assert told["message"] == (
        f"{path}: line 1: word 2 after the token is neither name=... nor runs=...; the former ones stay in use"
    )


def test_a_token_may_be_there_twice_with_the_same_words(tmp_path: Path) -> None:
    """As it is in two keys of a Secret while one of them is replaced."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{TEAM}\tname=team-a   runs=x/*\n")
    tokens = Tokens(tmp_path, Said())  # type: ignore[arg-type]
    assert tokens.grant(bearer(TEAM)) == Grant("team-a", ("x/*",))


def test_a_token_for_every_named_run_is_for_none_that_has_no_name() -> None:
    grant = Grant(runs=("*",))
    grant.check("any/run")
    with pytest.raises(Refused, match="run_id is empty"):
        grant.check("")


def test_a_refusal_is_as_short_as_any_other() -> None:
    with pytest.raises(Refused) as caught:
        Grant(runs=("x" * 128,) * 50).check("r" * 128)
    assert len(caught.value.message) == LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:4242", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4242", "::1"),
        ("ipv6:[2001:db8::7]:4242", "2001:db8::7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4242", "fe80::1%eth0"),
        ("unix:", "unix"),
        ("unix:/run/pkpo.sock", "unix"),
        ("unknown", "unknown"),
    ],
)
def test_a_tenant_is_a_token_s_name_or_else_a_host(peer: str, host: str) -> None:
    assert peer_host(peer) == host
    for grant, tenant in ((EVERYTHING, f"host {host}"), (Grant("team-a"), "token team-a")):
        caller = Caller("Transform", "1", None, lambda: peer, None, (), grant)
        assert caller.tenant == tenant
