"""The channel to the service: where it is, who is calling, and what gRPC does unasked.

gRPC itself waits for a connection, balances over all addresses of a name, and notices dead connections. All of it is
said here, once. It also makes calls again that no server has seen; of the others that fail `attempts` decides.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from pkpo_client.errors import ClientClosed, refused
from pkpo_client.splitting import LARGEST_MESSAGE_BYTES
from pkpo_client.token_file import TokenFile, checked_token

VERSION_METADATA = "pkpo-server-version"

_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")
_DNS = re.compile(r"dns:(//[^/\s]*/)?(?P<name>\S+)")
_IP = re.compile(r"ipv[46]:(?P<name>\S+)")
_UNIX = re.compile(r"unix(-abstract)?:\S+")
_OTHER_RESOLVERS = ("xds:", "google-c2p:", "vsock:")

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{"name": [{}], "waitForReady": True}],
}

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Names are not asked for a service config of their own: this one is what the documentation promises.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    # gRPC makes a call again only where it fits this buffer; its default of 256 KiB would leave large batches out.
    ("grpc.per_rpc_retry_buffer_size", LARGEST_MESSAGE_BYTES + 2**16),
    # A peer that vanished without a word is noticed within the default timeout, while calls are under way.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    # gRPC heeds the time above where the other machine is gone. Where only the process stands still, it heeds this one.
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that comes back is found within seconds; gRPC's default is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # Servers may all be replaced by others within gRPC's default of 30 s, and calls would wait for addresses that long.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
)


@dataclass(frozen=True)
class Endpoint:
    """Where the service is, and who is calling.

    Args:
        address: "host:port", "dns:///host:port" (all addresses of the name), or "unix:/path".
        credentials: of TLS, from `grpc.ssl_channel_credentials`; None for plaintext.
        token: sent as `authorization: Bearer <token>` with every call. Never in plaintext off this machine. A path is
            that of a file which holds it; a change of the file counts from the next call on.

    Raises:
        InvalidArgument: `address` is none, `token` cannot be one, or it would travel in the clear.
    """

    address: str
    credentials: grpc.ChannelCredentials | None = None
    token: str | os.PathLike[str] | None = field(default=None, repr=False)
    _file: TokenFile | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        here = _is_this_machine(self.address)
        if self.credentials is not None and not isinstance(self.credentials, grpc.ChannelCredentials):
            raise refused("credentials", f"is a {type(self.credentials).__name__}; must be grpc.ChannelCredentials")
        if self.token is None:
            return
        if isinstance(self.token, os.PathLike):
            object.__setattr__(self, "_file", TokenFile(self.token))
        else:
            checked_token(self.token)
        if self.credentials is None and not here:
            exposed = refused("token", f"would travel in plaintext to {self.address}")
            exposed.advice = "; give credentials=grpc.ssl_channel_credentials()"
            raise exposed

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries from now on."""
        token = self.token if self._file is None else self._file.token()
        return () if token is None else (("authorization", f"Bearer {token}"),)

    def channel(self) -> grpc.Channel:
        """A channel to it."""
        if self.credentials is None:
            return grpc.insecure_channel(self.address, options=self._options())
        return grpc.secure_channel(self.address, self.credentials, options=self._options())

    def aio_channel(self) -> grpc.aio.Channel:
        """A channel to it, of the running event loop."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.address, options=self._options())
        return grpc.aio.secure_channel(self.address, self.credentials, options=self._options())

    def _options(self) -> tuple[tuple[str, Any], ...]:
        # A proxy that leads out of the cluster cannot lead back to this machine.
        return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if _is_this_machine(self.address) else _OPTIONS


@dataclass(frozen=True)
class Process:
    """The process that connected: gRPC does not survive a fork."""

    pid: int = field(default_factory=os.getpid)

    def check(self) -> None:
        """Raises ClientClosed in any other process."""
        if os.getpid() != self.pid:
            raise ClientClosed(
                f"this client connected in process {self.pid}, of which this one ({os.getpid()}) is a fork, and gRPC "
                "does not survive a fork. Make or first use the client after forking, or start processes by spawn"
            )


def server_version(metadata: Any) -> str | None:
    """The server's version in the metadata of a call, or None where they do not say."""
    for key, value in metadata or ():
        if key == VERSION_METADATA:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return None


def _is_this_machine(address: Any) -> bool:
    """Whether `address`, which is checked, does not leave this machine."""
    if not isinstance(address, str):
        raise refused("address", f"is {address!r}; must be a string such as 'localhost:50051'")
    if _UNIX.fullmatch(address):
        return True
    if address.startswith(_OTHER_RESOLVERS):
        return False
    named = _DNS.fullmatch(address) or _IP.fullmatch(address)
    targets = (named["name"] if named else address).split(",")
    loopback = [_is_loopback(target, address) for target in targets]  # each is checked, not only those up to the first
    return all(loopback)


def _is_loopback(target: str, address: str) -> bool:
    if "://" in address.removeprefix("dns://"):
        raise refused(
            "address", f"is {address!r}; a gRPC address is no URL: write host:port, such as 'localhost:50051'"
        )
    parsed = _HOST_AND_PORT.fullmatch(target)
    if parsed is None or not 0 < int(parsed["port"]) < 2**16:
        raise refused(
            "address",
            f"is {address!r}; must be 'host:port' with a port from 1 to 65535, 'dns:///host:port' or 'unix:/path'",
        )
    host = parsed["host"].strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["VERSION_METADATA", "Endpoint", "Process", "server_version"]
