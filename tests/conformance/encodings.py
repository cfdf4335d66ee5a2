"""Cases in encodings that protobuf allows and few programs write, and in none at all.

Sent as they are: https://protobuf.dev/programming-guides/encoding tells what each means.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from conformance import oracle
from conformance.conformance_pb2 import Case, Outcome
from conformance.judgement import refused
from pkpo.v1 import reward_transform_pb2 as pb

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = 0, 1, 2, 3, 4, 5
UNKNOWN = 1000  # no field has this number

REWARDS = [0.25, -1.0, 2.0, 0.5, 0.75, -3.0]
REQUEST = pb.TransformRequest
GROUPS = pb.RewardGroups


def encodings() -> Iterator[Case]:
    """All of them."""
    for name, encoded in _legal().items():
        meant = pb.TransformRequest.FromString(encoded)
        response, tolerance = oracle.transform_response(meant)
        expected = Outcome(transform=response)
        yield Case(name=f"encoding/{name}", encoded_transform=encoded, expected=expected, tolerance=tolerance)
    for name, encoded in {
        "a lone tag": b"\x0a",
        "a length over the end": b"\x0a\x05ab",
        "a field number of 0": b"\x00\x01",
        "a wire type of 7": b"\x0f" * 4,
        "text": b"rewards=1,0,0,1&k=2",
        "cut in the middle": _usual()[:-3],
    }.items():
        yield Case(name=f"encoding/no message/{name}", encoded_transform=encoded, expected=refused(["message"]))


def _varint(value: int, at_least: int = 1) -> bytes:
    """A number, in more bytes than it needs where so many are asked for."""
    encoded = bytearray()
    while value > 0x7F or len(encoded) < at_least - 1:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _number(field: int, value: int, at_least: int = 1) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value, at_least)


def _bytes(field: int, content: bytes, at_least: int = 1) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(len(content), at_least) + content


def _packed(values: list[float]) -> bytes:
    return _bytes(pb.DoubleValues.VALUES_FIELD_NUMBER, struct.pack(f"<{len(values)}d", *values))


def _unpacked(values: list[float], form: str = "d") -> bytes:
    tag = _varint(pb.DoubleValues.VALUES_FIELD_NUMBER << 3 | (FIXED64 if form == "d" else FIXED32))
    return b"".join(tag + struct.pack(f"<{form}", value) for value in values)


def _unknown_fields() -> bytes:
    """One of each wire type, a group with a field of its own among them."""
    group = _varint(UNKNOWN << 3 | GROUP) + _number(1, 5) + _varint(UNKNOWN << 3 | END_GROUP)
    return b"".join(
        (
            _number(UNKNOWN, 2**64 - 1),
            _varint(UNKNOWN << 3 | FIXED64) + b"12345678",
            _bytes(UNKNOWN, b"anything"),
            group,
            _varint(UNKNOWN << 3 | FIXED32) + b"1234",
        )
    )


SIZE_3 = _number(GROUPS.GROUP_SIZE_FIELD_NUMBER, 3)
K_2 = _number(REQUEST.K_FIELD_NUMBER, 2)


def _f64(content: bytes) -> bytes:
    return _bytes(GROUPS.F64_FIELD_NUMBER, content)


def _groups(content: bytes) -> bytes:
    return _bytes(REQUEST.GROUPS_FIELD_NUMBER, content)


def _usual() -> bytes:
    return _groups(_f64(_packed(REWARDS)) + SIZE_3) + K_2


def _legal() -> dict[str, bytes]:
    half, rest = REWARDS[:2], REWARDS[2:]
    sizes = GROUPS.GROUP_SIZES_FIELD_NUMBER
    each_k = _number(REQUEST.K_FIELD_NUMBER, 2) + _number(REQUEST.K_FIELD_NUMBER, 3)
    estimated = REQUEST.ESTIMATE_K_FIELD_NUMBER
    variant = REQUEST.VARIANT_FIELD_NUMBER
    rewards = _groups(_f64(_packed(REWARDS)) + SIZE_3)
    return {
        "usual": _usual(),
        "unpacked rewards": _groups(_f64(_unpacked(REWARDS)) + SIZE_3) + K_2,
        "unpacked float rewards": _groups(_bytes(GROUPS.F32_FIELD_NUMBER, _unpacked(REWARDS, "f")) + SIZE_3) + K_2,
        "rewards packed in two runs": _groups(_f64(_packed(half) + _packed(rest)) + SIZE_3) + K_2,
        "rewards packed and unpacked": _groups(_f64(_packed(half) + _unpacked(rest[:1]) + _packed(rest[1:])) + SIZE_3)
        + K_2,
        "empty runs between": _groups(_f64(_packed([]) + _packed(REWARDS) + _packed([])) + SIZE_3) + K_2,
        "rewards in two messages": _groups(_f64(_packed(half)) + SIZE_3 + _f64(_packed(rest))) + K_2,
        "groups in two messages": _groups(_f64(_packed(REWARDS))) + K_2 + _groups(SIZE_3),
        "unpacked k": rewards + each_k,
        "packed k": rewards + _bytes(REQUEST.K_FIELD_NUMBER, b"\x02\x03"),
        "k packed and unpacked": rewards + _bytes(REQUEST.K_FIELD_NUMBER, b"\x02") + _number(REQUEST.K_FIELD_NUMBER, 3),
        "unpacked sizes": _groups(_f64(_packed(REWARDS)) + _bytes(sizes, _number(1, 2) + _number(1, 4))) + K_2,
        "sizes in two messages": _groups(
            _f64(_packed(REWARDS)) + _bytes(sizes, _bytes(1, b"\x02")) + _bytes(sizes, _number(1, 4))
        )
        + K_2,
        "estimate_k packed and unpacked": _usual() + _number(estimated, 3) + _bytes(estimated, b"\x01\x02"),
        "fields out of order": _number(REQUEST.FIRST_GROUP_FIELD_NUMBER, 5)
        + _bytes(REQUEST.RUN_ID_FIELD_NUMBER, b"run")
        + K_2
        + _number(variant, pb.VARIANT_CENTERED)
        + _groups(SIZE_3 + _f64(_packed(REWARDS))),
        "unknown fields": _unknown_fields()
        + _groups(_unknown_fields() + _f64(_unknown_fields() + _packed(REWARDS) + _unknown_fields()) + SIZE_3)
        + _unknown_fields()
        + K_2,
        "numbers longer than they need be": _bytes(
            REQUEST.GROUPS_FIELD_NUMBER,
            _bytes(GROUPS.F64_FIELD_NUMBER, _packed(REWARDS), at_least=3)
            + _number(GROUPS.GROUP_SIZE_FIELD_NUMBER, 3, at_least=5),
            at_least=4,
        )
        + _number(REQUEST.K_FIELD_NUMBER, 2, at_least=10),
        "defaults said": _usual()
        + _number(variant, 0)
        + _number(REQUEST.SCALE_FIELD_NUMBER, 0)
        + _number(REQUEST.SEED_FIELD_NUMBER, 0)
        + _bytes(estimated, b""),
        "the last of two variants": _number(variant, 99) + _usual() + _number(variant, pb.VARIANT_S),
        "the last of two kinds of rewards": _groups(
            _bytes(GROUPS.F32_FIELD_NUMBER, _unpacked([9.0, 9.0], "f")) + _f64(_packed(REWARDS)) + SIZE_3
        )
        + K_2,
        "the last of two shapes": _groups(_f64(_packed(REWARDS)) + _bytes(sizes, _bytes(1, b"\x06")) + SIZE_3) + K_2,
    }
