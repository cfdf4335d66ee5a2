"""Bearer tokens that are read again when their files change."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pkpo_server.grants import Grant, MalformedGrant, grant_of
from pkpo_server.logs import Log
from pkpo_server.secret_files import Signature, signature

_HEADER, _SCHEME = "authorization", "bearer "
LOOKING_SECONDS = 1.0
SHORTEST_TOKEN = 16
# Left over by editors and by those who write another file and rename it.
_NO_SECRETS = ("~", ".new", ".tmp", ".bak")


class UnusableTokens(Exception):
    """Tokens cannot be read, or there are none; the text says where, and shows none."""


class Tokens:
    """The tokens that are let in, each with its grant.

    Args:
        path: a file of tokens, one a line, or a folder whose files (but for hidden and temporary ones) are such. After
            a token its line may hold `name=NAME` and `runs=PATTERN,PATTERN`: see Grant. Empty lines and those that
            begin with # are none.
        log: where a change is written.

    Raises:
        UnusableTokens: they cannot be read, a line cannot be one, a token has two grants, or there are none.
    """

    def __init__(self, path: Path, log: Log) -> None:
        self._path = path
        self._log = log
        # Digests under a key that nobody knows: how long a look-up takes tells nothing of the tokens.
        self._key = secrets.token_bytes(32)
        self._looked = time.monotonic()
        self._seen = self._complained = self._signature()
        self._grants = self._read()
        if not self._grants:
            raise UnusableTokens(f"{path} holds no token")

    def grant(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> Grant | None:
        """What a call with this metadata may do; None where it is not let in."""
        self._look()
        given = next((value for key, value in metadata or () if key == _HEADER), "")
        if not isinstance(given, str) or given[: len(_SCHEME)].lower() != _SCHEME:
            return None
        return self._grants.get(self._digest(given[len(_SCHEME) :].strip().encode()))

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOKING_SECONDS:
            return
        self._looked = now
        seen = self._signature()
        if seen == self._seen:
            return
        try:
            self._grants = self._read()
        except UnusableTokens as error:
            # Tried again at the next look, in case the files were only out of reach; said once.
            if seen != self._complained:
                self._log.error("tokens_unusable", message=f"{error}; the former ones stay in use")
            self._complained = seen
        else:
            self._seen = seen
            self._log.info("tokens_changed", path=str(self._path), tokens=len(self._grants))

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

    def _read(self) -> dict[bytes, Grant]:
        grants: dict[bytes, Grant] = {}
        try:
            for path in self._files():
                for place, token, grant in _lines(path):
                    # One of them would be wrong, and which of them counted would depend on the order of files.
                    if grants.setdefault(self._digest(token), grant) != grant:
                        raise UnusableTokens(f"{place} has a token that an earlier line has with other words after it")
        except OSError as error:
            raise UnusableTokens(f"cannot read tokens from {self._path}: {error.strerror or error}") from error
        return grants

    def _digest(self, token: bytes) -> bytes:
        return hmac.digest(self._key, token, "sha256")


def _lines(path: Path) -> Iterator[tuple[str, bytes, Grant]]:
    """Of each line that is a token: where it is, the token and its grant."""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        token, *words = line.split()
        place = f"{path}: line {number}"
        if token.startswith((b"name=", b"runs=")):
            raise UnusableTokens(f"{place} begins with name= or runs=; must begin with the token")
        if len(token) < SHORTEST_TOKEN:
            raise UnusableTokens(f"{place} has {len(token)} bytes; a token must have {SHORTEST_TOKEN}")
        try:
            yield place, token, grant_of(word.decode("ascii", "replace") for word in words)
        except MalformedGrant as error:
            raise UnusableTokens(f"{place}: {error}") from error
