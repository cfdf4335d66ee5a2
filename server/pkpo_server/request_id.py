"""What a request is called in logs and metadata: the caller's W3C trace id where it sends one."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[str, str | None]:
    """The request id, and the traceparent it was taken from if there was a valid one."""
    for key, value in metadata:
        if key == "traceparent" and isinstance(value, str):
            found = _TRACEPARENT.fullmatch(value)
            if found:
                return found[1], value[:55]
    return f"{random.getrandbits(128):032x}", None
