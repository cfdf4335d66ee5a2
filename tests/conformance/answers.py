"""Cases that are answered: every variant, scale, type and shape, k out of range, bootstrap seeds, estimates."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import reference
from conformance import oracle
from conformance.conformance_pb2 import Case, Outcome
from conformance.requests import changed, reward_groups
from pkpo.v1 import reward_transform_pb2 as pb

VECTORS = Path(__file__).parents[1] / "vectors" / "vectors.json"
VARIANTS: list[int] = [number for number in pb.Variant.values() if number]
SCALES = {"sum": pb.SCALE_SUM, "mean": pb.SCALE_MEAN}
LARGEST_WORD = 2**64 - 1
WITHOUT_K = (pb.VARIANT_LOO, pb.VARIANT_GRPO)


def answers() -> Iterator[Case]:
    """All of them."""
    yield from _every_variant()
    yield from _every_k()
    yield from _given_vectors()
    yield from _unusual_rewards()
    yield from _large_groups()
    yield from _options()
    yield from _clamped()
    yield from _statuses()
    yield from _bootstrap()
    yield from _estimates_beside()
    yield from _estimates()


def transform(name: str, request: pb.TransformRequest) -> Case:
    """A Transform and its exact answer."""
    response, tolerance = oracle.transform_response(request)
    return Case(name=name, transform=request, expected=Outcome(transform=response), tolerance=tolerance)


def estimate(name: str, request: pb.EstimateRequest) -> Case:
    """An Estimate and its exact answer."""
    response, tolerance = oracle.estimate_response(request)
    return Case(name=name, estimate=request, expected=Outcome(estimate=response), tolerance=tolerance)


def draws(*key: object) -> random.Random:
    """Numbers that are the same everywhere, as long as nothing but random() is asked of them."""
    return random.Random(repr(key))


KINDS = ("continuous", "binary", "tied", "offset")


def sample(variant: int, kind: str, n: int, rng: random.Random) -> list[float]:
    """Rewards of a kind, those of BINARY 0 or 1."""
    if kind == "binary" or variant == pb.VARIANT_BINARY:
        return [float(rng.random() < 0.4) for _ in range(n)]
    if kind == "tied":
        return [(-1.5, 0.1, 0.25, 7.0)[int(rng.random() * 4)] for _ in range(n)]
    if kind == "offset":
        return [1e6 + 1e-3 * rng.random() for _ in range(n)]
    return [2 * rng.random() - 1 for _ in range(n)]


def coarse(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Rewards of so few digits that no advantage lies in the middle between two float32, where a double's last bit
    would decide.
    """
    return [[round(reward * 2**10) / 2**10 for reward in group] for group in rewards]


def _name(variant: int) -> str:
    return oracle.variant_name(variant) if variant else "unspecified"


def _legal_k(variant: int, n: int, rng: random.Random) -> int:
    ks = reference.legal_ks(oracle.variant_name(variant), n)
    return ks[int(rng.random() * len(ks))]


def _every_variant() -> Iterator[Case]:
    for variant in (pb.VARIANT_UNSPECIFIED, *VARIANTS):
        for kind in ("f64", "f32"):
            for scale_name, scale in SCALES.items():
                where = f"{_name(variant)}/{kind}/{scale_name}"
                rng = draws("every variant", where)
                asked = pb.TransformRequest(variant=variant, scale=scale, seed=int(rng.random() * 2**53))  # type: ignore[arg-type]
                rewards = [sample(variant, values, 6, rng) for values in KINDS]
                groups = reward_groups(coarse(rewards) if kind == "f32" else rewards, kind, uniform=True)
                k = [] if variant in WITHOUT_K else [6 if variant == pb.VARIANT_TZSM else 3]
                yield transform(f"transform/{where}/uniform", changed(asked, groups=groups, k=k))
                sizes = [n for n in (2, 3, 5, 8, 12, 16) if reference.legal_ks(oracle.variant_name(variant), n)]
                rewards = [sample(variant, KINDS[i % len(KINDS)], n, rng) for i, n in enumerate(sizes)]
                groups = reward_groups(coarse(rewards) if kind == "f32" else rewards, kind)
                ks = [_legal_k(variant, n, rng) for n in sizes]
                yield transform(f"transform/{where}/ragged", changed(asked, groups=groups, k=ks))


def _every_k() -> Iterator[Case]:
    n = 12
    for variant in VARIANTS:
        rng = draws("every k", variant)
        ks = reference.legal_ks(oracle.variant_name(variant), n)
        rewards = [sample(variant, "continuous", n, rng) for _ in ks]
        request = pb.TransformRequest(groups=reward_groups(rewards, uniform=True), variant=variant, k=ks, seed=1)  # type: ignore[arg-type]
        yield transform(f"every k of 12/{_name(variant)}", request)


def _given_vectors() -> Iterator[Case]:
    """What tests/vectors holds, as it is there."""
    vectors = json.loads(VECTORS.read_text())
    for variant in VARIANTS:
        given = [vector for vector in vectors["transform"] if vector["variant"] == _name(variant)]
        if given:
            request = pb.TransformRequest(
                groups=reward_groups([vector["rewards"] for vector in given]),
                variant=variant,  # type: ignore[arg-type]
                k=[vector["k"] for vector in given],
                scale=pb.SCALE_SUM,
            )
            case = transform(f"vectors/{_name(variant)}", request)
            advantages = case.expected.transform.f64.values
            advantages[:] = [a for vector in given for a in vector["sum_scale_advantages"]]
            yield case
    for k in sorted({vector["k"] for vector in vectors["estimate"]}):
        given = [vector for vector in vectors["estimate"] if vector["k"] == k]
        groups = reward_groups([vector["rewards"] for vector in given])
        case = estimate(f"vectors/estimate of {k}", pb.EstimateRequest(groups=groups, k=[k]))
        case.expected.estimate.estimates[0].values[:] = [vector["max_at_k"] for vector in given]
        yield case


UNUSUAL = {
    "zeros of both signs": [0.0, -0.0, 1.0, -0.0, 0.0, -1.0],
    "last bits": [1.0 + i * 2.0**-52 for i in (3, 0, 7, 1, 1, 12)],
    "large": [1e100, -1e100, 3e99, 1e100, 0.0, 1.0],
    "tiny": [3e-300, 1e-300, -2e-300, 5e-299, 1e-300, 0.0],
    "far apart": [1e80, 1.0, 1e-80, 1e40, 1.0, 1e-40],
    "below zero": [-3.0, -1.0, -2.0, -8.0, -1.0, -5.0],
}


def _unusual_rewards() -> Iterator[Case]:
    for name, rewards in UNUSUAL.items():
        for variant in VARIANTS:
            # Plain S and what stands on it add what other forms subtract; enough is said of them above.
            if variant == pb.VARIANT_BINARY or (_name(variant) in oracle.WITH_OFFSET and name == "far apart"):
                continue
            k = 6 if variant == pb.VARIANT_TZSM else 3
            groups = reward_groups([rewards], uniform=True)
            request = pb.TransformRequest(groups=groups, variant=variant, k=[k], seed=3)  # type: ignore[arg-type]
            yield transform(f"rewards/{name}/{_name(variant)}", request)


def _large_groups() -> Iterator[Case]:
    for n in (64, 65, 257, 700):
        for variant in (pb.VARIANT_SLOO_MINUS_ONE, pb.VARIANT_CENTERED, pb.VARIANT_PASSK_ANALYTIC):
            rewards = [sample(variant, kind, n, draws("large", n, kind)) for kind in ("continuous", "binary")]
            request = pb.TransformRequest(groups=reward_groups(rewards, uniform=True), variant=variant, k=[n // 4])
            yield transform(f"groups/of {n}/{_name(variant)}", request)
    rng = draws("many")
    rewards = [sample(pb.VARIANT_S, "binary", 4, rng) for _ in range(600)]
    yield transform("groups/600 of 4", pb.TransformRequest(groups=reward_groups(rewards, uniform=True), k=[2]))
    rewards = [sample(pb.VARIANT_S, "tied", 1 + int(rng.random() * 7), rng) for _ in range(300)]
    ks = [_legal_k(pb.VARIANT_S, len(group), rng) for group in rewards]
    request = pb.TransformRequest(groups=reward_groups(rewards), variant=pb.VARIANT_S, k=ks)
    yield transform("groups/300 of any size", request)
    yield transform("groups/of 1", pb.TransformRequest(groups=reward_groups([[2.5]]), variant=pb.VARIANT_S, k=[1]))


def _options() -> Iterator[Case]:
    groups = reward_groups([[1.0, 1.0, 0.0, 0.0], [0.2, 0.9, 0.4, 0.4]], uniform=True)
    yield transform(
        "options/all unspecified",
        pb.TransformRequest(groups=groups, k=[2], scale=pb.SCALE_UNSPECIFIED, k_policy=pb.K_POLICY_UNSPECIFIED),
    )
    yield transform("options/worked by hand", pb.TransformRequest(groups=groups, variant=pb.VARIANT_S, k=[2]))
    strict = pb.TransformRequest(groups=groups, k=[4], k_policy=pb.K_POLICY_STRICT)
    yield transform("options/strict", strict)
    yield transform("options/clamp, where nothing is to be lowered", changed(strict, k_policy=pb.K_POLICY_CLAMP))
    for name, run_id in {"short": "a", "of all characters": "run-7:B/x_y.z", "of 128": "r" * 128}.items():
        yield transform(f"options/run_id {name}", changed(strict, run_id=run_id))
    yield transform("options/seed and first_group of no use", changed(strict, seed=LARGEST_WORD, first_group=2**63))
    for variant in WITHOUT_K:
        for ks in ([0], [99], [7, 0], [2**32 - 1]):
            request = pb.TransformRequest(groups=groups, variant=variant, k=ks)
            yield transform(f"options/k ignored/{_name(variant)}/{','.join(map(str, ks))}", request)
    tzsm = pb.TransformRequest(groups=reward_groups([[1, 2], [0, 1, 3]]), variant=pb.VARIANT_TZSM)
    yield transform("options/TZSM/0 for n", changed(tzsm, k=[0]))
    yield transform("options/TZSM/0 or n", changed(tzsm, k=[2, 0]))


def _clamped() -> Iterator[Case]:
    for variant in VARIANTS:
        rng = draws("clamp", variant)
        rewards = [sample(variant, "continuous", n, rng) for n in (1, 2, 3, 4, 6, 7, 12)]
        if variant == pb.VARIANT_BINARY:
            rewards = [[1.0], [0.0, 1.0], *rewards[2:]]
        tzsm = variant == pb.VARIANT_TZSM
        each = [9, 9, 2**32 - 1, 4, 6 if tzsm else 4, 8, 12]
        for name, k in {"one for all": [12 if tzsm else 5], "one each": each}.items():
            request = pb.TransformRequest(
                groups=reward_groups(rewards),
                variant=variant,  # type: ignore[arg-type]
                k=k,
                k_policy=pb.K_POLICY_CLAMP,
                seed=11,
            )
            yield transform(f"clamp/{_name(variant)}/{name}", request)


def _statuses() -> Iterator[Case]:
    for variant in VARIANTS:
        k = 4 if variant == pb.VARIANT_TZSM else 2
        for kind in ("f64", "f32"):
            rewards = [[1.0] * 4, [0.0, 1.0, 0.0, 0.0], [0.0] * 4]
            if variant != pb.VARIANT_BINARY:
                rewards += [[0.1] * 4, [-3.7] * 4]
            groups = reward_groups(rewards, kind, uniform=True)
            request = pb.TransformRequest(groups=groups, variant=variant, k=[k])  # type: ignore[arg-type]
            yield transform(f"status/no signal in some/{_name(variant)}/{kind}", request)
    clamp = pb.TransformRequest(k_policy=pb.K_POLICY_CLAMP)
    for name, request in {
        "no signal, though rewards differ": pb.TransformRequest(
            groups=reward_groups([[3, 1, 3], [1, 2, 3]]), variant=pb.VARIANT_TZSM, k=[3]
        ),
        "no signal wins over clamped": changed(clamp, groups=reward_groups([[2, 2], [1, 2]]), k=[9]),
        "too small wins over no signal": changed(clamp, groups=reward_groups([[2], [2, 2], [1, 2]]), k=[2]),
        "all of them": changed(clamp, groups=reward_groups([[2], [1, 2, 3], [2, 2], [1, 2]]), k=[2, 3, 9, 3]),
        "no signal left by float32": pb.TransformRequest(
            groups=reward_groups([[0.0, 2.0**-149, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]], "f32", uniform=True),
            variant=pb.VARIANT_LOO,
        ),
    }.items():
        yield transform(f"status/{name}", request)


def _bootstrap() -> Iterator[Case]:
    rng = draws("bootstrap")
    rewards = [sample(pb.VARIANT_PASSK_BOOTSTRAP, KINDS[i % 2], 8, rng) for i in range(6)]
    ks = [3, 3, 5, 2, 7, 8]

    def part(first: int, last: int, start: int, seed: int) -> pb.TransformRequest:
        return pb.TransformRequest(
            groups=reward_groups(rewards[first:last], uniform=True),
            variant=pb.VARIANT_PASSK_BOOTSTRAP,
            k=ks[first:last],
            scale=pb.SCALE_MEAN,
            seed=seed,
            first_group=(start + first) & LARGEST_WORD,
        )

    for name, start, seed in (
        ("from 0", 0, 7),
        ("from a large number", 2**53 + 1, 2**53 + 1),
        ("past the largest number", LARGEST_WORD - 2, LARGEST_WORD),
    ):
        yield transform(f"bootstrap/{name}/whole", part(0, 6, start, seed))
        yield transform(f"bootstrap/{name}/first half", part(0, 3, start, seed))
        yield transform(f"bootstrap/{name}/second half", part(3, 6, start, seed))
    for n, k in ((1, 1), (3, 2), (4, 1), (5, 5), (40, 3), (40, 38)):
        request = pb.TransformRequest(
            groups=reward_groups([sample(pb.VARIANT_PASSK_BOOTSTRAP, "continuous", n, rng)]),
            variant=pb.VARIANT_PASSK_BOOTSTRAP,
            k=[k],
            seed=2**40,
        )
        yield transform(f"bootstrap/{k} of {n}", request)


RAGGED = [[0.5], [0.0, 1.0], [1.0, 1.0, 1.0], [0.25, -1.0, 0.75, 0.5, 2.0], [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]]
ESTIMATED = [4, 1, 2, 6, 4, 7, 2**32 - 1]


def _estimates_beside() -> Iterator[Case]:
    for kind in ("f64", "f32"):
        request = pb.TransformRequest(
            groups=reward_groups(RAGGED, kind), k=[2], k_policy=pb.K_POLICY_CLAMP, estimate_k=ESTIMATED
        )
        yield transform(f"estimate_k/ragged/{kind}", request)
        groups = reward_groups([sample(0, kind_of, 6, draws(kind_of)) for kind_of in KINDS], kind, uniform=True)
        request = pb.TransformRequest(groups=groups, variant=pb.VARIANT_GRPO, estimate_k=[1, 2, 3, 4, 5, 6, 7])
        yield transform(f"estimate_k/uniform/{kind}", request)


def _estimates() -> Iterator[Case]:
    for kind in ("f64", "f32"):
        groups = reward_groups(RAGGED, kind)
        yield estimate(f"estimate/ragged/{kind}", pb.EstimateRequest(groups=groups, k=ESTIMATED))
        yield estimate(f"estimate/one k/{kind}", pb.EstimateRequest(groups=groups, k=[1]))
        for values in KINDS:
            rewards = [sample(0, values, 10, draws("estimate", values, i)) for i in range(3)]
            groups = reward_groups(rewards, kind, uniform=True)
            yield estimate(f"estimate/{values}/{kind}", pb.EstimateRequest(groups=groups, k=range(1, 13)))
    for n in (65, 300):
        groups = reward_groups([sample(0, values, n, draws("estimate", n)) for values in KINDS], uniform=True)
        yield estimate(f"estimate/of {n}", pb.EstimateRequest(groups=groups, k=[1, 2, n // 4, n - 1, n]))
    for name in ("large", "tiny", "far apart", "last bits"):
        groups = reward_groups([UNUSUAL[name]], uniform=True)
        yield estimate(f"estimate/{name}", pb.EstimateRequest(groups=groups, k=[1, 2, 5, 6]))
