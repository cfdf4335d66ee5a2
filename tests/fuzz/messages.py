"""Valid messages of odd values: from the ends of every field's range, from just outside of it, and from its middle."""

from __future__ import annotations

import struct
from random import Random

from fuzz.mutator import NUMBERS, REWARDS
from fuzz.service import ESTIMATE, STREAM, TRANSFORM
from pkpo.v1 import reward_transform_pb2 as pb

RUN_IDS = ("", "run", "a/b:c.d_e-f", "r" * 128, "r" * 129, "a b", "a\n", "é", "none", "other", "\x00", "run-1", "run-2")
VARIANTS = pb.Variant.values()


def call(rng: Random) -> tuple[str, list[bytes]]:
    """A method, and the messages it is called with."""
    choice = rng.random()
    if choice < 0.7:
        return TRANSFORM, [transform(rng).SerializeToString()]
    if choice < 0.9:
        request = pb.EstimateRequest(groups=groups(rng, rng.choice(KINDS)), k=_ks(rng, 6))
        return ESTIMATE, [request.SerializeToString()]
    messages = [
        pb.TransformStreamRequest(sequence=rng.choice((i, i, rng.choice(NUMBERS))), request=transform(rng))
        for i in range(rng.randint(0, 5))
    ]
    return STREAM, [message.SerializeToString() for message in messages]


def transform(rng: Random) -> pb.TransformRequest:
    """A request, legal more often than not."""
    variant = rng.choice(VARIANTS) if rng.random() < 0.98 else rng.choice((-1, 15, 99, 2**31 - 1))
    kind = "binary" if variant == pb.VARIANT_BINARY and rng.random() < 0.9 else rng.choice(KINDS)
    held = groups(rng, kind)
    sizes = list(held.group_sizes.sizes) or [held.group_size] * 3
    choice = rng.random()
    if variant == pb.VARIANT_TZSM and choice < 0.8:
        k = [0]
    elif choice < 0.6:
        k = [rng.randint(1, max(1, min(sizes, default=1)))]
    elif choice < 0.8:
        k = [rng.randint(1, max(1, min(size, 2**32 - 1))) for size in sizes]
    else:
        k = _ks(rng, 4)
    return pb.TransformRequest(
        groups=held,
        variant=variant,  # type: ignore[arg-type]
        k=k,
        scale=rng.choice((0, 1, 2, 2)) if rng.random() < 0.98 else 3,  # type: ignore[arg-type]
        k_policy=rng.choice((0, 1, 2, 2)) if rng.random() < 0.98 else 7,  # type: ignore[arg-type]
        estimate_k=_ks(rng, 3) if rng.random() < 0.2 else (),
        seed=rng.choice(NUMBERS),
        first_group=rng.choice(NUMBERS),
        run_id=rng.choice(RUN_IDS[:4]) if rng.random() < 0.9 else rng.choice(RUN_IDS),
    )


KINDS = ("usual", "binary", "tied", "odd", "equal", "scaled")


def groups(rng: Random, kind: str) -> pb.RewardGroups:
    """Groups of one size or several, whose sizes add up more often than not."""
    held = pb.RewardGroups()
    sizes = [rng.choice((1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 12, 16, 17, 33, 70)) for _ in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.5:
        sizes = sizes[:1] * len(sizes)
        held.group_size = sizes[0] if rng.random() < 0.97 else rng.choice(NUMBERS) % 2**32
    else:
        told = sizes if rng.random() < 0.97 else [*sizes[1:], rng.choice(NUMBERS) % 2**32]
        held.group_sizes.sizes.extend(told)
        held.group_sizes.SetInParent()
    values = [value for size in sizes for value in rewards(rng, kind, size)]
    if rng.random() < 0.6:
        held.f64.values.extend(values)
    else:
        held.f32.values.extend([_float32(value) for value in values])
    return held


def rewards(rng: Random, kind: str, n: int) -> list[float]:
    """The rewards of one group."""
    if kind == "binary":
        return [float(rng.random() < 0.4) for _ in range(n)]
    if kind == "tied":
        pool = [rng.choice(REWARDS[:15]) for _ in range(3)]
        return [rng.choice(pool) for _ in range(n)]
    if kind == "odd":
        return [rng.choice(REWARDS) for _ in range(n)]
    if kind == "equal":
        return [rng.choice(REWARDS[:20])] * n
    if kind == "scaled":
        scale = 10.0 ** rng.randint(-70, 70)
        return [scale * rng.gauss(rng.choice((0, 10)), 1) for _ in range(n)]
    return [rng.gauss(0, 1) for _ in range(n)]


def _ks(rng: Random, most: int) -> list[int]:
    return [
        rng.randint(1, 8) if rng.random() < 0.7 else rng.choice(NUMBERS) % 2**32 for _ in range(rng.randint(0, most))
    ]


def _float32(value: float) -> float:
    try:
        narrow: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return narrow
