"""Servers that do nothing but gRPC: what comes is sent back, under metadata as long as ours. With --work they do ours,
by the server's own codec.

python -m benchmarks.echo sync|asyncio|uvloop [--work] [--unix PATH]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc import aio

KINDS = ("sync", "asyncio", "uvloop")
OURS = "asyncio"  # what pkpo-server is
UNARY, STREAM = "/benchmarks.Echo/Unary", "/benchmarks.Echo/Stream"
MESSAGE_BYTES = 64 * 2**20
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)
NAMES = (("echo-server-version", "0.1.0"), ("echo-request-id", "0" * 32))
Answer = Callable[[bytes], bytes]


def main() -> None:
    """Serves until it is ended; tells its address on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--work", action="store_true")
    parser.add_argument("--unix")
    arguments = parser.parse_args()
    answer = _transformed() if arguments.work else _echoed
    address = f"unix:{arguments.unix}" if arguments.unix else "127.0.0.1:0"
    if arguments.kind == "sync":
        _serve_sync(answer, address)
    elif arguments.kind == "uvloop":
        import uvloop

        uvloop.run(_serve_asyncio(answer, address))
    else:
        asyncio.run(_serve_asyncio(answer, address))


def _echoed(message: bytes) -> bytes:
    return message


def _transformed() -> Answer:
    import pkpo_core
    from pkpo_server import metrics
    from pkpo_server.codec import Limits
    from pkpo_server.computation import Patience
    from pkpo_server.exchange import TRANSFORM, Request
    from pkpo_server.settings import Settings

    pkpo_core.compile_kernels()
    settings = Settings()
    limits = Limits(
        settings.max_message_bytes,
        settings.max_rewards,
        settings.max_group_size,
        settings.max_groups,
        settings.max_estimate_k,
    )

    def answer(message: bytes) -> bytes:
        request = Request(metrics.NO_VARIANT)
        return TRANSFORM.encode(TRANSFORM.read(message, limits, request).run(Patience(None)), request)

    return answer


def _serve_sync(answer: Answer, address: str) -> None:
    def unary(message: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(NAMES)
        return answer(message)

    def stream(messages: Iterator[bytes], _: Any) -> Iterator[bytes]:
        return map(answer, messages)

    server = grpc.server(ThreadPoolExecutor(os.cpu_count()), options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((_handler(unary, stream),))
    port = server.add_insecure_port(address)
    server.start()
    _tell(address, port)
    threading.Event().wait()


async def _serve_asyncio(answer: Answer, address: str) -> None:
    async def unary(message: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(NAMES)
        return answer(message)

    async def stream(messages: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            yield answer(message)

    server = aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((_handler(unary, stream),))
    port = server.add_insecure_port(address)
    await server.start()
    _tell(address, port)
    await server.wait_for_termination()


def _handler(unary: Any, stream: Any) -> grpc.GenericRpcHandler:
    service, method = UNARY[1:].split("/")
    return grpc.method_handlers_generic_handler(
        service,
        {
            method: grpc.unary_unary_rpc_method_handler(unary),
            STREAM.rpartition("/")[2]: grpc.stream_stream_rpc_method_handler(stream),
        },
    )


def _tell(address: str, port: int) -> None:
    print(address if address.startswith("unix:") else f"127.0.0.1:{port}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
