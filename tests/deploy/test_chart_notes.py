"""What the chart tells who installs it: the call that it shows is the one that its server takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest

from deploy.rendering import Helm, running_helm
from pkpo_client import Client, InvalidArgument

TOKENS = {"tokens": {"existingSecret": "pkpo-tokens"}}
TLS = {"tls": {"enabled": True, "existingSecret": "pkpo-tls"}}
MUTUAL_TLS = {"tls": {**TLS["tls"], "clientAuthentication": True, "clientCaSecret": "clients"}}
OPEN = "Whoever reaches the port may call it"
WARNING = "WARNING: tokens without TLS"


@pytest.fixture(scope="module", name="helm")
def fixture_helm() -> Iterator[Helm]:
    with running_helm("1.30") as helm:
        yield helm


def shown(notes: str) -> str:
    """The expression that makes a client."""
    (expression,) = re.findall(r"^    (Client\(.*\))$", notes, re.MULTILINE)
    return str(expression)


def made(expression: str) -> Client:
    """The client that it makes."""
    names = {"ca": b"", "key": b"", "certificate": b"", "token": "a-token-of-one-team"}
    return eval(expression, {"Client": Client, "grpc": grpc, **names})  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        ({}, ""),
        (TLS, ", credentials=grpc.ssl_channel_credentials(ca)"),
        (MUTUAL_TLS, ", credentials=grpc.ssl_channel_credentials(ca, key, certificate)"),
        ({**TLS, **TOKENS}, ", credentials=grpc.ssl_channel_credentials(ca), token=token"),
    ],
    ids=["open", "TLS", "mutual TLS", "TLS and tokens"],
)
def test_the_client_that_is_shown_can_call(helm: Helm, values: Mapping[str, Any], arguments: str) -> None:
    notes = helm.render(values).notes
    assert shown(notes) == f'Client("dns:///pkpo-headless.pkpo:50051"{arguments})'
    made(shown(notes)).close()
    assert WARNING not in notes


def test_where_its_arguments_are_is_told(helm: Helm) -> None:
    notes = helm.render({**MUTUAL_TLS, **TOKENS}).notes
    for secret in ("pkpo-tls", "clients", "pkpo-tokens"):
        assert f"Secret {secret}" in notes


@pytest.mark.parametrize(("values", "is_open"), [({}, True), (TLS, True), (MUTUAL_TLS, False), (TOKENS, False)])
def test_whoever_may_call_is_told(helm: Helm, values: Mapping[str, Any], is_open: bool) -> None:
    assert (OPEN in helm.render(values).notes) is is_open


def test_tokens_without_tls_are_warned_of(helm: Helm) -> None:
    """And the client does refuse them."""
    notes = helm.render(TOKENS).notes
    assert WARNING in notes
    with pytest.raises(InvalidArgument, match="plaintext"):
        made(shown(notes))
