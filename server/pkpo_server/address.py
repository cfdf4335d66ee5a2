"""Where a server listens."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pkpo_server.logs import Log


class CannotListen(Exception):
    """An address cannot be listened on."""


def tcp_address(host: str, port: int) -> str:
    """host:port, as gRPC and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_address(path: Path) -> str:
    """The address of a unix socket, as gRPC writes it."""
    return f"unix:{path.absolute()}"


def warn_where_open(log: Log, host: str, address: str) -> None:
    """Writes a warning where more than this machine can reach the address."""
    if not _is_loopback(host):
        message = "open to everyone who can reach it, without TLS or authentication"
        log.warning("insecure", address=address, message=message)


def _is_loopback(host: str) -> bool:
    # A name other than localhost may be anything.
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
