"""What GetServerInfo must say, and that its limits hold. They differ from server to server: no file has these cases."""

from __future__ import annotations

from collections.abc import Iterator

from conformance.conformance_pb2 import Case
from conformance.judgement import refused
from conformance.requests import groups, request
from pkpo.v1 import reward_transform_pb2 as pb

NAME = "server info"
LARGEST_NUMBER = 2**32 - 1


def differences(info: pb.GetServerInfoResponse) -> Iterator[str]:
    """Where it differs from what any server must say."""
    if not info.version:
        yield "version is empty"
    told = [variant.variant for variant in info.variants]
    for number in dict.fromkeys((*pb.Variant.values(), *told)):
        wanted = int(number != pb.VARIANT_UNSPECIFIED and number in pb.Variant.values())
        if told.count(number) != wanted:
            yield f"variants has variant {number} {told.count(number)} times; must have it {wanted} times"
    for variant in info.variants:
        needs_seed = variant.variant == pb.VARIANT_PASSK_BOOTSTRAP
        if variant.needs_seed != needs_seed:
            yield f"needs_seed of variant {variant.variant} is {variant.needs_seed}; must be {needs_seed}"
    if info.default_variant != pb.VARIANT_SLOO_MINUS_ONE:
        yield f"default_variant is {info.default_variant}; must be {pb.VARIANT_SLOO_MINUS_ONE}"
    for field in pb.Limits.DESCRIPTOR.fields:
        if not getattr(info.limits, field.name):
            yield f"limits.{field.name} is 0"


def cases_over(limits: pb.Limits) -> Iterator[Case]:
    """Requests over what the server says it takes, where that is small enough to go over it."""

    def transform(limit: str, asked: pb.TransformRequest, field: str) -> Case:
        return Case(name=f"{NAME}/over {limit}", transform=asked, expected=refused([field]))

    if limits.max_estimate_k < 10_000:
        asked = [1] * (limits.max_estimate_k + 1)
        yield transform("max_estimate_k", request(estimate_k=asked), "estimate_k")
        estimate = pb.EstimateRequest(groups=groups(), k=asked)
        yield Case(name=f"{NAME}/over max_estimate_k of Estimate", estimate=estimate, expected=refused(["k"]))
    if limits.max_group_size < LARGEST_NUMBER:
        n = limits.max_group_size + 1
        yield transform("max_group_size", request(groups=groups(size=n)), "groups.group_size")
        yield transform("max_group_size of one", request(groups=groups(sizes=[3, n])), "groups.group_sizes[1]")
