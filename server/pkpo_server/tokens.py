"""Bearer tokens that are read again when their files change."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pkpo_server.logs import Log
from pkpo_server.secret_files import Signature, signature

_HEADER, _SCHEME = "authorization", "bearer "
LOOKING_SECONDS = 1.0
SHORTEST_TOKEN = 16
# Left over by editors and by those who write another file and rename it.
_NO_SECRETS = ("~", ".new", ".tmp", ".bak")


class UnusableTokens(Exception):
    """Tokens cannot be read, or there are none; the text says where."""


class Tokens:
    """The tokens that are let in.

    Args:
        path: a file of tokens, one a line, or a folder whose files (but for hidden and temporary ones) are such. Empty
            lines and those that begin with # are none.
        log: where a change is written.

    Raises:
        UnusableTokens: they cannot be read, one is too short, or there are none.
    """

    def __init__(self, path: Path, log: Log) -> None:
        self._path = path
        self._log = log
        # Digests under a key that nobody knows: how long a look-up takes tells nothing of the tokens.
        self._key = secrets.token_bytes(32)
        self._looked = time.monotonic()
        self._seen = self._complained = self._signature()
        self._digests = self._read()
        if not self._digests:
            raise UnusableTokens(f"{path} holds no token")

    def allow(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether a call with this metadata is let in."""
        self._look()
        given = next((value for key, value in metadata or () if key == _HEADER), "")
        if not isinstance(given, str) or given[: len(_SCHEME)].lower() != _SCHEME:
            return False
        return self._digest(given[len(_SCHEME) :].strip().encode()) in self._digests

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
            # Tried again at the next look, in case the files were only out of reach; said once.
            if seen != self._complained:
                self._log.error("tokens_unusable", message=f"{error}; the former ones stay in use")
            self._complained = seen
        else:
            self._seen = seen
            self._log.info("tokens_changed", path=str(self._path), tokens=len(self._digests))

    def _files(self) -> list[Path]:
        if not self._path.is_dir():
            return [self._path]
        # Hidden ones are how the volume of a secret is kept.
        return sorted(
            path
            for path in self._path.iterdir()
            if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_NO_SECRETS)
        )

    def _signature(self) -> tuple[tuple[Path, Signature], ...] | None:
        try:
            return tuple((path, signature(path)) for path in self._files())
        except OSError:
            return None

    def _read(self) -> frozenset[bytes]:
        try:
            return frozenset(self._digest(token) for path in self._files() for token in _tokens(path))
        except OSError as error:
            raise UnusableTokens(f"cannot read tokens from {self._path}: {error.strerror or error}") from error

    def _digest(self, token: bytes) -> bytes:
        return hmac.digest(self._key, token, "sha256")


def _tokens(path: Path) -> Iterator[bytes]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if len(token) < SHORTEST_TOKEN:
            raise UnusableTokens(f"{path}: line {number} has {len(token)} bytes; a token must have {SHORTEST_TOKEN}")
        yield token
