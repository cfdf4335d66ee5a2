"""Where a server listens."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pkpo_server.logs import Log
from pkpo_server.settings import Settings, called, unknown_variables


class CannotListen(Exception):
    """An address cannot be listened on; the text says which setting, and why."""


def tcp_address(host: str, port: int) -> str:
    """host:port, as gRPC and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_address(path: Path) -> str:
    """The address of a unix socket, as gRPC writes it."""
    return f"unix:{path.absolute()}"


def cannot_listen(prefix: str, host: str, port: int, error: OSError | UnicodeError) -> CannotListen:
    """What the system's refusal of an address means, in words.

    Args:
        prefix: of the two settings: "", "health_" or "metrics_" before `host` and `port`.
        host, port: what was asked for.
        error: of looking the host up, or of binding to it.
    """
    name, why = f"{prefix}port", str(error)
    if isinstance(error, UnicodeError):
        name, why = f"{prefix}host", "it can be no host's name"
    elif isinstance(error, socket.gaierror):
        name, why = f"{prefix}host", error.strerror or why
    elif error.errno == errno.EADDRNOTAVAIL:
        name, why = f"{prefix}host", f"{host} is no address of this machine"
    elif error.errno == errno.EADDRINUSE:
        why = "it is in use"
    else:
        why = error.strerror or why
    return CannotListen(f"{called(name)}: cannot listen on {tcp_address(host, port)}: {why}")


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that holds an address and does not listen on it.

    Args:
        shared: whether others may hold it too, and listen.

    Raises:
        OSError: the host is unknown or not this machine's, or the port is in use or kept for others.
        UnicodeError: the host can be no name of one, such as `a..b`.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    held = socket.socket(family, kind, protocol)
    try:
        # Connections of a server that is gone linger on the port; gRPC's own sockets pass over them too.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError:
        held.close()
        raise
    return held


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


def warn_where_metrics_open(log: Log, settings: Settings, address: str) -> None:
    """Writes a warning where more than this machine can reach the metrics, which ask for no token."""
    if not _is_loopback(settings.metrics_host):
        message = "metrics, with the ids and the pass@k of runs, are open to everyone who can reach them"
        log.warning("insecure", address=address, message=message)


def warn_of_unknown_variables(log: Log) -> None:
    """Writes a warning for each PKPO_* variable of this process that nobody reads: it may be one mistyped."""
    for name, nearest in unknown_variables(os.environ).items():
        message = f"{name} is no setting" + (f"; {nearest} is" if nearest else "")
        log.warning("variable_unknown", variable=name, message=message)


def _is_loopback(host: str) -> bool:
    # A name other than localhost may be anything.
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
