"""The health probe of containers: exit status 0 where a server answers that it is SERVING.

    python -m pkpo_server.probe [--within SECONDS] [ADDRESS]

It runs every few seconds beside the server, on the server's processors, so it imports gRPC and nothing else: the two
messages of grpc.health.v1.Health/Check are short enough to be written here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

DEADLINE_SECONDS = 2.0
PAUSE_SECONDS = 0.5
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 50051
# Who listens everywhere is asked here.
_LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_HELP = """host:port or unix:PATH, in plaintext. By itself what the server's variables say: PKPO_HEALTH_HOST and
PKPO_HEALTH_PORT where that port is set, else PKPO_UNIX_SOCKET, else PKPO_HOST and PKPO_PORT (default: %(default)s)"""
_CHECK = "/grpc.health.v1.Health/Check"
_SERVER_AS_A_WHOLE = b""
_SERVING = b"\x08\x01"  # field 1, a number: 1


def main() -> int:
    """Probes the address that the command line names, and returns the exit status."""
    default = _address(os.environ)
    parser = argparse.ArgumentParser("python -m pkpo_server.probe", description="Exits with 0 where a server serves.")
    parser.add_argument("address", nargs="?", default=default, help=_HELP)
    parser.add_argument(
        "--within",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="ask again until it serves, for at most so long (default: ask once)",
    )
    given = parser.parse_args()
    address, last = given.address, time.monotonic() + given.within
    # One line of ours says what is wrong; gRPC's C core, which reads this as it is loaded, would add some of its own.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    complaint = _complaint(address)
    while complaint is not None and time.monotonic() + PAUSE_SECONDS <= last:
        time.sleep(PAUSE_SECONDS)
        complaint = _complaint(address)
    if complaint is None:
        return 0
    print(f"{address}: {complaint}", file=sys.stderr)
    return 1


def _address(environment: Mapping[str, str]) -> str:
    """Where a server with this environment, and no flags, answers for its health."""
    health_port, path = environment.get("PKPO_HEALTH_PORT"), environment.get("PKPO_UNIX_SOCKET")
    if health_port is None and path is not None:
        return f"unix:{path}"
    prefix = "PKPO_" if health_port is None else "PKPO_HEALTH_"
    host = environment.get(f"{prefix}HOST", DEFAULT_HOST)
    host = _LOOPBACKS.get(host, host)
    port = environment.get(f"{prefix}PORT", DEFAULT_PORT)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _complaint(address: str) -> str | None:
    import grpc

    # A proxy that the environment names is for what is far away.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check: Any = channel.unary_unary(_CHECK)
        try:
            answer = check(_SERVER_AS_A_WHOLE, timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    return None if answer == _SERVING else "NOT_SERVING"


if __name__ == "__main__":
    sys.exit(main())
