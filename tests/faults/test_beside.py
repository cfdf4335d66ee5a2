"""What is measured beside crowds is measured, and what goes wrong there is seen."""

from __future__ import annotations

import pytest

from faults.beside import CROWDS, HEADER, made, recovery, row
from live_server import LiveServer
from pkpo_client import Client, LocalClient

NAMES = [who.name for who in CROWDS]


@pytest.mark.parametrize("name", ["nobody", "3 connections of 1,200 streams", "settings, again and again"])
def test_a_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faults.beside.PATIENCE_SECONDS", 1.0)
    cells = dict(zip(HEADER[-4:], row(CROWDS[NAMES.index(name)], 0.2)[-4:], strict=True))
    assert int(cells["answered"]) >= 1
    assert cells["failed"] == cells["wrong"] == "0"


def test_what_fails_and_what_is_wrong_is_counted(local: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with LiveServer() as server, Client(server.address, timeout=1.0) as client:
        assert made(client, local, 0.1).wrong == 0
        with LocalClient(variant="loo") as other:
            assert made(client, other, 0.1).wrong > 0
        server.stop()
        gone = made(client, local, 0.1)
        assert not gone.seconds
        assert set(gone.failures) == {"Unreachable"}
        monkeypatch.setattr("faults.beside.PATIENCE_SECONDS", 0.1)
        assert recovery(client, 1.0) == float("inf")
