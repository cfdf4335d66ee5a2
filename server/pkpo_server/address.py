"""Where a server listens."""

from __future__ import annotations

import ipaddress
from pathlib import Path


class CannotListen(Exception):
    """An address cannot be listened on."""


def tcp_address(host: str, port: int) -> str:
    """host:port, as gRPC and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_address(path: Path) -> str:
    """The address of a unix socket, as gRPC writes it."""
    return f"unix:{path.absolute()}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
