"""A bearer token in a file that is replaced while the client runs, as the volume of a secret is."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from pkpo_client.errors import InvalidArgument, refused

logger = logging.getLogger("pkpo_client")

_TOKEN = re.compile(r"[\x21-\x7e]+")
# Device, inode, change of content or mode, and size; None where there is no file.
_Signature = tuple[int, int, int, int, int] | None


def checked_token(token: object, where: str = "") -> str:
    """`token`, which can travel in metadata. Raises InvalidArgument, which does not show it."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise refused("token", f"is not shown{where}; must be one word of printable ASCII")
    return token


class TokenFile:
    """The token that a file holds now. Safe to use from any thread.

    Args:
        path: of a file that holds a token and nothing else.

    Raises:
        InvalidArgument: it cannot be read, or holds no token.
    """

    def __init__(self, path: os.PathLike[str]) -> None:
        self._path = Path(path)
        # The file is looked at before it is read, so that a change in between is found at the next look.
        self._seen = self._complained = self._signature()
        self._token = self._read()

    def token(self) -> str:
        """The token as of now; the last that could be used, where the file holds none for a while."""
        seen = self._signature()
        if seen != self._seen:
            try:
                self._token = self._read()
            except InvalidArgument as error:
                # Tried again at the next call; said once.
                if seen != self._complained:
                    logger.warning("%s; the token that was there before stays in use", error)
                self._complained = seen
            else:
                self._seen = seen
        return self._token

    def _signature(self) -> _Signature:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size

    def _read(self) -> str:
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise refused(
                "token", f"is {str(self._path)!r:.200}; must be a file that can be read: {error.strerror}"
            ) from error
        return checked_token(content.decode("ascii", "replace").strip(), f" ({self._path})")


__all__ = ["TokenFile", "checked_token"]
