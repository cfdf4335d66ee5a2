"""What is refused, and what the error says; the same from every client."""

from __future__ import annotations

import math
from typing import Any

import grpc
import numpy as np
import pytest

import pkpo_core
from live_server import LiveServer
from pkpo_client import Client, InvalidArgument, LocalClient, PkpoError

ROWS = np.arange(12.0).reshape(3, 4)

#: The arguments, and a word of the field and of the description of the violation.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"rewards": ROWS, "k": 5}, "k[0]", "is 5"),
    ({"rewards": ROWS, "k": 0}, "k[0]", "is 0"),
    ({"rewards": ROWS, "k": -1}, "k[0]", "is -1"),
    ({"rewards": ROWS, "k": 2**32}, "k[0]", "4294967295"),
    ({"rewards": ROWS, "k": 2.0}, "k[0]", "integer"),
    ({"rewards": ROWS, "k": "2"}, "k[0]", "integer"),
    ({"rewards": ROWS, "k": None}, "k", "loo"),
    ({"rewards": ROWS, "k": [1, 2]}, "k", "has 2 values"),
    ({"rewards": ROWS, "k": [1, 2, 5]}, "k[2]", "is 5"),
    ({"rewards": ROWS, "k": [1, -2, 3]}, "k[1]", "is -2"),
    ({"rewards": ROWS, "k": np.array([1, -2, 3])}, "k[1]", "is -2"),
    ({"rewards": ROWS, "k": [1, 2.5, 3]}, "k[1]", "integer"),
    ({"rewards": ROWS, "k": 2, "variant": "nonsense"}, "variant", "sloo_minus_one"),
    ({"rewards": ROWS, "k": 2, "variant": "SLOO"}, "variant", "sloo"),
    ({"rewards": ROWS, "k": 2, "scale": "total"}, "scale", "sum, mean"),
    ({"rewards": ROWS, "k": 2, "k_policy": "lenient"}, "k_policy", "strict, clamp"),
    ({"rewards": ROWS, "k": 2, "estimate_k": [1, 0]}, "estimate_k[1]", "is 0"),
    ({"rewards": ROWS, "k": 2, "estimate_k": [1, -1]}, "estimate_k[1]", "is -1"),
    ({"rewards": ROWS, "k": 2, "seed": -1}, "seed", "is -1"),
    ({"rewards": ROWS, "k": 2, "seed": 2**64}, "seed", str(2**64 - 1)),
    ({"rewards": ROWS, "k": 2, "run_id": "no spaces"}, "run_id", "128"),
    ({"rewards": ROWS, "k": 2, "run_id": "a" * 129}, "run_id", "128"),
    ({"rewards": ROWS, "k": 2, "run_id": "a" * 200}, "run_id", f"is '{'a' * 79}... (200 characters); must"),
    ({"rewards": ROWS, "k": 2, "timeout": 0}, "timeout", "is 0"),
    ({"rewards": ROWS, "k": 2, "timeout": math.nan}, "timeout", "nan"),
    ({"rewards": ROWS, "k": 2, "group_ids": [1, 2, 3]}, "group_ids", "(3, 4)"),
    ({"rewards": ROWS[0], "k": 2}, "group_ids", "(4,)"),
    ({"rewards": ROWS[0], "k": 2, "group_ids": [1, 2]}, "group_ids", "has 2 values"),
    ({"rewards": ROWS[0], "k": 2, "group_ids": [1, [], 1, 1]}, "group_ids[1]", "unhashable"),
    ({"rewards": ROWS[0], "k": 2, "group_ids": [1, math.nan, 1, 1]}, "group_ids", "nan"),
    ({"rewards": ROWS[0], "k": 2, "group_ids": ROWS}, "group_ids", "(3, 4)"),
    ({"rewards": ROWS[0], "k": 2, "group_ids": 7}, "group_ids[0]", "not iterable"),
    ({"rewards": ROWS[None], "k": 2}, "rewards", "(1, 3, 4)"),
    ({"rewards": 1.0, "k": 2}, "rewards", "()"),
    ({"rewards": ROWS + 1j, "k": 2}, "rewards", "complex128"),
    ({"rewards": [["a"]], "k": 2}, "rewards", "real numbers"),
    ({"rewards": [[1.0], [1.0, 2.0]], "k": 2}, "rewards", "inhomogeneous"),
    ({"rewards": np.ma.masked_invalid(ROWS), "k": 2}, "rewards", "mask="),
    ({"rewards": ROWS, "k": 2, "mask": ROWS[0] > 0}, "mask", "(4,)"),
    ({"rewards": ROWS, "k": 2, "mask": ROWS}, "mask", "1 and 0"),
    ({"rewards": ROWS, "k": 2, "mask": [["x"] * 4] * 3}, "mask", "1 and 0"),
    ({"rewards": ROWS * np.nan, "k": 2}, "groups.rewards[0]", "nan"),
    ({"rewards": ROWS * 1e101, "k": 2}, "groups.rewards[1]", "1e100"),
    ({"rewards": ROWS, "k": 2, "variant": "binary"}, "groups.rewards[2]", "0 or 1"),
    ({"rewards": ROWS[:, :1], "k": 1}, "groups.group_size", "is 1"),
]


@pytest.fixture(scope="module")
def remote(server: LiveServer) -> Any:
    with Client(server.address) as made:
        yield made


@pytest.mark.parametrize(
    ("arguments", "field", "description"), REFUSED, ids=[f"{i}-{each[1]}" for i, each in enumerate(REFUSED)]
)
def test_refusals_name_the_field_the_value_and_the_bound(
    remote: Client, local: LocalClient, arguments: dict[str, Any], field: str, description: str
) -> None:
    said = []
    for made in (remote, local):
        with pytest.raises(InvalidArgument) as caught:
            made.transform_detailed(**arguments)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, PkpoError)
        first = caught.value.violations[0]
        assert first.field.startswith(field)
        assert description in str(caught.value)
        said.append(caught.value.violations)
    # The service bounds the bytes of an error too, and may leave out the last of many violations.
    assert said[0] == said[1][: len(said[0])]
    assert len(said[0]) >= min(len(said[1]), 4)


def test_violations_name_the_place_in_the_callers_arguments_too(remote: Client, local: LocalClient) -> None:
    flat = np.array([1.0, 2.0, np.inf, 4.0, np.nan])
    ids = ["a", "b", "a", "b", "a"]
    for made in (remote, local):
        with pytest.raises(InvalidArgument) as caught:
            made.transform(flat, k=1, group_ids=ids, mask=[True, True, True, True, False])
        # Sent as a: 1, inf; b: 2, 4.
        assert caught.value.violations[0].field == "groups.rewards[1]"
        assert caught.value.violations[0].where == "rewards[2]"
        with pytest.raises(InvalidArgument) as caught:
            made.transform(flat[None], k=1, mask=[[False, True, True, True, False]])
        assert caught.value.violations[0].where == "rewards[0, 2]"
        with pytest.raises(InvalidArgument) as caught:
            made.transform([1.0, 2.0, 3.0, 4.0], k=[9, 1, 9], group_ids=["a", "b", "c", "c"], mask=[0, 1, 1, 1])
        assert {(each.field, each.where) for each in caught.value.violations} >= {("k[1]", "group 'c'")}


def test_the_error_of_the_service_is_the_cause(remote: Client, local: LocalClient) -> None:
    with pytest.raises(InvalidArgument) as caught:
        remote.transform(ROWS, k=9)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    with pytest.raises(InvalidArgument) as caught:
        local.transform(ROWS, k=9)
    assert isinstance(caught.value.__cause__, pkpo_core.InvalidArgument)


def test_estimating_for_no_k_is_refused(remote: Client, local: LocalClient) -> None:
    for made in (remote, local):
        with pytest.raises(InvalidArgument, match="k: is empty"):
            made.estimate(ROWS, k=[])
