"""Cases that must be refused: code and fields."""

from __future__ import annotations

from collections.abc import Iterator

from conformance.conformance_pb2 import Case
from conformance.judgement import refused
from conformance.requests import groups, request, reward_groups
from pkpo.v1 import reward_transform_pb2 as pb

INFINITY, NAN = float("inf"), float("nan")
LARGEST_FLOAT = 3.4e38
CLAMP = pb.K_POLICY_CLAMP


def refusals() -> Iterator[Case]:
    """All of them."""
    for name, (transform, fields) in bad_transforms().items():
        yield Case(name=f"refusal/transform/{name}", transform=transform, expected=refused(fields))
    for name, (estimate, fields) in _bad_estimates().items():
        yield Case(name=f"refusal/estimate/{name}", estimate=estimate, expected=refused(fields))


def bad_transforms() -> dict[str, tuple[pb.TransformRequest, list[str]]]:
    """Requests, and the fields that offend."""
    ones = [1.0] * 40
    return {
        # the groups
        "nothing at all": (pb.TransformRequest(), ["groups.rewards", "groups.shape"]),
        "no groups": (request(groups=None), ["groups.rewards", "groups.shape"]),
        "no rewards": (request(groups=groups(kind=None)), ["groups.rewards"]),
        "empty rewards": (request(groups=groups([])), ["groups.rewards"]),
        "empty float rewards": (request(groups=groups([], kind="f32")), ["groups.rewards"]),
        "no shape": (request(groups=groups(size=None)), ["groups.shape"]),
        "size 0": (request(groups=groups(size=0)), ["groups.group_size"]),
        "a size that does not divide": (request(groups=groups(size=3)), ["groups.group_size"]),
        "a size over the rewards": (request(groups=groups(size=8)), ["groups.group_size"]),
        "no sizes": (request(groups=groups(sizes=[])), ["groups.group_sizes"]),
        "a size of 0 among sizes": (request(groups=groups(sizes=[4, 0])), ["groups.group_sizes[1]"]),
        "sizes that add up to less": (request(groups=groups(sizes=[2, 1])), ["groups.group_sizes"]),
        "sizes that add up to more": (request(groups=groups(sizes=[4, 4])), ["groups.group_sizes"]),
        "every size 0": (request(groups=groups(sizes=[0] * 40)), [f"groups.group_sizes[{i}]" for i in range(40)]),
        # the rewards
        "NaN": (request(groups=groups([0, NAN, 1, NAN])), ["groups.rewards[1]", "groups.rewards[3]"]),
        "infinity": (request(groups=groups([0, 1, 2, INFINITY])), ["groups.rewards[3]"]),
        "float NaN": (request(groups=groups([NAN, 1, 2, 3], kind="f32")), ["groups.rewards[0]"]),
        "float infinity": (request(groups=groups([0, 1, 2, -INFINITY], kind="f32")), ["groups.rewards[3]"]),
        "over 1e100": (request(groups=groups([0, 1.01e100, 0, -1e300])), ["groups.rewards[1]", "groups.rewards[3]"]),
        "every reward NaN": (
            request(groups=groups([NAN] * 40, sizes=[20, 20])),
            [f"groups.rewards[{i}]" for i in range(40)],
        ),
        "BINARY of others": (
            request(groups=groups([0, 0.5, 1, 2]), variant=pb.VARIANT_BINARY),
            ["groups.rewards[1]", "groups.rewards[3]"],
        ),
        "advantages over float32": (
            request(
                groups=groups([LARGEST_FLOAT, -LARGEST_FLOAT, 0, 0], kind="f32"),
                variant=pb.VARIANT_LOO,
                scale=pb.SCALE_MEAN,
            ),
            ["groups.rewards[0]", "groups.rewards[1]"],
        ),
        # enums, and what else has a range
        "unknown variant": (request(variant=99), ["variant"]),
        "negative variant": (request(variant=-1), ["variant"]),
        "unknown scale": (request(scale=3), ["scale"]),
        "unknown k_policy": (request(k_policy=77), ["k_policy"]),
        "estimate_k 0": (request(estimate_k=[1, 0, 0]), ["estimate_k[1]", "estimate_k[2]"]),
        "run_id with a space": (request(run_id="a b"), ["run_id"]),
        "run_id with a newline": (request(run_id="a\n"), ["run_id"]),
        "run_id of other letters": (request(run_id="é"), ["run_id"]),
        "run_id of 129": (request(run_id="a" * 129), ["run_id"]),
        "run_id of 5000": (request(run_id="%" * 5000), ["run_id"]),
        "several at once": (
            request(variant=99, scale=9, run_id="no spaces", groups=groups(size=None)),
            ["variant", "scale", "run_id", "groups.shape"],
        ),
        "more at once": (
            request(variant=99, scale=9, k_policy=9, estimate_k=[0], run_id="no spaces", groups=groups(size=None)),
            ["variant", "scale", "k_policy", "estimate_k[0]", "run_id", "groups.shape"],
        ),
        # k
        "no k": (request(k=[]), ["k"]),
        "a wrong number of k": (request(k=[1, 2, 3]), ["k"]),
        "a wrong number of k, ignored": (request(k=[1, 2, 3], variant=pb.VARIANT_GRPO), ["k"]),
        "k 0": (request(k=[0]), ["k[0]"]),
        "k 0, clamped": (request(k=[0], k_policy=CLAMP), ["k[0]"]),
        "k over n": (request(k=[5]), ["k[0]"]),
        "k far over n": (request(k=[2**32 - 1]), ["k[0]"]),
        "the second k": (request(groups=groups(size=2), k=[2, 3]), ["k[1]"]),
        "every k": (
            request(groups=groups(ones, size=1), k=[7] * 40, variant=pb.VARIANT_S),
            [f"k[{i}]" for i in range(40)],
        ),
        "one k for all, too large for some": (request(groups=groups(sizes=[3, 1]), variant=pb.VARIANT_S), ["k[0]"]),
        "SLOO at n": (request(k=[4], variant=pb.VARIANT_SLOO), ["k[0]"]),
        "CENTERED at n": (request(k=[4], variant=pb.VARIANT_CENTERED), ["k[0]"]),
        "TZSM below n": (request(k=[3], variant=pb.VARIANT_TZSM), ["k[0]"]),
        "TZSM below n, clamped": (request(k=[3], variant=pb.VARIANT_TZSM, k_policy=CLAMP), ["k[0]"]),
        "TZSM over n": (request(k=[5], variant=pb.VARIANT_TZSM), ["k[0]"]),
        "blocks that do not divide": (request(k=[3], variant=pb.VARIANT_NAIVE_PARTITIONED), ["k[0]"]),
        "one block and no other": (request(k=[4], variant=pb.VARIANT_NAIVE_PARTITIONED_BASELINED), ["k[0]"]),
        "blocks of 1 less one": (request(k=[1], variant=pb.VARIANT_LOO_MINUS_ONE_PARTITIONED), ["k[0]"]),
        "a group of 1": (request(groups=groups(size=1), k=[1]), ["groups.group_size"]),
        "a group of 1 among others": (request(groups=groups(sizes=[3, 1]), k=[1]), ["groups.group_sizes[1]"]),
        "LOO of a group of 1": (request(groups=groups(size=1), variant=pb.VARIANT_LOO), ["groups.group_size"]),
    }


def _bad_estimates() -> dict[str, tuple[pb.EstimateRequest, list[str]]]:
    legal = reward_groups([[0.0, 1.0]])
    return {
        "nothing at all": (pb.EstimateRequest(), ["groups.rewards", "groups.shape"]),
        "no groups": (pb.EstimateRequest(k=[1]), ["groups.rewards", "groups.shape"]),
        "no k": (pb.EstimateRequest(groups=legal), ["k"]),
        "k 0": (pb.EstimateRequest(groups=legal, k=[1, 0]), ["k[1]"]),
        "NaN": (pb.EstimateRequest(groups=groups([NAN, 0], size=2), k=[1]), ["groups.rewards[0]"]),
        "a size that does not divide": (pb.EstimateRequest(groups=groups(size=3), k=[1]), ["groups.group_size"]),
    }
