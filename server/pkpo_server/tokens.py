"""Bearer tokens that are read again when their files change."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pkpo_server.grants import Grant, MalformedGrant, grant_of
from pkpo_server.logs import Log
from pkpo_server.refusal import Unauthenticated
from pkpo_server.secret_files import Signature, signature

_HEADER, _SCHEME = "authorization", "bearer"
LOOKING_SECONDS = 1.0
SHORTEST_TOKEN = 16
# Left over by editors and by those who write another file and rename it.
_NO_SECRETS = ("~", ".new", ".tmp", ".bak")


Metadata = Iterable[tuple[str, str | bytes]]


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
        self._failing = False
        self._grants = self._read()
        if not self._grants:
            raise UnusableTokens(f"{path} holds no token")

    def grant(self, metadata: Metadata | None) -> Grant | None:
        """What a call with this metadata may do; None where it is not let in: `why_refused` says why."""
        self.look()
        token = _token(metadata)
        return None if token is None else self._grants.get(self._digest(token))

    def look(self) -> None:
        """Takes up what has changed, where the last look was a while ago."""
        now = time.monotonic()
        if now - self._looked < LOOKING_SECONDS:
            return
        self._looked = now
        seen = self._signature()
        # What could not be used may be out of reach while it is what it was.
        if seen == self._seen and not self._failing:
            return
        try:
            grants = self._read()
        except UnusableTokens as error:
            # Tried again at the next look; said once.
            if seen != self._complained or not self._failing:
                self._log.error("tokens_unusable", message=f"{error}; the former ones stay in use")
            self._complained, self._failing = seen, True
            return
        if not grants:
            self._log.error("tokens_emptied", path=str(self._path), message="holds no token; nobody is let in")
        elif self._failing and grants == self._grants:
            self._log.info("tokens_usable", path=str(self._path), tokens=len(grants))
        else:
            self._log.info("tokens_changed", path=str(self._path), tokens=len(grants))
        self._grants, self._seen, self._failing = grants, seen, False

    @property
    def unusable(self) -> bool:
        """Whether the files could not be used at the last look, or held no token."""
        return self._failing or not self._grants

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


def why_refused(metadata: Metadata | None) -> str:
    """Why a call with this metadata is not let in: a cause of Unauthenticated."""
    if not _headers(metadata):
        return Unauthenticated.NO_TOKEN
    return Unauthenticated.MALFORMED if _token(metadata) is None else Unauthenticated.UNKNOWN


def _token(metadata: Metadata | None) -> bytes | None:
    """The one that the call carries; None where there is none, or more than one."""
    headers = _headers(metadata)
    if len(headers) != 1 or not isinstance(headers[0], str):
        return None
    scheme, _, rest = headers[0].partition(" ")
    token = rest.lstrip(" ")
    return token.encode() if scheme.lower() == _SCHEME and token and " " not in token else None


def _headers(metadata: Metadata | None) -> list[str | bytes]:
    return [value for key, value in metadata or () if key == _HEADER]


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
            raise UnusableTokens(f"{place} has a token of {len(token)} bytes; must be at least {SHORTEST_TOKEN}")
        try:
            yield place, token, grant_of(word.decode("ascii", "replace") for word in words)
        except MalformedGrant as error:
            raise UnusableTokens(f"{place}: {error}") from error
