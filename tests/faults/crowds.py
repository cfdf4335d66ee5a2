"""Crowds that would fill a server: many connections, each of which says the same and reads nothing.

They come from an address of their own, and speak HTTP/2 by hand, as no client would.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from google.protobuf.message import Message

from fuzz.service import ESTIMATE, STREAM, TRANSFORM
from fuzz.sockets import CONTINUATION, DATA, HEADERS, PING, PREFACE, SERVICE, SETTINGS, frame, headers
from pkpo.v1 import reward_transform_pb2 as pb

MIB = 2**20
HOST = "127.0.0.3"
RST_STREAM, END_STREAM, END_HEADERS = 3, 1, 4
GREETING = PREFACE + frame(SETTINGS, 0, 0, b"")
STREAM_HEADERS = headers(f"/{SERVICE}/{STREAM}".encode())


def streams(number: int) -> bytes:
    """The headers of so many streams on one connection, on which no message comes."""
    return b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, STREAM_HEADERS) for i in range(number))


@contextmanager
def crowd(address: str, size: int, said: bytes, come_from: str = HOST) -> Iterator[list[socket.socket]]:
    """So many connections from an address, each of which says the same and reads nothing."""
    host, port = address.split(":")
    connections: list[socket.socket] = []

    def come(_: int) -> None:
        connection = socket.create_connection((host, int(port)), 60, source_address=(come_from, 0))
        connections.append(connection)
        # One that is read no further, or closed.
        connection.settimeout(2)
        with suppress(OSError):
            connection.sendall(said)

    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(come, range(size)))
        yield connections
    finally:
        for connection in connections:
            connection.close()


def literal(name: bytes, value: bytes, indexed: bool = False) -> bytes:
    """A header that is not compressed (RFC 7541, 6.2.1 and 6.2.2)."""
    return bytes([0x40 if indexed else 0]) + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, length = len(text) - 127, bytes([127])
    while rest >= 128:
        length, rest = length + bytes([rest % 128 + 128]), rest // 128
    return length + bytes([rest]) + text


def block(stream: int, fields: bytes, ends: bool = True) -> bytes:
    """The frames of a header block of any length."""
    pieces = [fields[i : i + 2**14] for i in range(0, len(fields), 2**14)]
    return b"".join(
        frame(CONTINUATION if i else HEADERS, END_HEADERS if ends and i == len(pieces) - 1 else 0, stream, piece)
        for i, piece in enumerate(pieces)
    )


MANY_HEADERS = b"".join(literal(b"x%d" % i, b"y") for i in range(20_000))
FLOODS = {
    "one large header": b"".join(block(2 * i + 1, headers() + literal(b"x", b"y" * 500_000)) for i in range(4)),
    "many headers": block(1, headers() + MANY_HEADERS),
    "headers without end": block(1, headers() + literal(b"x", b"y" * 100) * 40_000, ends=False),
    # One that is written once and said 15,000 times: 16 KiB that unpack to 60 MB.
    "packed headers": block(1, headers() + literal(b"x", b"y" * 4000, indexed=True) + b"\xbe" * 15_000),
    "pings": frame(PING, 0, 0, bytes(8)) * 5000,
    "settings": frame(SETTINGS, 0, 0, b"") * 20_000,
    "calls given up at once": b"".join(
        frame(HEADERS, END_HEADERS, 2 * i + 1, headers()) + frame(RST_STREAM, 0, 2 * i + 1, struct.pack(">I", 8))
        for i in range(1000)
    ),
}
GROUPS = pb.RewardGroups(f32=pb.FloatValues(values=[1.0] * 3500), group_size=2)


def called(method: str, stream: int, *messages: Message) -> bytes:
    """A call of 14 KiB a message, whose answers have 0.9 MiB each."""
    raws = [each.SerializeToString() for each in messages]
    return frame(HEADERS, END_HEADERS, stream, headers(f"/{SERVICE}/{method}".encode())) + b"".join(
        frame(DATA, END_STREAM if raw is raws[-1] else 0, stream, struct.pack(">BI", 0, len(raw)) + raw) for raw in raws
    )


def _request(run_id: str = "", groups: pb.RewardGroups = GROUPS) -> pb.TransformRequest:
    return pb.TransformRequest(k=[1], estimate_k=range(1, 33), groups=groups, run_id=run_id)


ESTIMATES = b"".join(called(ESTIMATE, i, pb.EstimateRequest(k=range(1, 33), groups=GROUPS)) for i in (1, 3, 5, 7))
OF_MANY_RUNS = b"".join(called(TRANSFORM, i, _request(f"run-{i}")) for i in range(1, 200, 2))
# Enough for a thread to answer it, where that was answered at once; and for a frame still.
MORE_GROUPS = pb.RewardGroups(f32=pb.FloatValues(values=[1.0] * 3900), group_size=2)
ESTIMATES_OF_THREADS = b"".join(
    called(ESTIMATE, i, pb.EstimateRequest(k=range(1, 33), groups=MORE_GROUPS)) for i in (1, 3, 5, 7)
)
ANSWERS_OF_THREADS = called(
    STREAM, 1, *(pb.TransformStreamRequest(sequence=i, request=_request(groups=MORE_GROUPS)) for i in range(4))
)
# What is read once there is no room for its answer.
LARGE = pb.TransformStreamRequest(
    request=pb.TransformRequest(groups=pb.RewardGroups(f64=pb.DoubleValues(values=[1.0] * 500_000), group_size=2))
).SerializeToString()
LARGE_ANSWERS = called(STREAM, 1, *(pb.TransformStreamRequest(sequence=i, request=_request()) for i in range(4)))
