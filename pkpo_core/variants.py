"""The published transforms of a group's rewards, and the words a request is made of."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Variant(enum.Enum):
    """Which function of a group's rewards the advantages are."""

    SLOO_MINUS_ONE = "sloo_minus_one"
    S = "s"
    SLOO = "sloo"
    CENTERED = "centered"
    LOO = "loo"
    BINARY = "binary"
    TZSM = "tzsm"
    PASSK_ANALYTIC = "passk_analytic"
    PASSK_BOOTSTRAP = "passk_bootstrap"
    PASSK_FULL = "passk_full"
    NAIVE_PARTITIONED = "naive_partitioned"
    NAIVE_PARTITIONED_BASELINED = "naive_partitioned_baselined"
    LOO_MINUS_ONE_PARTITIONED = "loo_minus_one_partitioned"
    GRPO = "grpo"

    # There is one object of each, and Enum's own hash is a function in Python, called several times for a batch.
    __hash__ = object.__hash__


class Scale(enum.Enum):
    """What the caller's loss does with a group: sum over it, or average over it (advantages n times larger)."""

    SUM = "sum"
    MEAN = "mean"

    __hash__ = object.__hash__


class KPolicy(enum.Enum):
    """What to do with a k outside a variant's range: refuse, or lower it to the largest legal one."""

    STRICT = "strict"
    CLAMP = "clamp"


class GroupStatus(enum.IntEnum):
    """What a trainer should know of a group; a higher number wins where several hold, but for FINE."""

    FINE = 0
    K_CLAMPED = 1
    NO_SIGNAL = 2
    TOO_SMALL = 3


@dataclass(frozen=True, slots=True)
class VariantInfo:
    """A variant's paper and equation, its legal k in words, whether it is random, and whether it ignores k."""

    variant: Variant
    source: str
    k_range: str
    needs_seed: bool = False
    ignores_k: bool = False


_PKPO = "PKPO, arXiv 2505.15201, "
_PASSK = "Pass@k Training, arXiv 2508.10751, "

VARIANTS: Mapping[Variant, VariantInfo] = MappingProxyType(
    {
        info.variant: info
        for info in (
            VariantInfo(Variant.SLOO_MINUS_ONE, _PKPO + "eq. 33", "1 <= k <= n, n >= 2"),
            VariantInfo(Variant.S, _PKPO + "eq. 19", "1 <= k <= n"),
            VariantInfo(Variant.SLOO, _PKPO + "eq. 29", "1 <= k <= n - 1"),
            VariantInfo(Variant.CENTERED, _PKPO + "eq. 12 on all samples less all but one", "1 <= k <= n - 1"),
            VariantInfo(Variant.LOO, _PKPO + "eq. 26", "n >= 2 (k is ignored)", ignores_k=True),
            VariantInfo(Variant.BINARY, _PKPO + "eq. 8", "1 <= k <= n"),
            VariantInfo(Variant.TZSM, "Tang et al., arXiv 2503.19595", "k = n, or 0 for n; n >= 2"),
            VariantInfo(Variant.PASSK_ANALYTIC, _PASSK + "analytical derivation", "1 <= k <= n"),
            VariantInfo(
                Variant.PASSK_BOOTSTRAP, _PASSK + "bootstrap sampling", "1 <= k <= n, n k <= 2^24", needs_seed=True
            ),
            VariantInfo(Variant.PASSK_FULL, _PASSK + "full sampling", "1 <= k <= n"),
            VariantInfo(Variant.NAIVE_PARTITIONED, _PKPO + "figure 4", "k divides n"),
            VariantInfo(Variant.NAIVE_PARTITIONED_BASELINED, _PKPO + "figure 4", "k divides n, n >= 2 k"),
            VariantInfo(Variant.LOO_MINUS_ONE_PARTITIONED, _PKPO + "figure 4", "k divides n, k >= 2"),
            VariantInfo(Variant.GRPO, "GRPO, arXiv 2402.03300", "n >= 2 (k is ignored)", ignores_k=True),
        )
    }
)
