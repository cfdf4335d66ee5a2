"""TLS: certificates that are read again when their files change."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock

import grpc

from pkpo_server import x509
from pkpo_server.logs import Log
from pkpo_server.secret_files import Signature, signature
from pkpo_server.settings import Settings

# With any other, gRPC's clients cannot shake hands, and say no more than that the server is unavailable.
KEY_KINDS = ("RSA", "P-256", "P-384")
# From when on a certificate that is read is said to expire.
WARNING_DAYS = 14
# How often files are looked at, even if nobody connects.
LOOKING_SECONDS = 60.0
SERVER, CLIENT_CA = "server", "client_ca"


class UnusableCertificate(Exception):
    """A certificate, its key or the clients' CA cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """What files were found to hold: for gRPC, and when the certificates expire."""

    configuration: grpc.ServerCertificateConfiguration
    expiry: dict[str, float]


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

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        # In a thread of gRPC's. None keeps what there is.
        with self._lock:
            self._look()
            if self._shown is self._newest:
                return None
            self._shown = self._newest
            return self._shown.configuration

    def _look(self) -> None:
        seen = self._signature()
        if seen == self._seen:
            return
        try:
            self._newest = self._read()
        except UnusableCertificate as error:
            # Tried again at the next look, in case the files were only out of reach; said once.
            if seen != self._complained:
                self._log.error("certificate_unusable", message=f"{error}; the former one stays in use")
            self._complained = seen
            return
        self._seen = seen
        self._log.info("certificate_changed", path=str(self._certificate))
        self._warn()

    def _warn(self) -> None:
        paths = {SERVER: self._certificate, CLIENT_CA: self._client_ca}
        for name, seconds in self._newest.expiry.items():
            if seconds < time.time() + WARNING_DAYS * 86400:
                self._log.warning("certificate_expires", path=str(paths[name]), expires=_written(seconds))

    def _signature(self) -> tuple[Signature, ...]:
        return tuple(signature(path) for path in self._paths)

    def _read(self) -> _Identity:
        try:
            # Checked here, since gRPC says nothing of what it cannot use.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
            chain, key = self._certificate.read_bytes(), self._key.read_bytes()
            roots = self._client_ca.read_bytes() if self._client_ca is not None else None
            own, *_ = x509.certificates(chain)
            expiry = {SERVER: own.expires}
            if roots is not None:
                expiry[CLIENT_CA] = min(each.expires for each in x509.certificates(roots))
        except (OSError, ValueError) as error:  # of which ssl.SSLError is one
            named = ", ".join(map(str, self._paths))
            raise UnusableCertificate(f"cannot use {named}: {error}") from error
        if own.key_kind not in KEY_KINDS:
            accepted = f"{', '.join(KEY_KINDS[:-1])} or {KEY_KINDS[-1]}"
            raise UnusableCertificate(
                f"cannot use {self._certificate}: its key is of kind {own.key_kind}; must be {accepted}"
            )
        if own.expires <= time.time():
            raise UnusableCertificate(f"cannot use {self._certificate}: it expired on {_written(own.expires)}")
        return _Identity(grpc.ssl_server_certificate_configuration([(key, chain)], roots), expiry)


def _no_password() -> str:
    raise ValueError("the key is encrypted; it must not be")


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
