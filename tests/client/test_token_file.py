"""A token that is in a file, and another one later: the client goes on as who it is now."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from live_server import LiveServer
from pkpo_client import AsyncClient, Client, InvalidArgument, Unauthenticated
from pkpo_client.integrations.objective import Objective
from pkpo_client.token_file import TokenFile
from pkpo_server.tokens import LOOKING_SECONDS

FIRST, SECOND, THIRD = "first-of-the-tokens", "second-of-the-tokens", "third-of-the-tokens"
ROWS = np.array([[0.0, 1.0]])


def replace(path: Path, content: str) -> None:
    """As the volume of a secret does: at once."""
    path.with_suffix(".new").write_text(content)
    path.with_suffix(".new").replace(path)


class Knowing:
    """A server, the tokens it knows, and the file of a caller's."""

    def __init__(self, server: LiveServer, known: Path, own: Path) -> None:
        self.address = server.address
        self.own = own
        self._known = known

    def knows(self, token: str) -> None:
        """From now on it knows this one."""
        if self._known.read_text() != token:
            replace(self._known, token)
            time.sleep(LOOKING_SECONDS)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, Path]]:
    known = tmp_path_factory.mktemp("tokens") / "known"
    known.write_text(FIRST)
    with LiveServer("--tokens", str(known)) as server:
        yield server, known


@pytest.fixture
def knowing(asking: tuple[LiveServer, Path], tmp_path: Path) -> Knowing:
    own = tmp_path / "own"
    own.write_text(f"{FIRST}\n")
    knowing = Knowing(*asking, own)
    knowing.knows(FIRST)
    return knowing


def test_the_next_call_carries_the_token_that_the_file_holds_then(flavour: Any, knowing: Knowing) -> None:
    with flavour.calling(knowing.address, token=knowing.own) as call:
        call("transform", ROWS, 1)
        knowing.knows(SECOND)
        with pytest.raises(Unauthenticated):
            call("transform", ROWS, 1)
        replace(knowing.own, SECOND)
        call("transform", ROWS, 1)
        knowing.own.write_text("")  # half way through being written
        call("transform", ROWS, 1)


def test_a_stream_goes_on_where_its_token_was_taken_back_and_there_is_another(flavour: Any, knowing: Knowing) -> None:
    def batches() -> Iterator[Any]:
        yield ROWS
        replace(knowing.own, SECOND)
        knowing.knows(SECOND)
        yield from (ROWS * i for i in range(2, 5))

    gave = flavour.stream(knowing.address, batches(), 1, in_flight=1, of_client={"token": knowing.own})
    assert [each.advantages.tolist() for each in gave] == [[[-i / 2, i / 2]] for i in range(1, 5)]


def test_a_stream_fails_where_its_token_was_taken_back_and_the_file_has_no_better(
    flavour: Any, knowing: Knowing
) -> None:
    def batches() -> Iterator[Any]:
        yield ROWS
        replace(knowing.own, THIRD)
        knowing.knows(SECOND)
        yield ROWS

    first, last = flavour.stream(knowing.address, batches(), 1, in_flight=1, of_client={"token": knowing.own})
    assert first.advantages.tolist() == [[-0.5, 0.5]]
    assert isinstance(last, Unauthenticated)


def test_a_run_of_an_integration_goes_on_with_another_token(knowing: Knowing) -> None:
    objective = Objective(k="1", address=knowing.address, token_file=str(knowing.own))
    objective.transform(ROWS, 0)
    replace(knowing.own, SECOND)
    knowing.knows(SECOND)
    objective.transform(ROWS, 1)


def test_what_is_no_token_keeps_the_former_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text(FIRST)
    file = TokenFile(path)
    with caplog.at_level(logging.WARNING, "pkpo_client"):
        replace(path, f"{SECOND} name=team-a\n")
        assert [file.token() for _ in range(3)] == [FIRST] * 3
        path.unlink()
        assert [file.token() for _ in range(3)] == [FIRST] * 3
        replace(path, THIRD)
        assert file.token() == THIRD
    assert [record.getMessage() for record in caplog.records] == [
        f"token: is not shown ({path}); must be one word of printable ASCII; the token that was there before stays in"
        " use",
        f"token: is '{path}'; must be a file that can be read: No such file or directory; the token that was there"
        " before stays in use",
    ]


def test_a_file_that_was_out_of_reach_counts_once_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing about it need have changed meanwhile: descriptors may have been short."""
    path = tmp_path / "token"
    path.write_text(FIRST)
    file = TokenFile(path)
    replace(path, SECOND)
    with monkeypatch.context() as short:
        short.setattr(Path, "read_bytes", lambda _: os.close(-1))
        assert file.token() == FIRST
    assert file.token() == SECOND


@pytest.mark.parametrize("content", [None, "", "two words\n", "ümlaut"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_is_not_made_of_what_is_no_token(kind: Any, content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidArgument, match=f"token: is .*{path}"):
        kind("localhost:1", token=path)


def test_a_file_s_token_does_not_leave_the_machine_in_the_clear_and_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(FIRST)
    with pytest.raises(InvalidArgument, match="plaintext"):
        Client("10.0.0.1:50051", token=path)
    with Client("localhost:1", token=path) as client:
        assert FIRST not in repr(vars(client))
        assert pickle.loads(pickle.dumps(client)).__getstate__()["token"] == path
        assert FIRST.encode() not in pickle.dumps(client)
