"""Bearer tokens that are read again when their files change."""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path

from pkpo_server.logs import Log
from pkpo_server.secret_files import Signature, signature

HEADER = "authorization"
_SCHEME = "bearer "
LOOKING_SECONDS = 1.0


class UnusableTokens(Exception):
    """Tokens cannot be read, or there are none; the text says where."""


class Tokens:
    """The tokens that are let in.

    Args:
        path: a file of tokens, one a line, or a folder whose files (but for hidden ones) are such.
        log: where a change is written.

    Raises:
        UnusableTokens: they cannot be read, or there are none.
    """

    def __init__(self, path: Path, log: Log) -> None:
        self._path = path
        self._log = log
        self._looked = time.monotonic()
        self._seen = self._signature()
        self._digests = self._read()
        if not self._digests:
            raise UnusableTokens(f"{path} holds no token")

    def allow(self, authorization: str | None) -> bool:
        """Whether a call with this header is let in."""
        self._look()
        if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
            return False
        given = _digest(authorization[len(_SCHEME) :].strip().encode())
        # All are compared, and as digests: the time says neither how much is right nor of which.
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOKING_SECONDS:
            return
        self._looked = now
        seen = self._signature()
        if seen == self._seen:
            return
        try:
            self._digests = self._read()
        except UnusableTokens as error:
            self._log.error("tokens_unusable", message=f"{error}; the former ones stay in use")
        else:
            self._log.info("tokens_changed", path=str(self._path), tokens=len(self._digests))
        self._seen = seen

    def _files(self) -> list[Path]:
        if not self._path.is_dir():
            return [self._path]
        # Hidden ones are how the volume of a secret is kept.
        return sorted(path for path in self._path.iterdir() if not path.name.startswith("."))

    def _signature(self) -> tuple[tuple[Path, Signature], ...] | None:
        try:
            return tuple((path, signature(path)) for path in self._files())
        except OSError:
            return None

    def _read(self) -> list[bytes]:
        try:
            lines = [line.strip() for path in self._files() for line in path.read_bytes().splitlines()]
        except OSError as error:
            raise UnusableTokens(f"cannot read tokens from {self._path}: {error.strerror or error}") from error
        return [_digest(line) for line in lines if line]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
