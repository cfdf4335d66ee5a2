"""TLS and tokens: who has neither is told so, and what is rotated counts without a restart."""

from __future__ import annotations

import hmac
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, Unauthenticated, Unreachable
from pkpo_server import prometheus
from pkpo_server.address import warn_where_open
from pkpo_server.certificates import TRYING_SECONDS, Certificates, UnusableCertificate
from pkpo_server.health import MOST_WATCHERS
from pkpo_server.prometheus import serve_metrics
from pkpo_server.settings import settings_of
from pkpo_server.tokens import LOOKING_SECONDS, Tokens, UnusableTokens
from said import Said

REQUEST = pb.TransformRequest(k=[1], groups=pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1]), group_size=2))
ANSWER = [-0.5, 0.5]
FIRST, SECOND, THIRD = "first-of-the-tokens", "second-of-the-tokens", "third-of-the-tokens"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Identity:
    """The files of a server's certificate, replaced at once as a secret's are."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.client_ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"

    def issue(self, authority: trustme.CA, **options: Any) -> None:
        leaf = authority.issue_cert("localhost", "127.0.0.1", **options)
        self._replace(self.certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self._replace(self.key, leaf.private_key_pem.bytes())
        self._replace(self.client_ca, authority.cert_pem.bytes())

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").replace(path)

    @property
    def flags(self) -> tuple[str, ...]:
        return "--tls-certificate", str(self.certificate), "--tls-key", str(self.key)


@pytest.fixture
def identity(tmp_path: Path, authority: trustme.CA) -> Identity:
    identity = Identity(tmp_path)
    identity.issue(authority)
    return identity


def run_short_of_descriptors(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """From now on files cannot be read, so many times."""
    read, short = Path.read_bytes, [OSError("too many open files")] * times

    def reading(path: Path) -> bytes:
        if short:
            raise short.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", reading)


def serving(*flags: str) -> LiveServer:
    """A server whose own port takes no plaintext; its health port tells when it serves."""
    return LiveServer("--health-port", "0", *flags, wait=False)


def started(server: LiveServer) -> str:
    poll(lambda: server.log_lines("serving") or server.log_lines("failed"), "start", 240)
    assert server.log_lines("serving"), server.raw_log()
    return server.address.replace("127.0.0.1", "localhost")


def channel(address: str, authority: trustme.CA, *, shown: trustme.LeafCert | None = None) -> grpc.Channel:
    """A connection of its own that trusts the authority, and shows a certificate where it has one."""
    key = shown.private_key_pem.bytes() if shown else None
    chain = b"".join(blob.bytes() for blob in shown.cert_chain_pems) if shown else None
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, chain)
    return grpc.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


def transformed(open_channel: grpc.Channel, token: str | None = None) -> list[float]:
    metadata = [("authorization", f"Bearer {token}")] if token else None
    stub = pb_grpc.RewardTransformServiceStub(open_channel)
    return list(stub.Transform(REQUEST, timeout=20, metadata=metadata).f64.values)


def refused(open_channel: grpc.Channel, token: str | None = None) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        transformed(open_channel, token)
    code: grpc.StatusCode = caught.value.code()  # type: ignore[attr-defined]
    return code


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_new_certificate_counts_for_new_connections_and_breaks_no_old_one(
    workers: str, identity: Identity, authority: trustme.CA
) -> None:
    other = trustme.CA()
    with serving(*identity.flags, "--workers", workers) as server:
        address = started(server)
        with channel(address, authority) as old:
            assert transformed(old) == ANSWER
            with channel(address, other) as stranger:
                assert refused(stranger) is grpc.StatusCode.UNAVAILABLE
            identity.issue(other)
            with channel(address, other) as new:
                assert transformed(new) == ANSWER
            assert transformed(old) == ANSWER
        poll(lambda: server.log_lines("certificate_changed"), "line")


def test_what_cannot_be_used_leaves_the_former_certificate(identity: Identity, authority: trustme.CA) -> None:
    other = trustme.CA()
    with serving(*identity.flags) as server:
        address = started(server)
        identity.key.write_text("half a key")
        for _ in range(2):
            with channel(address, authority) as new:
                assert transformed(new) == ANSWER
        (line,) = poll(lambda: server.log_lines("certificate_unusable"), "line")
        assert str(identity.key) in line["message"]
        identity.issue(other)
        with channel(address, other) as again:
            assert transformed(again) == ANSWER
        poll(lambda: server.log_lines("certificate_changed"), "line")


def test_files_that_were_out_of_reach_count_once_they_are_not(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing about them need have changed meanwhile: descriptors may have been short."""
    said = Said()
    certificates = Certificates(identity.certificate, identity.key, None, said)  # type: ignore[arg-type]
    identity.issue(trustme.CA())
    run_short_of_descriptors(monkeypatch, times=2)
    kept = []
    for _ in range(4):
        certificates._tried -= TRYING_SECONDS
        kept.append(certificates._changed() is None)
    assert kept == [True, True, False, True]
    assert [event for event, _ in said.lines] == ["certificate_unusable", "certificate_changed"]


def test_clients_must_show_a_certificate_that_the_ca_signed(identity: Identity, authority: trustme.CA) -> None:
    with serving(*identity.flags, "--tls-client-ca", str(identity.client_ca)) as server:
        address = started(server)
        with channel(address, authority) as anonymous:
            assert refused(anonymous) is grpc.StatusCode.UNAVAILABLE
        with channel(address, authority, shown=trustme.CA().issue_cert("trainer")) as impostor:
            assert refused(impostor) is grpc.StatusCode.UNAVAILABLE
        with channel(address, authority, shown=authority.issue_cert("trainer")) as known:
            assert transformed(known) == ANSWER
        other = trustme.CA()
        identity.client_ca.write_bytes(other.cert_pem.bytes())
        with channel(address, authority, shown=other.issue_cert("trainer")) as newly_known:
            assert transformed(newly_known) == ANSWER
        with channel(address, authority, shown=authority.issue_cert("trainer")) as known_no_more:
            assert refused(known_no_more) is grpc.StatusCode.UNAVAILABLE


class Load:
    """A stream on a connection of its own whose messages go one after the other, each as soon as the last is answered.

    Attributes:
        answers: how many came so far, each of them right.
        ended: how the one call ended; None while it goes on.
    """

    def __init__(self, open_channel: grpc.Channel, token: str) -> None:
        self.answers = 0
        self.ended: grpc.StatusCode | None = None
        self._may_send = threading.Semaphore(1)
        self._over = threading.Event()
        stub: Any = pb_grpc.RewardTransformServiceStub(open_channel)
        self._call = stub.TransformStream(self._messages(), metadata=[("authorization", f"Bearer {token}")])
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)
        self._call.cancel()

    def _messages(self) -> Iterator[pb.TransformStreamRequest]:
        sequence = 0
        while self._may_send.acquire(timeout=60) and not self._over.is_set():
            sequence += 1
            yield pb.TransformStreamRequest(sequence=sequence, request=REQUEST)

    def _receive(self) -> None:
        try:
            for answer in self._call:
                assert list(answer.response.f64.values) == ANSWER
                assert answer.sequence == self.answers + 1
                self.answers += 1
                self._may_send.release()
        finally:
            self.ended = self._call.code()


def test_streams_under_load_outlive_new_certificates_new_authorities_and_new_tokens(
    identity: Identity, authority: trustme.CA, tmp_path: Path
) -> None:
    """Who the streams belong to is by then unknown to the server: their certificates' authority is gone."""
    tokens = tmp_path / "tokens"
    tokens.write_text(FIRST)
    flags = (*identity.flags, "--tls-client-ca", str(identity.client_ca), "--tokens", str(tokens))
    with serving(*flags) as server, ExitStack() as open_channels:
        address, leaf = started(server), authority.issue_cert("trainer")
        streams = [Load(open_channels.enter_context(channel(address, authority, shown=leaf)), FIRST) for _ in range(4)]

        def go_on() -> None:
            before = [stream.answers for stream in streams]
            for stream, count in zip(streams, before, strict=True):
                poll(lambda s=stream, c=count: s.answers > c + 20 or s.ended, "answers")  # type: ignore[misc]

        try:
            go_on()
            for token in (SECOND, THIRD):
                other = trustme.CA()
                identity.issue(other)
                Identity._replace(tokens, f"{FIRST}\n{token}\n".encode())
                time.sleep(LOOKING_SECONDS)
                with channel(address, other, shown=other.issue_cert("trainer")) as new:
                    assert transformed(new, token) == ANSWER
                with channel(address, other, shown=leaf) as old:
                    assert refused(old, FIRST) is grpc.StatusCode.UNAVAILABLE
                go_on()
        finally:
            for stream in streams:
                stream.stop()
        assert [stream.ended for stream in streams] == [grpc.StatusCode.OK] * 4
        assert server.metrics()['pkpo_requests_total{code="OK",method="TransformStream",variant="SLOO_MINUS_ONE"}'] == (
            sum(stream.answers for stream in streams)
        )


def test_plaintext_is_not_spoken_where_tls_is(identity: Identity) -> None:
    with serving(*identity.flags) as server, grpc.insecure_channel(started(server)) as plaintext:
        assert refused(plaintext) is grpc.StatusCode.UNAVAILABLE


def test_handshakes_that_fail_are_told_where_grpc_is_asked_to_tell(identity: Identity) -> None:
    """By themselves they leave no line: gRPC tells nobody but its own log, which is off."""
    for environment, lines in (({}, 0), ({"GRPC_VERBOSITY": "INFO"}, 1)):
        with LiveServer(*identity.flags, env=environment, wait=False) as server:
            # What gRPC writes is no JSON.
            serving = poll(lambda server=server: [line for line in server.raw_log() if '"serving"' in line], "start")  # type: ignore[misc]
            host, port = json.loads(serving[0])["address"].split(":")
            with socket.create_connection((host, int(port)), timeout=30) as plaintext:
                plaintext.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                while plaintext.recv(2**16):
                    pass
            server.stop()
            assert len([line for line in server.raw_log() if "Handshake failed" in line]) == lines


@pytest.mark.parametrize(("broken", "said"), [("key", "tls.key"), ("certificate", "tls.crt"), ("client_ca", "ca.crt")])
@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
def test_what_cannot_be_used_is_said(broken: str, said: str, content: bytes | None, identity: Identity) -> None:
    path: Path = getattr(identity, broken)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UnusableCertificate, match=said):
        Certificates(identity.certificate, identity.key, identity.client_ca, Said())  # type: ignore[arg-type]


@pytest.mark.parametrize("flag", ["--tls-key", "--tokens"])
def test_what_cannot_be_used_at_the_start_ends_it(flag: str, identity: Identity, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with serving(*identity.flags, flag, str(empty)) as server:
        assert server.process.wait(60) == 1
        (line,) = poll(lambda: server.log_lines("failed"), "line")
        assert str(empty) in line["message"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[LiveServer, Path]]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# whose they are\n{FIRST}\n\n{SECOND}\n")
    with LiveServer("--tokens", str(tokens), "--health-port", "0") as server:
        yield server, tokens


CALLS = {
    "Transform": lambda stub, **more: stub.Transform(REQUEST, **more),
    "TransformStream": lambda stub, **more: list(
        stub.TransformStream(iter([pb.TransformStreamRequest(request=REQUEST)]), **more)
    ),
    "Estimate": lambda stub, **more: stub.Estimate(pb.EstimateRequest(groups=REQUEST.groups, k=[1]), **more),
    "GetServerInfo": lambda stub, **more: stub.GetServerInfo(pb.GetServerInfoRequest(), **more),
}


STRANGERS = (
    (),
    ("Bearer wrong",),
    (f"Basic {FIRST}",),
    (FIRST,),
    ("Bearer",),
    ("Bearer  ",),
    (f" Bearer {FIRST}",),
    (f"Bearer {FIRST} {SECOND}",),
    (f"Bearer  {FIRST}  {SECOND}",),
    (f"Bearer {FIRST},Bearer {SECOND}",),
    ("Bearer # whose they are",),
    (f"Bearer {FIRST}", "Bearer wrong"),
    ("Bearer wrong", f"Bearer {FIRST}"),
    (f"Bearer {FIRST}", f"Bearer {FIRST}"),
)
# RFC 9110, 11.4: one space or more.
KNOWN = (f"Bearer {FIRST}", f"bearer {SECOND}", f"BEARER {SECOND}", f"Bearer  {FIRST}", f"Bearer    {SECOND}")


def test_every_call_needs_a_token_and_health_does_not(guarded: tuple[LiveServer, Path]) -> None:
    server, _ = guarded
    with grpc.insecure_channel(server.address) as open_channel:
        stub: Any = pb_grpc.RewardTransformServiceStub(open_channel)
        for name, call in CALLS.items():
            told = set()
            for headers in STRANGERS:
                metadata = [("authorization", header) for header in headers]
                with pytest.raises(grpc.RpcError) as caught:
                    call(stub, timeout=20, metadata=metadata)
                error: Any = caught.value
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED, (name, headers)
                told.add(error.details())
            assert len(told) == 1  # whoever guesses learns nothing
            for header in KNOWN:
                call(stub, timeout=20, metadata=[("authorization", header)])
        answer = health_pb2_grpc.HealthStub(open_channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    samples = server.metrics()
    assert samples['pkpo_refused_total{reason="unauthenticated"}'] == len(STRANGERS) * len(CALLS)
    assert samples['pkpo_requests_total{code="UNAUTHENTICATED",method="Estimate",variant="none"}'] == len(STRANGERS)
    # Refused before anything was looked at, they take no time worth telling of.
    assert samples['pkpo_request_seconds_count{method="Transform"}'] == len(KNOWN)
    assert not any(FIRST in line or "wrong" in line for line in server.raw_log())


def test_the_log_says_which_way_a_token_was_lacking(guarded: tuple[LiveServer, Path]) -> None:
    server, _ = guarded
    causes = {
        (): "no token",
        (f"Basic {FIRST}",): "not one Bearer token",
        (f"Bearer {FIRST}", f"Bearer {FIRST}"): "not one Bearer token",
        (f"Bearer {THIRD}",): "unknown token",
    }
    with grpc.insecure_channel(server.address) as open_channel:
        stub = pb_grpc.RewardTransformServiceStub(open_channel)
        for headers in causes:
            with pytest.raises(grpc.RpcError):
                stub.Transform(REQUEST, timeout=20, metadata=[("authorization", header) for header in headers])
    lines = poll(lambda: len(found := server.log_lines("refused")) == len(causes) and found, "lines")
    assert [line["cause"] for line in lines] == list(causes.values())


def test_a_stranger_s_message_is_not_read(guarded: tuple[LiveServer, Path]) -> None:
    server, _ = guarded
    server_process = psutil.Process(server.process.pid)
    before = server_process.memory_info().rss
    most, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], server_process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    options = [("grpc.max_send_message_length", -1)]
    try:
        with grpc.insecure_channel(server.address, options=options) as open_channel:
            call: Any = open_channel.unary_unary("/pkpo.v1.RewardTransformService/Transform")
            futures = [call.future(bytes(30 * 2**20), timeout=60) for _ in range(8)]
            assert {future.code() for future in futures} == {grpc.StatusCode.UNAUTHENTICATED}
    finally:
        over.set()
        watching.join()
    assert most[0] - before < 120 * 2**20  # of 240; read, they would take 450


def test_rotated_tokens_count_soon(guarded: tuple[LiveServer, Path]) -> None:
    server, tokens = guarded
    with grpc.insecure_channel(server.address) as open_channel:
        assert transformed(open_channel, FIRST) == ANSWER
        tokens.write_text(f"{SECOND}\n{THIRD}\n")
        time.sleep(LOOKING_SECONDS)
        assert transformed(open_channel, THIRD) == ANSWER
        assert transformed(open_channel, SECOND) == ANSWER
        assert refused(open_channel, FIRST) is grpc.StatusCode.UNAUTHENTICATED
        (line,) = poll(lambda: server.log_lines("tokens_changed"), "line")
        assert line["tokens"] == 2
        tokens.unlink()
        time.sleep(LOOKING_SECONDS)
        assert transformed(open_channel, THIRD) == ANSWER
        poll(lambda: server.log_lines("tokens_unusable"), "line")


def test_a_token_that_was_taken_back_ends_its_stream(guarded: tuple[LiveServer, Path]) -> None:
    server, tokens = guarded
    message = pb.TransformStreamRequest(sequence=1, request=REQUEST)
    go_on = threading.Event()

    def messages() -> Iterator[pb.TransformStreamRequest]:
        yield message
        go_on.wait(60)
        yield message

    with grpc.insecure_channel(server.address) as open_channel:
        stub: Any = pb_grpc.RewardTransformServiceStub(open_channel)
        answers = stub.TransformStream(messages(), metadata=[("authorization", f"Bearer {FIRST}")], timeout=60)
        assert next(answers).sequence == 1
        tokens.write_text(f"{SECOND}\n")
        time.sleep(LOOKING_SECONDS)
        go_on.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    (line,) = poll(lambda: server.log_lines("refused"), "line")
    assert (line["reason"], line["cause"]) == ("unauthenticated", "token taken back")
    assert server.metrics()['pkpo_refused_total{reason="unauthenticated"}'] == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_tokens_that_cannot_be_used_are_a_metric_and_an_event(workers: str, tmp_path: Path) -> None:
    """Also where nobody calls."""
    tokens = tmp_path / "tokens"
    tokens.write_text(FIRST)
    with LiveServer("--tokens", str(tokens), "--workers", workers) as server:
        steps = (
            ("short", 1, "tokens_unusable", "error"),
            (FIRST, 0, "tokens_usable", "info"),
            ("", 1, "tokens_emptied", "error"),
            (FIRST, 0, "tokens_changed", "info"),
        )
        metric = 'pkpo_secrets_unusable{kind="tokens"}'
        assert server.metrics()[metric] == 0
        for text, unusable, event, level in steps:
            Identity._replace(tokens, text.encode())
            poll(lambda event=event: len(server.log_lines(event)) == int(workers), event)  # type: ignore[misc]
            poll(lambda unusable=unusable: server.metrics()[metric] == unusable, metric)  # type: ignore[misc]
            assert {line["level"] for line in server.log_lines(event)} == {level}
        assert 'pkpo_secrets_unusable{kind="certificate"}' not in server.metrics()


def test_a_certificate_that_cannot_be_used_is_a_metric(identity: Identity) -> None:
    with serving(*identity.flags) as server:
        started(server)
        assert server.metrics()['pkpo_secrets_unusable{kind="certificate"}'] == 0


def allows(tokens: Tokens, token: str) -> bool:
    return tokens.grant([("user-agent", "test"), ("authorization", f"Bearer {token}")]) is not None


def test_the_files_of_a_folder_all_count_but_for_hidden_and_temporary_ones(tmp_path: Path) -> None:
    """Laid out as the volume of a Kubernetes Secret, which swaps one link for another."""

    def mount(number: int, **files: str) -> None:
        data = tmp_path / f"..{number}"
        data.mkdir()
        for name, text in files.items():
            (data / name).write_text(text)
            if not (tmp_path / name).is_symlink():
                (tmp_path / name).symlink_to(Path("..data") / name)
        (tmp_path / "..next").symlink_to(data.name)
        (tmp_path / "..next").replace(tmp_path / "..data")

    mount(1, a=f"{FIRST}\n{SECOND}\n", b=THIRD)
    (tmp_path / ".hidden").write_text("h" * 20)
    (tmp_path / "a~").write_text("o" * 20)
    (tmp_path / "a.new").write_text("n" * 20)
    (tmp_path / "lost+found").mkdir()
    said = Said()
    tokens = Tokens(tmp_path, said)  # type: ignore[arg-type]
    assert [allows(tokens, token) for token in (FIRST, SECOND, THIRD)] == [True] * 3
    assert not any(allows(tokens, token) for token in ("h" * 20, "o" * 20, "n" * 20, ""))
    assert tokens.grant(None) is None
    mount(2, a=SECOND)  # without b, whose link now leads nowhere
    tokens._looked -= LOOKING_SECONDS
    assert [allows(tokens, token) for token in (FIRST, SECOND, THIRD)] == [False, True, False]
    assert [event for event, _ in said.lines] == ["tokens_changed"]


def test_tokens_that_were_out_of_reach_count_once_they_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens"
    path.write_text(FIRST)
    said = Said()
    tokens = Tokens(path, said)  # type: ignore[arg-type]
    path.write_text(SECOND)
    run_short_of_descriptors(monkeypatch, times=2)
    known = []
    for _ in range(3):
        tokens._looked -= LOOKING_SECONDS
        known.append((allows(tokens, FIRST), allows(tokens, SECOND)))
    assert known == [(True, False), (True, False), (False, True)]
    assert [event for event, _ in said.lines] == ["tokens_unusable", "tokens_changed"]


def test_tokens_that_are_in_reach_again_are_said_to_be(tmp_path: Path) -> None:
    """With nothing about the file itself changed, not even its times; and a second time as the first."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path, said = folder / "tokens", Said()
    path.write_text(FIRST)
    tokens = Tokens(path, said)  # type: ignore[arg-type]
    for away in (True, True, False, False, True, False):
        if folder.exists() == away:
            folder.rename(tmp_path / "away") if away else (tmp_path / "away").rename(folder)
        tokens._looked -= LOOKING_SECONDS
        assert allows(tokens, FIRST)
        assert tokens.unusable is away
    assert [event for event, _ in said.lines] == ["tokens_unusable", "tokens_usable"] * 2


def test_a_certificate_that_is_in_reach_again_is_said_to_be(tmp_path: Path, authority: trustme.CA) -> None:
    folder, said = tmp_path / "folder", Said()
    folder.mkdir()
    identity = Identity(folder)
    identity.issue(authority)
    certificates = Certificates(identity.certificate, identity.key, None, said)  # type: ignore[arg-type]
    for away in (True, True, False, False, True, False):
        if folder.exists() == away:
            folder.rename(tmp_path / "away") if away else (tmp_path / "away").rename(folder)
        certificates.expiry()
        assert certificates.unusable is away
    assert [event for event, _ in said.lines] == ["certificate_unusable", "certificate_usable"] * 2


@pytest.mark.parametrize("content", [None, "", " \n\n", "# none\n", "short", f"{FIRST}\nhalf"])
def test_no_token_or_one_too_short_is_an_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnusableTokens, match=str(path)):
        Tokens(path, Said())  # type: ignore[arg-type]


def test_a_token_too_short_is_told_how_long_it_must_be(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("short")
    with pytest.raises(UnusableTokens, match=r"line 1 has a token of 5 bytes; must be at least 16$"):
        Tokens(path, Said())  # type: ignore[arg-type]


def test_reflection_is_not_served_where_tokens_are_asked_for(guarded: tuple[LiveServer, Path]) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    server, _ = guarded
    with grpc.insecure_channel(server.address) as open_channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(open_channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(
                stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


@pytest.mark.parametrize("flags", [("--workers", "1"), ("--workers", "2"), ("--unix-socket", "pkpo.sock")])
def test_the_health_port_serves_health_and_nothing_else(
    flags: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(*flags) as server:
        started(server)
        (line,) = server.log_lines("health")
        with grpc.insecure_channel(line["address"]) as probe:
            health = health_pb2_grpc.HealthStub(probe)
            for service in ("", "pkpo.v1.RewardTransformService"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert refused(probe) is grpc.StatusCode.UNIMPLEMENTED
    assert server.process.returncode == 0


def test_the_log_says_what_an_open_port_lacks() -> None:
    tls = {"tls_certificate": "c", "tls_key": "k"}
    for texts, lacks in (
        ({}, "without TLS or authentication"),
        ({"tokens": "t"}, "without TLS"),
        (tls, "without authentication"),
        ({**tls, "tokens": "t"}, None),
        ({**tls, "tls_client_ca": "a"}, None),
    ):
        said = Said()
        warn_where_open(said, settings_of({"host": "192.0.2.1", **texts}), "192.0.2.1:1")  # type: ignore[arg-type]
        assert [fields["message"] for _, fields in said.lines] == (
            [f"open to everyone who can reach it, {lacks}"] if lacks else []
        )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_is_open_says_so_as_a_warning(workers: str, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(FIRST)
    with LiveServer("--host", "0.0.0.0", "--tokens", str(tokens), "--workers", workers) as server:
        (line,) = server.log_lines("insecure")
        assert line["level"] == "warning"
        assert "without TLS" in line["message"]
    with LiveServer("--workers", workers) as server:
        assert not server.log_lines("insecure")


def test_the_client_shows_what_the_server_asks_for(identity: Identity, authority: trustme.CA, tmp_path: Path) -> None:
    """A certificate and a token by the client's own arguments; health in plaintext, on its port alone."""
    tokens = tmp_path / "tokens"
    tokens.write_text(FIRST)
    leaf = authority.issue_cert("trainer")
    roots, key = authority.cert_pem.bytes(), leaf.private_key_pem.bytes()
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    known, unknown = grpc.ssl_channel_credentials(roots, key, chain), grpc.ssl_channel_credentials(roots)
    with serving(*identity.flags, "--tls-client-ca", str(identity.client_ca), "--tokens", str(tokens)) as server:
        address = started(server)

        def answered(credentials: grpc.ChannelCredentials, token: str | None) -> list[float]:
            with Client(address, credentials=credentials, token=token, timeout=5) as client:
                return client.transform([[0.0, 1.0]], k=1)[0].tolist()

        assert answered(known, FIRST) == ANSWER
        for token in (None, SECOND):
            with pytest.raises(Unauthenticated, match="authorization: Bearer"):
                answered(known, token)
        with pytest.raises(Unreachable):
            answered(unknown, FIRST)
        (line,) = server.log_lines("health")
        with grpc.insecure_channel(line["address"]) as probe:
            answer = health_pb2_grpc.HealthStub(probe).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not any(FIRST in line or SECOND in line for line in server.raw_log())


def test_tokens_are_compared_by_digests_under_a_key_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the time of a comparison tells of a digest that nobody can aim at, and nothing of a token."""
    path = tmp_path / "tokens"
    path.write_text(f"{FIRST}\n{SECOND}\n")
    one, other = (Tokens(path, Said()) for _ in range(2))  # type: ignore[arg-type]
    assert not one._grants.keys() & other._grants.keys()
    assert not any(token.encode() in repr(vars(one)).encode() for token in (FIRST, SECOND))
    digested = []
    digest = hmac.digest

    def keyed(key: Any, message: Any, name: str) -> bytes:
        digested.append((key, message))
        return digest(key, message, name)

    monkeypatch.setattr(hmac, "digest", keyed)
    assert allows(one, FIRST)
    assert not allows(one, THIRD)
    assert digested == [(one._key, FIRST.encode()), (one._key, THIRD.encode())]
    assert len(one._key) == 32


def test_metrics_are_bound_apart() -> None:
    with LiveServer("--metrics-host", "127.0.0.2") as server:
        host, port = server.metrics_address.rsplit(":", 1)
        assert host == "127.0.0.2"
        assert "pkpo_requests_total" in server.metrics_text()
        for elsewhere in (f"127.0.0.1:{port}", server.address):
            with pytest.raises((OSError, HTTPException)):
                urllib.request.urlopen(f"http://{elsewhere}/metrics", timeout=10)
        with grpc.insecure_channel(server.metrics_address) as open_channel:
            assert refused(open_channel) is grpc.StatusCode.UNAVAILABLE


def test_a_silent_connection_to_the_metrics_is_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prometheus, "SILENT_SECONDS", 0.2)
    host, port = serve_metrics("127.0.0.1", 0, CollectorRegistry()).rsplit(":", 1)
    for said in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(said)
            while connection.recv(2**16):
                pass
    assert urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10).status == 200
    assert capfd.readouterr().err == ""


def test_watchers_of_health_are_bounded(server: LiveServer) -> None:
    """Beside them, everyone is answered as before."""
    with grpc.insecure_channel(server.address) as open_channel:
        stub = health_pb2_grpc.HealthStub(open_channel)
        watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(MOST_WATCHERS)]
        for watch in watching:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest()))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert transformed(open_channel) == ANSWER
        for watch in watching:
            watch.cancel()
