"""NumPy arrays in and out of repeated fields.

Out: filling a repeated field element by element costs about 30 ns each. A packed field is a tag, a length and the
little-endian bytes of the array, so merging just those bytes into a message says the same at the speed of a copy.

In: protobuf parses, since senders may legally leave a field unpacked or split it; the parsed field is then read as an
array (a copy of the bytes with protobuf >= 7.34, element by element before).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from pkpo.v1.reward_transform_pb2 import DoubleValues, FloatValues

_LENGTH_DELIMITED = 2

Filled = TypeVar("Filled", bound=Message)


def double_values(values: NDArray[Any]) -> DoubleValues:
    """The message that holds `values` as doubles."""
    return merge_packed(DoubleValues(), DoubleValues.VALUES_FIELD_NUMBER, values, "<f8")


def float_values(values: NDArray[Any]) -> FloatValues:
    """The message that holds `values` as floats."""
    return merge_packed(FloatValues(), FloatValues.VALUES_FIELD_NUMBER, values, "<f4")


def merge_packed(message: Filled, field_number: int, values: NDArray[Any], wire_dtype: str) -> Filled:
    """`message`, with `values` appended to its packed field of fixed-width numbers.

    Args:
        message: any protobuf message.
        field_number: of a `repeated double` ("<f8") or `repeated float` ("<f4") field.
        values: one-dimensional.
        wire_dtype: the little-endian dtype of the field.
    """
    payload = np.ascontiguousarray(values, dtype=wire_dtype)
    if payload.size:
        header = _varint(field_number << 3 | _LENGTH_DELIMITED) + _varint(payload.nbytes)
        message.MergeFromString(b"".join((header, payload.data)))
    return message


def array(repeated: Any, dtype: Any) -> NDArray[Any]:
    """The numbers of a parsed repeated field, as a new one-dimensional array of `dtype`."""
    if hasattr(repeated, "__array__"):
        return np.asarray(repeated, dtype=dtype)
    return np.fromiter(repeated, dtype=dtype, count=len(repeated))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


__all__ = ["array", "double_values", "float_values", "merge_packed"]
