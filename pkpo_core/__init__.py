"""The mathematics of pkpo: rewards of groups of samples in, advantages that optimise pass@k / max@k out.

    >>> import pkpo_core
    >>> pkpo_core.transform([[1, 1, 0, 0]], k=2, variant=pkpo_core.Variant.S).advantages
    array([[0.5       , 0.5       , 0.33333333, 0.33333333]])

NumPy and Numba only. Deterministic: the same bits in every process and on every path.
"""

from pkpo_core.advantages import Transformed, transform
from pkpo_core.compilation import compile_kernels
from pkpo_core.errors import CoreError, InvalidArgument, Violation
from pkpo_core.estimates import MaxAtK, estimate
from pkpo_core.groups import RewardGroups
from pkpo_core.variants import VARIANTS, GroupStatus, KPolicy, Scale, Variant, VariantInfo

__all__ = [
    "VARIANTS",
    "CoreError",
    "GroupStatus",
    "InvalidArgument",
    "KPolicy",
    "MaxAtK",
    "RewardGroups",
    "Scale",
    "Transformed",
    "Variant",
    "VariantInfo",
    "Violation",
    "compile_kernels",
    "estimate",
    "transform",
]
