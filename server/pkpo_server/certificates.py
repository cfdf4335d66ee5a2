"""TLS: certificates that are read again when their files change."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from pkpo_server.logs import Log
from pkpo_server.secret_files import Signature, signature
from pkpo_server.settings import Settings


class UnusableCertificate(Exception):
    """A certificate, its key or the clients' CA cannot be used; the text says why."""


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
        self._paths = [path for path in (certificate, key, client_ca) if path is not None]
        self._log = log
        self._seen = self._complained = self._signature()
        self._first = self._configuration()

    @classmethod
    def of(cls, settings: Settings, log: Log) -> Certificates | None:
        """Those that are set; None where the server speaks plaintext. Raises as the constructor."""
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca, log)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that look at the files at every handshake. Connections that are open keep what they have."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._changed,  # type: ignore[arg-type]  # which may answer None
            require_client_authentication=len(self._paths) == 3,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        # In a thread of gRPC's. None keeps what there is.
        seen = self._signature()
        if seen == self._seen:
            return None
        try:
            configuration = self._configuration()
        except UnusableCertificate as error:
            # Tried again at the next handshake, in case the files were only out of reach; said once.
            if seen != self._complained:
                self._log.error("certificate_unusable", message=f"{error}; the former one stays in use")
            self._complained = seen
            return None
        self._seen = seen
        self._log.info("certificate_changed", path=str(self._paths[0]))
        return configuration

    def _signature(self) -> tuple[Signature, ...]:
        return tuple(signature(path) for path in self._paths)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *client_ca = self._paths
        try:
            # Checked here, since gRPC says nothing of what it cannot use.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key, password=_no_password)
            for path in client_ca:
                context.load_verify_locations(path)
            chain, key_bytes, *roots = (path.read_bytes() for path in self._paths)
        except (OSError, ValueError) as error:  # of which ssl.SSLError is one
            named = ", ".join(map(str, self._paths))
            raise UnusableCertificate(f"cannot use {named}: {error}") from error
        return grpc.ssl_server_certificate_configuration([(key_bytes, chain)], roots[0] if roots else None)


def _no_password() -> str:
    raise ValueError("the key is encrypted; it must not be")
