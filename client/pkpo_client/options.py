"""The options of a call, checked and in the form they travel in.

What the service checks with the rewards at hand (a k against its group) is left to it. Here is checked what cannot be
said on the wire at all, or what only one of the two ways of computing would notice.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client.arrays import on_host
from pkpo_client.errors import refused


def _short_names(enum: Any, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix).lower(): number for name, number in enum.items() if number != 0}


#: The short names callers use, and their numbers on the wire.
VARIANTS = _short_names(pb.Variant, "VARIANT_")
SCALES = _short_names(pb.Scale, "SCALE_")
K_POLICIES = _short_names(pb.KPolicy, "K_POLICY_")

#: Variants that take no k (TZSM reads the 0 it is sent as n).
WITHOUT_K = frozenset({"loo", "grpo", "tzsm"})

_LARGEST_UINT32 = 2**32 - 1
_LARGEST_UINT64 = 2**64 - 1
_MOST_SHOWN = 80
_RUN_ID = re.compile(r"[A-Za-z0-9._:/-]{0,128}")


@dataclass(frozen=True)
class Defaults:
    """What a client fills in where a call says nothing.

    Attributes:
        variant: which function of the rewards the advantages are; see `Client.server_info`.
        scale: "sum" or "mean": what the caller's loss does with a group.
        k_policy: "strict" or "clamp": whether a k outside the variant's range is refused or lowered.
        run_id: names the training run in the service's metrics and logs.
        timeout: seconds a call may take, all its parts and retries together; `math.inf` for no end.
    """

    variant: str = "sloo_minus_one"
    scale: str = "sum"
    k_policy: str = "strict"
    run_id: str = ""
    timeout: float = 30.0

    def __post_init__(self) -> None:
        name("variant", self.variant, VARIANTS)
        name("scale", self.scale, SCALES)
        name("k_policy", self.k_policy, K_POLICIES)
        run_id(self.run_id)
        timeout(self.timeout)


def name(argument: str, value: Any, legal: dict[str, int]) -> str:
    """`value`, which is a legal short name."""
    if not isinstance(value, str) or value not in legal:
        raise refused(argument, f"is {_shown(value)}; must be one of {', '.join(legal)}")
    return value


def run_id(value: Any) -> str:
    """`value`, which can name a training run."""
    if not isinstance(value, str) or not _RUN_ID.fullmatch(value):
        raise refused("run_id", f"is {_shown(value)}; must be up to 128 of A-Z a-z 0-9 . _ : / -")
    return value


def timeout(value: Any) -> float:
    """`value`, which is a time in seconds above 0."""
    try:
        seconds = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:
        seconds = math.nan
    if not seconds > 0:  # nor is NaN
        raise refused("timeout", f"is {_shown(value)}; must be a number of seconds above 0")
    return seconds


def integer(argument: str, value: Any, largest: int) -> int:
    """`value`, which is an integer from 0 to `largest`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise refused(argument, f"is {_shown(value)}; must be an integer")
    if not 0 <= number <= largest:
        raise refused(argument, f"is {_shown(number)}; must be from 0 to {largest}")
    return number


def _shown(value: object) -> str:
    """`value` as an error names it: its first 80 characters where it has more, and then how long it is."""
    try:
        shown = repr(value)
        if len(shown) <= _MOST_SHOWN:
            return shown
        length = f" ({len(value)} characters)" if isinstance(value, str) else ""
        return f"{shown[:_MOST_SHOWN]}...{length}"
    except ValueError:  # Python writes no integer of thousands of digits
        return f"too large a {type(value).__name__} to be shown"


def seed(value: Any) -> int:
    """`value`, which is an integer of 64 bits."""
    return integer("seed", value, _LARGEST_UINT64)


def k_list(argument: str, value: Any) -> tuple[int, ...]:
    """One k or several as a tuple."""
    if isinstance(value, tuple) and not value:
        return ()
    if hasattr(value, "__array__"):
        value = on_host(argument, value).tolist()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(integer(f"{argument}[{index}]", each, _LARGEST_UINT32) for index, each in enumerate(value))
    return (integer(f"{argument}[0]", value, _LARGEST_UINT32),)


def k_per_group(variant: str, value: Any, groups: int) -> int | NDArray[np.int64] | None:
    """One k for all groups, or one for each, or None where the variant needs none.

    Args:
        variant: a legal short name.
        value: an integer, integers one per group, or None.
        groups: how many groups the caller gave.
    """
    if value is None:
        if variant not in WITHOUT_K:
            raise refused("k", f"is None; must be given, but for {', '.join(sorted(WITHOUT_K))}")
        return 0 if variant == "tzsm" else None
    if hasattr(value, "__array__"):
        array = on_host("k", value)
        if array.ndim == 1 and array.dtype.kind in "iu":
            return _one_per_group(array, groups)
        value = array.tolist()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        ks = k_list("k", value)
        return _one_per_group(np.array(ks, dtype=np.int64), groups)
    return integer("k[0]", value, _LARGEST_UINT32)


def _one_per_group(ks: NDArray[Any], groups: int) -> NDArray[np.int64]:
    if len(ks) != groups:
        raise refused("k", f"has {len(ks)} values; must be one integer, or one for each of {groups} groups")
    outside = (ks < 0) | (ks > _LARGEST_UINT32)
    if outside.any():
        index = int(np.argmax(outside))
        raise refused(f"k[{index}]", f"is {ks[index]}; must be from 0 to {_LARGEST_UINT32}")
    return ks.astype(np.int64)
