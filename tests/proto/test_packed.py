"""Arrays on the wire: what is spliced is what filling the field would have sent, and every legal encoding parses."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pkpo import packed
from pkpo.v1 import reward_transform_pb2 as pb

doubles = arrays.arrays(np.float64, st.integers(0, 300), elements=st.floats(allow_nan=True))
floats = arrays.arrays(np.float32, st.integers(0, 300), elements=st.floats(width=32, allow_nan=True))


@given(doubles)
def test_doubles_are_encoded_as_protobuf_would(values: np.ndarray) -> None:
    spliced = packed.double_values(values)
    assert spliced.SerializeToString() == pb.DoubleValues(values=values.tolist()).SerializeToString()
    assert packed.array(spliced.values, np.float64).tobytes() == values.tobytes()


@given(floats)
def test_floats_are_encoded_as_protobuf_would(values: np.ndarray) -> None:
    spliced = packed.float_values(values)
    assert packed.array(spliced.values, np.float32).tobytes() == values.tobytes()
    finite = values[np.isfinite(values)]
    assert packed.float_values(finite) == pb.FloatValues(values=finite.tolist())


@pytest.mark.parametrize("count", [1, 15, 16, 2047, 2048, 262143, 262144])
def test_every_length_of_the_length(count: int) -> None:
    values = np.arange(count, dtype=np.float64)
    assert (packed.array(packed.double_values(values).values, np.float64) == values).all()


def test_strided_and_big_endian_arrays_are_sent_as_their_values() -> None:
    values = np.arange(10.0)
    assert list(packed.double_values(values[::3]).values) == [0, 3, 6, 9]
    assert list(packed.double_values(values.astype(">f8")).values) == values.tolist()


def test_unpacked_and_split_encodings_parse_to_the_same() -> None:
    tag_packed, tag_single = b"\x0a", b"\x09"
    pieces = [
        tag_single + struct.pack("<d", 1.0),
        tag_packed + bytes([16]) + struct.pack("<2d", 2.0, 3.0),
        tag_packed + bytes([0]),
        tag_single + struct.pack("<d", 4.0),
    ]
    message = pb.DoubleValues.FromString(b"".join(pieces))
    assert packed.array(message.values, np.float64).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_array_read_is_the_readers_own() -> None:
    message = packed.double_values(np.ones(4))
    array = packed.array(message.values, np.float64)
    array[:] = 2.0
    assert list(message.values) == [1.0] * 4


def test_whole_numbers_are_read_too() -> None:
    assert packed.array(pb.GroupSizes(sizes=[3, 1, 2**32 - 1]).sizes, np.int64).tolist() == [3, 1, 2**32 - 1]
