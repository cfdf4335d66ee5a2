"""Messages that were changed: mostly still protobuf of the right shape, sometimes no protobuf at all.

A message is read as a tree of fields by its descriptor, changed there, and written again by a writer that may lie about
lengths, tags and types. Then, now and then, its bytes are changed as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
LONGEST = 2**16

# Where ranges begin and end, and what stands just outside of them.
NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 12, 14, 15, 16, 17, 31, 33, 63, 64, 127, 128, 129, 255, 256, 999, 1000, 65535, 65536),
    *(2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1),
)
REWARDS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 0.1, 2.0, 7.0, 1e-3, 1e6, 1e6 + 1e-3, 1 + 2.0**-52, 1 - 2.0**-53, 3.4e38, -3.4e38),
    *(1e100, -1e100, 1.0000000000000002e100, 1e300, 1.7976931348623157e308, 5e-324, -5e-324, 2.2e-308, 1e-300, 1e-45),
    *(float("inf"), float("-inf"), float("nan"), 2.0**-149, 2.0**-126, 2.0**53, 1e-100, 1e80, 1e-80),
)
TEXTS = (b"", b"run", b"r" * 128, b"r" * 129, b"a b", b"a\n", b"\x00", "é".encode(), b"\xff\xfe", b"other", b"none")


@dataclass(slots=True)
class Node:
    """One field as it stands in the bytes.

    Attributes:
        value: a number, the bytes of a field of bytes or of fixed width, or the fields of a message.
        lie: added to the length that is written.
    """

    number: int
    wire: int
    value: int | bytes | list[Node]
    kind: FieldDescriptor | None = None
    lie: int = 0


class Mutator:
    """Changes messages.

    Args:
        rng: everything is drawn from it.
        seeds: others to take parts from, by the message they are; grows while it is used.
    """

    def __init__(self, rng: Random, seeds: Sequence[tuple[Descriptor, bytes]]) -> None:
        self._rng = rng
        self._seeds = seeds
        self._of_trees: tuple[Callable[[list[Node]], None], ...] = (
            self._remove,
            self._repeat,
            self._swap,
            self._renumber,
            self._retype,
            self._transplant,
            self._lie,
            *(self._revalue,) * 6,
        )
        self._of_bytes: tuple[Callable[[bytearray], None], ...] = (
            self._flip,
            self._overwrite,
            self._cut,
            self._double,
            self._insert,
        )

    def changed(self, descriptor: Descriptor, raw: bytes) -> bytes:
        """Another message, by one to some changes."""
        rng = self._rng
        tree = read(descriptor, raw)
        if tree is not None and rng.random() < 0.85:
            for _ in range(1 + int(rng.expovariate(0.7))):
                rng.choice(self._of_trees)(tree)
            raw = written(tree)
        if tree is None or rng.random() < 0.2:
            data = bytearray(raw)
            for _ in range(1 + int(rng.expovariate(0.7))):
                rng.choice(self._of_bytes)(data)
            raw = bytes(data)
        return raw[:LONGEST]

    # --- trees --------------------------------------------------------------------------------------------------------

    def _somewhere(self, tree: list[Node]) -> list[Node]:
        """A message in the tree, the innermost as likely as the others."""
        while True:
            inner = [node.value for node in tree if isinstance(node.value, list)]
            if not inner or self._rng.random() < 0.4:
                return tree
            tree = self._rng.choice(inner)

    def _remove(self, tree: list[Node]) -> None:
        fields = self._somewhere(tree)
        if fields:
            del fields[self._rng.randrange(len(fields))]

    def _repeat(self, tree: list[Node]) -> None:
        fields = self._somewhere(tree)
        if fields and len(fields) < 64:
            node = self._rng.choice(fields)
            fields.insert(self._rng.randint(0, len(fields)), Node(node.number, node.wire, node.value, node.kind))

    def _swap(self, tree: list[Node]) -> None:
        self._rng.shuffle(self._somewhere(tree))

    def _renumber(self, tree: list[Node]) -> None:
        fields = self._somewhere(tree)
        if fields:
            self._rng.choice(fields).number = self._rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99, 2**29 - 1, 2**29))

    def _retype(self, tree: list[Node]) -> None:
        fields = self._somewhere(tree)
        if fields:
            self._rng.choice(fields).wire = self._rng.randrange(8)

    def _lie(self, tree: list[Node]) -> None:
        fields = self._somewhere(tree)
        if fields:
            self._rng.choice(fields).lie = self._rng.choice((-8, -1, 1, 3, 8, 2**31, 2**63))

    def _transplant(self, tree: list[Node]) -> None:
        other = read(*self._rng.choice(self._seeds))
        if other:
            self._somewhere(tree).append(self._rng.choice(self._somewhere(other) or other))

    def _revalue(self, tree: list[Node]) -> None:
        fields = [node for node in self._somewhere(tree) if not isinstance(node.value, list)]
        if not fields:
            return
        node = self._rng.choice(fields)
        if isinstance(node.value, int):
            node.value = self._number(node.value)
        elif node.kind is not None and node.kind.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            node.value = self._rewards(node.value, "d" if node.kind.type == FieldDescriptor.TYPE_DOUBLE else "f")
        elif node.kind is not None and node.kind.type == FieldDescriptor.TYPE_STRING:
            node.value = self._rng.choice(TEXTS)
        else:
            numbers = [self._number(0) for _ in range(self._rng.choice((0, 1, 1, 2, 3, 8, 40)))]
            node.value = b"".join(map(varint, numbers))

    def _number(self, now: int) -> int:
        rng = self._rng
        choice = rng.random()
        if choice < 0.6:
            return rng.choice(NUMBERS)
        return (now + rng.choice((-1, 1))) % 2**64 if choice < 0.9 else rng.getrandbits(64)

    def _rewards(self, packed: bytes, form: str) -> bytes:
        """Rewards of the same form: one changed, more or fewer of them, or all others."""
        rng = self._rng
        width = struct.calcsize(form)
        values = list(struct.unpack(f"<{len(packed) // width}{form}", packed[: len(packed) // width * width]))
        choice = rng.random()
        if values and choice < 0.5:
            values[rng.randrange(len(values))] = rng.choice(REWARDS)
        elif values and choice < 0.65:
            del values[rng.randrange(len(values)) :]
        elif values and choice < 0.8:
            values = (values * 2)[: LONGEST // 16]
        elif choice < 0.9:
            values = [float(rng.random() < 0.5) for _ in values]
        else:
            values = [rng.choice(REWARDS) for _ in range(rng.choice((1, 2, 4, 6)))]
        return b"".join(_packed(form, value) for value in values)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)

    def _overwrite(self, data: bytearray) -> None:
        if data:
            data[self._rng.randrange(len(data))] = self._rng.choice((0, 1, 0x7F, 0x80, 0xFF, self._rng.randrange(256)))

    def _cut(self, data: bytearray) -> None:
        start = self._rng.randint(0, len(data))
        del data[start : start + self._rng.choice((1, 2, 8, len(data)))]

    def _double(self, data: bytearray) -> None:
        start = self._rng.randint(0, len(data))
        data[start:start] = data[start : start + self._rng.choice((1, 2, 8, 64))]

    def _insert(self, data: bytearray) -> None:
        start = self._rng.randint(0, len(data))
        data[start:start] = self._rng.randbytes(self._rng.choice((1, 2, 8)))


# --- the wire ---------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def written(tree: Sequence[Node]) -> bytes:
    """The bytes of a tree, lies and all."""
    parts = []
    for node in tree:
        value = node.value
        content = written(value) if isinstance(value, list) else value
        parts.append(varint(node.number << 3 | node.wire))
        if isinstance(content, int):
            parts.append(varint(content))
        else:
            if node.wire == BYTES:
                parts.append(varint(max(0, len(content) + node.lie)))
            parts.append(content)
    return b"".join(parts)


def read(descriptor: Descriptor, raw: bytes) -> list[Node] | None:
    """The fields of a message; None where the bytes are none. What is no message of ours stays bytes."""
    tree, at, end = [], 0, len(raw)
    try:
        while at < end:
            tag, at = _varint_at(raw, at)
            number, wire = tag >> 3, tag & 7
            kind = descriptor.fields_by_number.get(number)
            value: int | bytes | list[Node]
            if wire == VARINT:
                value, at = _varint_at(raw, at)
            elif wire in (FIXED64, FIXED32):
                width = 8 if wire == FIXED64 else 4
                value, at = raw[at : at + width], at + width
            elif wire == BYTES:
                length, at = _varint_at(raw, at)
                value, at = raw[at : at + length], at + length
                if kind is not None and kind.message_type is not None:
                    value = read(kind.message_type, value) or value
            else:
                return None
            tree.append(Node(number, wire, value, kind))
    except IndexError:
        return None
    return tree if at == end else None


def _varint_at(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _packed(form: str, value: Any) -> bytes:
    try:
        return struct.pack(f"<{form}", value)
    except OverflowError:  # a double that is no float
        return struct.pack(f"<{form}", float("inf"))
