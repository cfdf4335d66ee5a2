"""TLS: certificates that are read again when their files change."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock

import grpc

from pkpo_server import x509
from pkpo_server.logs import Log
from pkpo_server.secret_files import Signature, signature
from pkpo_server.settings import Settings, called

# With any other, gRPC's clients cannot shake hands, and say no more than that the server is unavailable.
KEY_KINDS = ("RSA", "P-256", "P-384")
# From when on a certificate that is read is said to expire.
WARNING_DAYS = 14
# How often files are looked at, even if nobody connects.
LOOKING_SECONDS = 60.0
# How often files that cannot be used are tried again while they are the same: whoever opens connections has them looked
# at as often as they like.
TRYING_SECONDS = 1.0
# Of files that are replaced while they are read.
MOST_READINGS = 3
SERVER, CLIENT_CA = "server", "client_ca"
_CERTIFICATE, _PRIVATE_KEY = "certificate", "private key"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")


class UnusableCertificate(Exception):
    """A certificate, its key or the clients' CA cannot be used; the text says which setting and file, and why."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """What files were found to hold: for gRPC, when the certificates expire, and file by file."""

    configuration: grpc.ServerCertificateConfiguration
    expiry: dict[str, float]
    contents: tuple[bytes, ...] = field(repr=False)


class Certificates:
    """What the server shows, and whom it asks to show theirs.

    Args:
        certificate: PEM, the server's own first.
        key: PEM.
        client_ca: PEM of those who sign clients' certificates; None where clients need none.
        log: where a change is written.

    Raises:
        UnusableCertificate: what the files hold now cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None, log: Log) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._paths = [path for path in (certificate, key, client_ca) if path is not None]
        self._log = log
        # Looked at by the event loop, and by gRPC's threads.
        self._lock = Lock()
        self._seen = self._complained = self._signature()
        self._failing = False
        self._tried = time.monotonic()
        self._newest = self._shown = self._read()
        self._warn()

    @classmethod
    def of(cls, settings: Settings, log: Log) -> Certificates | None:
        """Those that are set; None where the server speaks plaintext. Raises as the constructor."""
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, log)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that look at the files at every handshake. Connections that are open keep what they have."""
        return grpc.dynamic_ssl_server_credentials(
            self._shown.configuration,
            self._changed,  # type: ignore[arg-type]  # which may answer None
            require_client_authentication=self._client_ca is not None,
        )

    def expiry(self) -> dict[str, float]:
        """When what the next handshake shows expires, in Unix seconds: SERVER, and the first of CLIENT_CA."""
        with self._lock:
            self._look()
            return self._newest.expiry

    @property
    def unusable(self) -> bool:
        """Whether the files could not be used at the last look."""
        return self._failing

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        # In a thread of gRPC's. None keeps what there is.
        with self._lock:
            self._look()
            if self._shown is self._newest:
                return None
            self._shown = self._newest
            return self._shown.configuration

    def _look(self) -> None:
        seen, now = self._signature(), time.monotonic()
        known = self._failing and seen == self._complained
        if seen == self._seen and not self._failing:
            return
        # What could not be used may be in reach again while it is what it was.
        if known and now - self._tried < TRYING_SECONDS:
            return
        self._tried, former = now, self._newest.contents
        try:
            self._newest = self._read(explained=not known)
        except UnusableCertificate as error:
            # Tried again; said once.
            if not known:
                self._log.error("certificate_unusable", message=f"{error}; the former one stays in use")
            self._complained, self._failing = seen, True
            return
        # The volume of a secret replaces all of its files where one has changed.
        changed = _differing(self._paths, former, self._newest.contents) or _differing(self._paths, self._seen, seen)
        self._seen = seen
        if self._failing and self._newest.contents == former:
            self._log.info("certificate_usable", paths=[str(path) for path in self._paths])
        else:
            self._log.info("certificate_changed", paths=changed)
        self._failing = False
        self._warn()

    def _warn(self) -> None:
        paths = {SERVER: self._certificate, CLIENT_CA: self._client_ca}
        for name, seconds in self._newest.expiry.items():
            if seconds < time.time() + WARNING_DAYS * 86400:
                self._log.warning("certificate_expires", path=str(paths[name]), expires=_written(seconds))

    def _signature(self) -> tuple[Signature, ...]:
        return tuple(signature(path) for path in self._paths)

    def _read(self, *, explained: bool = True) -> _Identity:
        """What the files hold, of one time: they are replaced together, and read one by one."""
        for _ in range(MOST_READINGS):
            before = self._signature()
            try:
                identity = self._read_once(explained=explained)
            except UnusableCertificate:
                if self._signature() == before:
                    raise
            else:
                if self._signature() == before:
                    return identity
        return self._read_once(explained=explained)

    def _read_once(self, *, explained: bool) -> _Identity:
        chain = _content("tls_certificate", self._certificate, _CERTIFICATE)
        key = _content("tls_key", self._key, _PRIVATE_KEY)
        own, *_ = _parsed("tls_certificate", self._certificate, chain)
        if own.key_kind not in KEY_KINDS:
            accepted = f"{', '.join(KEY_KINDS[:-1])} or {KEY_KINDS[-1]}"
            raise _unusable(
                "tls_certificate", self._certificate, f"its key is of kind {own.key_kind}; must be {accepted}"
            )
        if own.expires <= time.time():
            raise _unusable("tls_certificate", self._certificate, f"it expired on {_written(own.expires)}")
        self._require_pair(chain, key, explained=explained)
        expiry, contents = {SERVER: own.expires}, [chain, key]
        roots = None
        if self._client_ca is not None:
            roots = _content("tls_client_ca", self._client_ca, _CERTIFICATE)
            expiry[CLIENT_CA] = min(each.expires for each in _parsed("tls_client_ca", self._client_ca, roots))
            contents.append(roots)
        configuration = grpc.ssl_server_certificate_configuration([(key, chain)], roots)
        return _Identity(configuration, expiry, tuple(contents))

    def _require_pair(self, chain: bytes, key: bytes, *, explained: bool) -> None:
        # Checked here, since gRPC says nothing of what it cannot use.
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key, password=_no_password)
        except _Encrypted as error:
            raise _unusable("tls_key", self._key, "its private key is encrypted; it must not be") from error
        except ssl.SSLError as error:
            # OpenSSL names neither of the two, and to find out is work.
            why = self._why_no_pair(chain, key) if explained else None
            what = f"with {self._key}: {error.reason or error}"
            raise why or _unusable("tls_certificate", self._certificate, what) from error
        except OSError as error:
            raise _unusable("tls_certificate", self._certificate, f"with {self._key}: {error.strerror}") from error

    def _why_no_pair(self, chain: bytes, key: bytes) -> UnusableCertificate | None:
        try:
            together = x509.belong_together(chain, key)
        except ValueError:
            return _unusable("tls_key", self._key, "its private key cannot be read")
        if not together:
            what = f"its private key does not belong to the certificate in {self._certificate}"
            return _unusable("tls_key", self._key, what)
        return None


def _content(name: str, path: Path, kind: str) -> bytes:
    """What a file holds, which has blocks of that kind in PEM."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(name, path, error.strerror or str(error)) from error
    found = {
        known
        for block in _BLOCK.findall(content)
        for known in (_CERTIFICATE, _PRIVATE_KEY)
        if block.decode().lower().endswith(known)
    }
    if kind not in found:
        instead = f", but a {found.pop()}" if found else ""
        raise _unusable(name, path, f"holds no {kind} (PEM){instead}")
    return content


def _parsed(name: str, path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.certificates(pem)
    except ValueError as error:
        raise _unusable(name, path, f"a certificate cannot be read: {error}") from error


def _differing(paths: list[Path], before: Sequence[object], now: Sequence[object]) -> list[str]:
    return [str(path) for path, one, other in zip(paths, before, now, strict=True) if one != other]


def _unusable(name: str, path: Path, what: str) -> UnusableCertificate:
    return UnusableCertificate(f"{called(name)}: {path}: {what}")


class _Encrypted(Exception):
    """A key asks for a password."""


def _no_password() -> str:
    raise _Encrypted


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
