"""Where a server listens."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pkpo_server.logs import Log
from pkpo_server.settings import Settings


class CannotListen(Exception):
    """An address cannot be listened on."""


def tcp_address(host: str, port: int) -> str:
    """host:port, as gRPC and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_address(path: Path) -> str:
    """The address of a unix socket, as gRPC writes it."""
    return f"unix:{path.absolute()}"


@lru_cache(maxsize=1024)  # as many connections as may well be open
def peer_host(peer: str) -> str:
    """The host of a caller as gRPC writes its address: of `ipv4:192.0.2.1:4242` the middle; "unix" of a unix socket."""
    family, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]).strip("[]") or family


def warn_where_open(log: Log, settings: Settings, address: str) -> None:
    """Writes a warning where more than this machine can reach the address, and not all is done about it."""
    if _is_loopback(settings.host):
        return
    known = settings.tokens is not None or settings.tls_client_ca is not None
    lacking = [
        *(["TLS"] if settings.tls_certificate is None else []),
        *([] if known else ["authentication"]),
    ]
    if lacking:
        message = f"open to everyone who can reach it, without {' or '.join(lacking)}"
        log.warning("insecure", address=address, message=message)


def _is_loopback(host: str) -> bool:
    # A name other than localhost may be anything.
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
