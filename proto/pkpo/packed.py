"""NumPy arrays in and out of repeated fields.

Out: filling a repeated field element by element costs about 30 ns each. A packed field is a tag, a length and the
little-endian bytes of the array: just those bytes, parsed or sent as a message, say the same at the speed of a copy.

In: protobuf parses, since senders may legally leave a field unpacked or split it; the parsed field is then read as an
array (a copy of the bytes with protobuf >= 7.34, element by element before).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo.v1.reward_transform_pb2 import DoubleValues, FloatValues

Part = bytes | memoryview

_VARINT, _LENGTH_DELIMITED = 0, 2
_REPEATED_FIELDS_ARE_ARRAYS = hasattr(DoubleValues().values, "__array__")


def double_values(values: NDArray[Any]) -> DoubleValues:
    """The message that holds `values` as doubles."""
    return DoubleValues.FromString(b"".join(packed_field(DoubleValues.VALUES_FIELD_NUMBER, values, "<f8")))


def float_values(values: NDArray[Any]) -> FloatValues:
    """The message that holds `values` as floats."""
    return FloatValues.FromString(b"".join(packed_field(FloatValues.VALUES_FIELD_NUMBER, values, "<f4")))


def array(repeated: Any, dtype: Any) -> NDArray[Any]:
    """The numbers of a parsed repeated field, as a new one-dimensional array of `dtype`."""
    if _REPEATED_FIELDS_ARE_ARRAYS:
        return np.asarray(repeated, dtype=dtype)
    return np.fromiter(repeated, dtype=dtype, count=len(repeated))


def number_field(number: int, value: int) -> bytes:
    """The bytes of a field of an unsigned integer."""
    return _varint(number << 3 | _VARINT) + _varint(value)


def message_field(number: int, parts: Iterable[Part]) -> list[Part]:
    """The bytes, in parts, of a field that holds a message, from the bytes of the message's fields."""
    held = list(parts)
    return [_head(number, sum(map(len, held))), *held]


def packed_field(number: int, values: NDArray[Any], wire_dtype: str) -> list[Part]:
    """The bytes, in parts, of a packed field of numbers of fixed width.

    Args:
        number: of the field.
        values: one-dimensional; not copied where they are laid out as on the wire, so they must not change.
        wire_dtype: little-endian, of the field's type: "<f8", "<f4", or "|u1" for enums and integers below 128, which
            are a byte each.
    """
    data = np.ascontiguousarray(values, dtype=wire_dtype).view(np.uint8).data
    return [_head(number, len(data)), data]


# A training run sends batches of a few sizes.
@lru_cache(maxsize=256)
def _head(number: int, size: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(size)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
