"""Certificates: when they expire is read, told and acted upon, and those that clients cannot use are refused."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509 as oracle
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from live_server import LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_server import certificates, x509
from pkpo_server.certificates import CLIENT_CA, KEY_KINDS, SERVER, WARNING_DAYS, Certificates, UnusableCertificate
from said import Said

KEYS: dict[str, Callable[[], Any]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpoolP256r1": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}
OTHERS = sorted({*KEYS} - {*KEY_KINDS})
BEGAN = datetime(2020, 1, 1, tzinfo=timezone.utc)
LATE = datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc)


def in_days(days: float) -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=days)


class Files:
    """A certificate signed by its own key, and where it is written."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.client_ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"

    def write(self, kind: str = "P-256", expires: datetime = LATE) -> None:
        key = KEYS[kind]()
        name = oracle.Name([oracle.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        builder = (
            oracle.CertificateBuilder(name, name, key.public_key(), oracle.random_serial_number())
            .not_valid_before(BEGAN)
            .not_valid_after(expires)
            .add_extension(oracle.SubjectAlternativeName([oracle.DNSName("localhost")]), critical=False)
            .add_extension(oracle.BasicConstraints(ca=True, path_length=None), critical=True)
        )
        signed = builder.sign(key, None if kind.startswith("Ed") else hashes.SHA256())
        self.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    @property
    def flags(self) -> tuple[str, ...]:
        return "--tls-certificate", str(self.certificate), "--tls-key", str(self.key)

    def read(self, said: Said, *, client_ca: bool = False) -> Certificates:
        ca = self.client_ca if client_ca else None
        return Certificates(self.certificate, self.key, ca, said)  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def called(port: str, trusted: bytes) -> list[float]:
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1]), group_size=2)
    credentials = grpc.ssl_channel_credentials(trusted)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        stub: Any = pb_grpc.RewardTransformServiceStub(channel)
        return list(stub.Transform(pb.TransformRequest(k=[1], groups=groups), timeout=20).f64.values)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("expires", [LATE, LATE + timedelta(seconds=1), datetime(9999, 12, 31, tzinfo=timezone.utc)])
def test_what_a_certificate_says_is_read(kind: str, expires: datetime, files: Files) -> None:
    """From 2050 on, years have four digits."""
    files.write(kind, expires)
    authority = trustme.CA(key_type=trustme.KeyType.RSA).cert_pem.bytes()
    first, second = x509.certificates(b"# a comment\n" + files.certificate.read_bytes() + authority)
    assert first == x509.Certificate(expires.timestamp(), kind)
    assert second.key_kind == "RSA"
    assert second.expires == oracle.load_pem_x509_certificate(authority).not_valid_after_utc.timestamp()


def test_a_certificate_of_no_version_there_is_cannot_be_used(files: Files) -> None:
    """Though OpenSSL takes it."""
    files.write()
    said = Said()
    held = files.read(said)
    third, fifth = b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"
    encoded = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    assert third in encoded
    files.certificate.write_text(ssl.DER_cert_to_PEM_cert(encoded.replace(third, fifth, 1)))
    with pytest.raises(UnusableCertificate, match="4 is not a valid X509 version"):
        files.read(Said())
    assert held.expiry() == {SERVER: LATE.timestamp()}
    assert [event for event, _ in said.lines] == ["certificate_unusable"]


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_clients_can_use_every_kind_of_key_that_is_taken(kind: str, files: Files) -> None:
    files.write(kind)
    with LiveServer("--health-port", "0", *files.flags, wait=False) as server:
        poll(lambda: server.log_lines("serving") or server.log_lines("failed"), "start", 240)
        port = server.address.rpartition(":")[2]
        assert called(port, files.certificate.read_bytes()) == [-0.5, 0.5]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_refused(kind: str, files: Files) -> None:
    files.write(kind)
    with pytest.raises(UnusableCertificate) as caught:
        files.read(Said())
    assert str(caught.value).endswith(f"{files.certificate}: its key is of kind {kind}; must be RSA, P-256 or P-384")


@pytest.mark.parametrize("kind", OTHERS)
def test_which_grpc_s_clients_cannot_use(kind: str, files: Files) -> None:
    """Were that to change, so should KEY_KINDS."""
    files.write(kind)
    identity = (files.key.read_bytes(), files.certificate.read_bytes())
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([identity]))
    except RuntimeError:
        return  # nor can its servers
    server.start()
    with pytest.raises(grpc.RpcError) as caught:
        called(str(port), files.certificate.read_bytes())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    server.stop(None).wait()


GARBLED = "-----BEGIN {0}-----\nbm90aGluZw==\n-----END {0}-----\n"


def swapped(files: Files) -> None:
    certificate, key = files.certificate.read_bytes(), files.key.read_bytes()
    files.certificate.write_bytes(key)
    files.key.write_bytes(certificate)


def with_the_key_of(kind: str, files: Files) -> None:
    certificate = files.certificate.read_bytes()
    files.write(kind)
    files.certificate.write_bytes(certificate)


def with_an_encrypted_key(files: Files) -> None:
    key: Any = serialization.load_pem_private_key(files.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


OF_CERTIFICATE, OF_KEY = (
    "--tls-certificate (PKPO_TLS_CERTIFICATE): {0}/tls.crt: ",
    "--tls-key (PKPO_TLS_KEY): {0}/tls.key: ",
)
OF_CLIENT_CA = "--tls-client-ca (PKPO_TLS_CLIENT_CA): {0}/ca.crt: "
UNUSABLE: list[tuple[str, Callable[[Files], Any]]] = [
    (OF_CERTIFICATE + "No such file or directory", lambda files: files.certificate.unlink()),
    (OF_KEY + "No such file or directory", lambda files: files.key.unlink()),
    (OF_CLIENT_CA + "No such file or directory", lambda files: files.client_ca.unlink()),
    (OF_CERTIFICATE + "holds no certificate (PEM)", lambda files: files.certificate.write_text("nothing")),
    (OF_CERTIFICATE + "holds no certificate (PEM), but a private key", swapped),
    (OF_KEY + "holds no private key (PEM)", lambda files: files.key.write_text("nothing")),
    (OF_KEY + "holds no private key (PEM), but a certificate", lambda files: swapped_in(files.key, files.certificate)),
    (OF_KEY + "its private key cannot be read", lambda files: files.key.write_text(GARBLED.format("PRIVATE KEY"))),
    (OF_KEY + "its private key is encrypted; it must not be", with_an_encrypted_key),
    (
        OF_KEY + "its private key does not belong to the certificate in {0}/tls.crt",
        lambda files: with_the_key_of("P-256", files),
    ),
    (
        OF_KEY + "its private key does not belong to the certificate in {0}/tls.crt",
        lambda files: with_the_key_of("RSA", files),
    ),
    (
        OF_CERTIFICATE + "a certificate cannot be read: ",
        lambda files: files.certificate.write_text(GARBLED.format("CERTIFICATE")),
    ),
    (OF_CLIENT_CA + "holds no certificate (PEM)", lambda files: files.client_ca.write_bytes(b"")),
    (
        OF_CLIENT_CA + "holds no certificate (PEM), but a private key",
        lambda files: swapped_in(files.client_ca, files.key),
    ),
    (
        OF_CLIENT_CA + "a certificate cannot be read: ",
        lambda files: files.client_ca.write_text(GARBLED.format("CERTIFICATE")),
    ),
]


def swapped_in(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(("said", "breaking"), UNUSABLE)
def test_what_cannot_be_used_is_said_by_its_setting_and_file(
    said: str, breaking: Callable[[Files], Any], files: Files
) -> None:
    """At the start, and in the log when the files were good before."""
    files.write()
    files.client_ca.write_bytes(files.certificate.read_bytes())
    log = Said()
    held = files.read(log, client_ca=True)
    breaking(files)
    wanted = said.format(files.certificate.parent)
    with pytest.raises(UnusableCertificate) as caught:
        files.read(Said(), client_ca=True)
    assert str(caught.value).startswith(wanted)
    if not wanted.endswith(": "):
        assert str(caught.value) == wanted
    assert held._changed() is None
    assert log.lines == [
        ("certificate_unusable", {"message": f"{caught.value}; the former one stays in use"}),
    ]


@pytest.mark.parametrize("which", ["client_ca", "certificate"])
def test_the_log_names_what_changed(which: str, files: Files) -> None:
    """Though all files are replaced, as they are in the volume of a secret."""
    said = Said()
    files.write()
    files.client_ca.write_bytes(files.certificate.read_bytes())
    certificates = files.read(said, client_ca=True)
    changed = getattr(files, which)
    for path in (files.certificate, files.key, files.client_ca):
        new = path.with_suffix(".new")
        new.write_bytes(path.read_bytes() + (b"# renewed\n" if path == changed else b""))
        new.replace(path)
    assert certificates._changed() is not None
    assert said.lines == [("certificate_changed", {"paths": [str(changed)]})]


def test_files_that_are_replaced_while_they_are_read_are_read_again(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the key of one time is served with the certificate of another."""
    files.write()
    content, replaced = certificates._content, 0

    def replacing(name: str, path: Path, kind: str) -> bytes:
        nonlocal replaced
        found = content(name, path, kind)
        if path == files.certificate and replaced < 2:
            replaced += 1
            files.write()
        return found

    monkeypatch.setattr(certificates, "_content", replacing)
    read = files.read(Said())
    assert read._newest.contents == (files.certificate.read_bytes(), files.key.read_bytes())


def test_files_replaced_by_the_same_are_named_in_the_log(files: Files) -> None:
    said = Said()
    files.write()
    held = files.read(said)
    new = files.key.with_suffix(".new")
    swapped_in(new, files.key)
    new.replace(files.key)
    held._changed()
    assert said.lines == [("certificate_changed", {"paths": [str(files.key)]})]


def test_who_only_connects_has_no_work_done_for_a_key_that_does_not_fit(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection has the files looked at, before it has shown anything."""
    work: list[str] = []

    def count(place: Any, name: str) -> None:
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given: (work.append(name), real(*given))[1])

    count(Path, "read_bytes")
    count(ssl, "SSLContext")
    count(x509, "belong_together")
    monkeypatch.setattr(certificates, "TRYING_SECONDS", 3600.0)
    files.write("RSA")
    said = Said()
    held = files.read(said)
    with_the_key_of("RSA", files)
    work.clear()
    tried = ["read_bytes", "read_bytes", "SSLContext"]
    for _ in range(100):
        assert held._changed() is None
    assert work == [*tried, "belong_together"]
    held._tried -= certificates.TRYING_SECONDS
    for _ in range(100):
        assert held.expiry() == {SERVER: LATE.timestamp()}
    assert work == [*tried, "belong_together", *tried]
    # What is new is tried at once.
    files.write("RSA")
    assert held._changed() is not None
    assert [event for event, _ in said.lines] == ["certificate_unusable", "certificate_changed"]


def test_a_key_is_not_proved_sound_to_see_whose_it_is(files: Files) -> None:
    """That takes long, and every other thread waits meanwhile."""
    files.write("RSA")
    key: Any = serialization.load_pem_private_key(files.key.read_bytes(), None)
    numbers = key.private_numbers()
    unsound: Any = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d, numbers.dmp1, numbers.dmq1, numbers.iqmp - 1, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    written = unsound.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="Invalid private key"):
        serialization.load_pem_private_key(written, None)
    assert x509.belong_together(files.certificate.read_bytes(), written)


def test_an_expired_certificate_ends_the_start(files: Files) -> None:
    files.write(expires=BEGAN + timedelta(days=1))
    with LiveServer(*files.flags, wait=False) as server:
        assert server.process.wait(60) == 1
        (line,) = poll(lambda: server.log_lines("failed"), "line")
        assert line["message"].endswith(f"{files.certificate}: it expired on 2020-01-02T00:00:00+00:00")


def test_an_expired_certificate_does_not_replace_one_that_is_in_use(files: Files) -> None:
    said = Said()
    files.write()
    certificates = files.read(said)
    files.write(expires=BEGAN + timedelta(days=1))
    assert certificates._changed() is None
    assert certificates.expiry() == {SERVER: LATE.timestamp()}
    ((event, fields),) = said.lines
    assert event == "certificate_unusable"
    assert "it expired on 2020-01-02" in fields["message"]


def test_what_expires_soon_is_said(files: Files) -> None:
    said, soon = Said(), in_days(WARNING_DAYS - 1)
    files.write()
    files.client_ca.write_bytes(files.certificate.read_bytes())
    certificates = files.read(said, client_ca=True)
    assert said.lines == []
    files.write(expires=soon)
    with files.client_ca.open("ab") as more:  # beside the other one, which lasts
        more.write(files.certificate.read_bytes())
    files.write(expires=in_days(WARNING_DAYS + 1))
    assert certificates.expiry() == {
        SERVER: x509.certificates(files.certificate.read_bytes())[0].expires,
        CLIENT_CA: soon.timestamp(),
    }
    assert said.lines == [
        ("certificate_changed", {"paths": [str(files.certificate), str(files.key), str(files.client_ca)]}),
        ("certificate_expires", {"path": str(files.client_ca), "expires": soon.isoformat()}),
    ]


def test_what_was_seen_before_anyone_connected_is_shown_to_who_connects(files: Files) -> None:
    """Files are looked at for their expiry too; gRPC must be told all the same."""
    files.write()
    certificates = files.read(Said())
    files.write(expires=in_days(400))
    assert certificates.expiry()[SERVER] < LATE.timestamp()
    assert certificates._changed() is not None
    assert certificates._changed() is None


@pytest.mark.parametrize("workers", ["1", "2"])
def test_expiry_is_a_metric(workers: str, files: Files) -> None:
    files.write(expires=in_days(5))
    files.client_ca.write_bytes(trustme.CA().cert_pem.bytes())
    expires = x509.certificates(files.certificate.read_bytes())[0].expires
    authority = x509.certificates(files.client_ca.read_bytes())[0].expires
    flags = (*files.flags, "--tls-client-ca", str(files.client_ca), "--workers", workers)
    with LiveServer(*flags, wait=False) as server:
        poll(lambda: server.log_lines("serving") or server.log_lines("failed"), "start", 240)
        samples = server.metrics()
        assert samples['pkpo_certificate_expiry_timestamp_seconds{certificate="server"}'] == expires
        assert samples['pkpo_certificate_expiry_timestamp_seconds{certificate="client_ca"}'] == authority
        assert {line["path"] for line in server.log_lines("certificate_expires")} == {str(files.certificate)}
    assert expires > time.time()


@pytest.mark.parametrize("content", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----"])
def test_where_no_certificate_is_there_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="PEM"):
        x509.certificates(content)


def test_a_certificate_that_is_cut_short_is_an_error(files: Files) -> None:
    files.write()
    whole = ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    for length in (1, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match=r"(?i)parse"):
            x509.certificates(ssl.DER_cert_to_PEM_cert(whole[:length]).encode())
