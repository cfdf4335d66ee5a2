"""The same inputs through a real connection to a real server, and connections that speak no HTTP/2."""

from __future__ import annotations

import math
import socket
import struct
import time
from collections import deque
from random import Random
from typing import Any

import grpc

from conformance import suite
from fuzz import messages
from fuzz.campaign import LARGEST_SEED, REQUESTS, Report, call_of
from fuzz.mutator import Mutator
from fuzz.properties import differences
from fuzz.service import ESTIMATE, INFO, STREAM, TRANSFORM, Outcome
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_server.codec import Limits
from pkpo_server.servicer import SERVICE

IN_FLIGHT = 64
CALL_SECONDS = 60.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 6, 7, 8, 9
# Of a server with its default settings.
LIMITS = Limits(max_message_bytes=2**26, max_rewards=2**23, max_group_size=2**20, max_groups=2**20, max_estimate_k=32)


def calls(address: str, rng: Random, inputs: int, seconds: float = math.inf) -> Report:
    """So many calls, half of them changed cases and half odd messages, many at once."""
    report, started = Report(), time.monotonic()
    seeds = [call for call in map(call_of, suite.committed().cases) if sum(map(len, call[1])) <= LARGEST_SEED]
    mutator = Mutator(rng, [(REQUESTS[method], raw) for method, raws in seeds for raw in raws[:4]])
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        unary = {name: channel.unary_unary(f"/{SERVICE}/{name}") for name in (TRANSFORM, ESTIMATE, INFO)}
        stream: Any = channel.stream_stream(f"/{SERVICE}/{STREAM}")
        under_way: deque[tuple[str, list[bytes], Any]] = deque()
        for _ in range(inputs):
            if time.monotonic() - started > seconds:
                break
            if len(under_way) == IN_FLIGHT:
                _judge(*under_way.popleft(), report)
            method, raws = messages.call(rng) if rng.random() < 0.5 else rng.choice(seeds)
            changed = [mutator.changed(REQUESTS[method], raw) if rng.random() < 0.5 else raw for raw in raws]
            made: Any = (
                stream(iter(changed), timeout=CALL_SECONDS)
                if method == STREAM
                else unary[method].future(changed[0], timeout=CALL_SECONDS)  # type: ignore[attr-defined]
            )
            under_way.append((method, changed, made))
        for call in under_way:
            _judge(*call, report)
    report.seconds = time.monotonic() - started
    return report


def _judge(method: str, raws: list[bytes], made: Any, report: Report) -> None:
    outcome = Outcome()
    try:
        outcome.answers = [*made] if method == STREAM else [made.result()]
    except grpc.RpcError as error:
        outcome.code, outcome.message = error.code(), error.details()  # type: ignore[attr-defined]
        outcome.details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")  # type: ignore[attr-defined]
    report.inputs += 1
    report.codes[outcome.code.name] += 1
    for found in differences(method, raws, outcome, LIMITS, exact=lambda: False):
        report.findings.append(f"{method} of {[raw.hex() for raw in raws]}: {found}")


def connections(address: str, rng: Random, inputs: int, seconds: float = math.inf) -> Report:
    """So many connections that begin as a call does and go on as no client would.

    What the server says to them is its transport's business; that it ends them or lets them go, and answers others, is
    what is asked: by whoever calls this, afterwards.
    """
    report, started = Report(), time.monotonic()
    host, port = address.rsplit(":", 1)
    before = b""
    for _ in range(inputs):
        if time.monotonic() - started > seconds:
            break
        said = changed_frames(rng)
        try:
            connection = socket.create_connection((host, int(port)), timeout=CALL_SECONDS)
        except ConnectionRefusedError:
            report.findings.append(f"nobody listens any more, after {before.hex()}")
            break
        with connection:
            try:
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass
                report.codes["closed"] += 1
            except TimeoutError:
                report.codes["held"] += 1
                report.findings.append(f"keeps a connection that ended, after {said.hex()}")
            except OSError:
                report.codes["reset"] += 1
        report.inputs += 1
        before = said
    report.seconds = time.monotonic() - started
    return report


def changed_frames(rng: Random) -> bytes:
    """The bytes of a connection with one call, changed."""
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=[0, 1]), group_size=2)
    message = pb.TransformRequest(groups=groups, k=[1]).SerializeToString()
    frames = [
        [SETTINGS, 0, 0, b""],
        [HEADERS, 4, 1, headers()],
        [DATA, 1, 1, struct.pack(">BI", 0, len(message)) + message],
        [PING, 0, 0, bytes(8)],
        [WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**16)],
    ]
    for _ in range(1 + int(rng.expovariate(0.7))):
        changed, choice = rng.choice(frames), rng.randrange(6)
        if choice == 0:
            changed[0] = rng.choice(
                (DATA, HEADERS, 2, 3, SETTINGS, 5, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, 10, 255)
            )
        elif choice == 1:
            changed[1] = rng.randrange(256)
        elif choice == 2:
            changed[2] = rng.choice((0, 1, 2, 3, 2**31 - 1))
        elif choice == 3:
            changed[3] = changed[3][: rng.randint(0, len(changed[3]))]
        elif choice == 4:
            changed[3] = rng.randbytes(rng.choice((0, 1, 8, 64, 2**14, 2**14 + 1)))
        else:
            frames.insert(rng.randint(0, len(frames)), list(changed))
    raw = bytearray(PREFACE + b"".join(frame(*each) for each in frames))  # type: ignore[arg-type]
    for _ in range(rng.choice((0, 0, 1, 2))):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[: rng.choice((len(raw), len(raw), rng.randint(0, len(raw))))])


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def headers(path: bytes = f"/{SERVICE}/{TRANSFORM}".encode()) -> bytes:
    """The headers of a call, none of them compressed (RFC 7541, 6.2.2)."""
    return b"".join(
        b"\x00" + bytes([len(text)]) + text if i % 2 == 0 else bytes([len(text)]) + text
        for pair in (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
        for i, text in enumerate(pair)
    )
