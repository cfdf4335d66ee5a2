"""The client of pkpo: rewards of groups of samples in, advantages that optimise pass@k out.

    from pkpo_client import Client

    with Client("localhost:50051") as pkpo:
        advantages = pkpo.transform(rewards, k=8)  # (groups, n) in, the same shape, kind and dtype out

`AsyncClient` and `LocalClient` have the same calls, on an event loop and in this process.
"""

from pkpo import __version__
from pkpo_client import schedules
from pkpo_client.async_client import AsyncClient
from pkpo_client.async_stream import AsyncStream
from pkpo_client.client import Client
from pkpo_client.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    InvalidArgument,
    LocalComputingMissing,
    Overloaded,
    PermissionDenied,
    PkpoError,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unreachable,
    Violation,
)
from pkpo_client.local_client import LocalClient, LocalStream
from pkpo_client.results import GroupStatus, Limits, MaxAtK, ServerInfo, TransformResult, VariantInfo
from pkpo_client.stream import Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Client",
    "ClientClosed",
    "DeadlineExceeded",
    "GroupStatus",
    "InvalidArgument",
    "Limits",
    "LocalClient",
    "LocalComputingMissing",
    "LocalStream",
    "MaxAtK",
    "Overloaded",
    "PermissionDenied",
    "PkpoError",
    "ServerError",
    "ServerInfo",
    "Stream",
    "TransformResult",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "VariantInfo",
    "Violation",
    "__version__",
    "schedules",
]
