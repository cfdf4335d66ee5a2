"""Who is calling, and whom it trusts, as files say it: the secrets of a pod, say."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import grpc

from pkpo_client.errors import refused


@dataclass(frozen=True)
class IdentityFiles:
    """Paths; empty where there is none.

    Attributes:
        ca_file: certificate authorities in PEM, of a service that is reached by TLS; read when the client is made.
        certificate_file, key_file: the caller's own, in PEM, where the service asks for them; read then as well.
        token_file: that holds the bearer token; a change counts from the next call on.
    """

    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    token_file: str = ""

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For `Client(credentials=...)`; None for plaintext.

        Raises:
            InvalidArgument: a file cannot be read, or a key is given without its certificate.
        """
        if bool(self.certificate_file) != bool(self.key_file):  # gRPC would end the process
            raise refused("key_file", "is given without certificate_file, or the other way round; must be both or none")
        ca, key, certificate = (self._content(name) for name in ("ca_file", "key_file", "certificate_file"))
        return grpc.ssl_channel_credentials(ca, key, certificate) if ca or key else None

    def token(self) -> Path | None:
        """For `Client(token=...)`. Raises InvalidArgument where the file cannot be read."""
        return None if self._content("token_file") is None else Path(self.token_file)

    def _content(self, name: str) -> bytes | None:
        path = getattr(self, name)
        if not path:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise refused(name, f"is {path!r:.200}; must be a file that can be read: {error.strerror}") from error


#: The names of the files, which are also those of settings and flags.
NAMES = tuple(each.name for each in fields(IdentityFiles))
