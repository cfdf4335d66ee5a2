"""What the kernels must return, computed exactly: the oracle of every test that checks a number.

Two answers to each question, written apart from each other and from the kernels, in rational arithmetic throughout:

* DEFINITIONS say what the papers say, by listing the k-subsets of a group (small groups only);
* CLOSED_FORMS count the subsets instead, in integers over one common denominator (hundreds of samples, every k).

Both are in the scale a variant was published in; `advantages` converts. Square roots carry 256 bits, so that what is
returned is the true value rounded once to a double. Variants, scales and statuses go by their names in lower case.

Sources: PKPO is arXiv 2505.15201, Pass@k Training arXiv 2508.10751, TZSM arXiv 2503.19595.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations

GRPO_EPSILON = 1e-6
BOOTSTRAP_LIMIT = 2**24
ROOT_BITS = 256

Group = Sequence[Fraction]
Subsets = Sequence[Sequence[int]]


# --- the papers' definitions -----------------------------------------------------------------------------------------


def mean(values: Iterable[Fraction]) -> Fraction:
    values = list(values)
    return sum(values, Fraction(0)) / len(values)


def root(square: Fraction) -> Fraction:
    """The square root, to a relative error of 2**-ROOT_BITS."""
    product = square.numerator * square.denominator
    return Fraction(math.isqrt(product << 2 * ROOT_BITS), square.denominator << ROOT_BITS)


def without(g: Group, i: int) -> list[Fraction]:
    return [*g[:i], *g[i + 1 :]]


def z_scores(values: Sequence[Fraction]) -> list[Fraction]:
    """Deviations from the mean in units of the population's standard deviation; zeros where that is zero."""
    centre = mean(values)
    deviation = root(mean((value - centre) ** 2 for value in values))
    return [(value - centre) / deviation if deviation else Fraction(0) for value in values]


def rho(g: Group, k: int) -> Fraction:
    """PKPO eq. 3 and 12: the mean, over all k-subsets, of their largest reward."""
    return mean(max(subset) for subset in combinations(g, k))


def s(g: Group, k: int) -> list[Fraction]:
    """PKPO eq. 19: the part of rho that the subsets holding sample i contribute."""
    n = len(g)
    share = Fraction(1, math.comb(n, k))
    maxima = [(subset, max(g[j] for j in subset)) for subset in combinations(range(n), k)]
    return [sum((share * top for subset, top in maxima if i in subset), Fraction(0)) for i in range(n)]


def sloo(g: Group, k: int) -> list[Fraction]:
    """PKPO eq. 29: s minus its mean over the other samples, were they the whole group."""
    return [s_i - mean(s(without(g, i), k)) for i, s_i in enumerate(s(g, k))]


def sloo_minus_one(g: Group, k: int) -> list[Fraction]:
    """PKPO eq. 33: what sample i adds to the maximum of each subset that holds it."""
    n = len(g)
    if k == 1:
        return [a / n for a in loo(g, 1)]
    return [
        Fraction(k, n) * mean(max(g[i], *rest) - max(rest) for rest in combinations(without(g, i), k - 1))
        for i in range(n)
    ]


def centered(g: Group, k: int) -> list[Fraction]:
    """What leaving sample i out does to rho."""
    return [rho(g, k) - rho(without(g, i), k) for i in range(len(g))]


def loo(g: Group, k: int) -> list[Fraction]:
    """PKPO eq. 26."""
    return [g_i - mean(without(g, i)) for i, g_i in enumerate(g)]


def tzsm(g: Group, k: int) -> list[Fraction]:
    return [max(g) - max(without(g, i)) for i in range(len(g))]


def passk_analytic(g: Group, k: int) -> list[Fraction]:
    """Pass@k Training: the mean z-score of the subsets holding sample i, among all k-subsets."""
    subsets = list(combinations(range(len(g)), k))
    scores = list(zip(subsets, z_scores([max(g[j] for j in subset) for subset in subsets]), strict=True))
    return [mean(score for subset, score in scores if i in subset) for i in range(len(g))]


def passk_bootstrap(g: Group, k: int, subsets: Subsets) -> list[Fraction]:
    """Pass@k Training: the sum of the z-scores of the drawn subsets that hold sample i."""
    answer = [Fraction(0)] * len(g)
    for subset, score in zip(subsets, z_scores([max(g[j] for j in subset) for subset in subsets]), strict=True):
        for j in subset:
            answer[j] += score
    return answer


def passk_full(g: Group, k: int) -> list[Fraction]:
    """Pass@k Training: the z-score of sample i's block among the whole blocks of k; 0 for the remainder."""
    scores = z_scores([max(block) for block in blocks(g, k)])
    return [score for score in scores for _ in range(k)] + [Fraction(0)] * (len(g) % k)


def naive_partitioned(g: Group, k: int) -> list[Fraction]:
    """PKPO figure 4."""
    return [Fraction(k, len(g)) * max(block) for block in blocks(g, k) for _ in block]


def naive_partitioned_baselined(g: Group, k: int) -> list[Fraction]:
    """PKPO figure 4."""
    maxima = [max(block) for block in blocks(g, k)]
    return [Fraction(k, len(g)) * (top - mean(without(maxima, b))) for b, top in enumerate(maxima) for _ in range(k)]


def loo_minus_one_partitioned(g: Group, k: int) -> list[Fraction]:
    """PKPO figure 4."""
    return [Fraction(k, len(g)) * a for block in blocks(g, k) for a in tzsm(block, k)]


def grpo(g: Group, k: int) -> list[Fraction]:
    """The z-score with the sample's standard deviation and a small constant added to it."""
    centre = mean(g)
    deviation = root(len(g) * mean((g_i - centre) ** 2 for g_i in g) / (len(g) - 1))
    return [(g_i - centre) / (deviation + Fraction(GRPO_EPSILON)) for g_i in g]


def blocks(g: Group, k: int) -> Iterator[Group]:
    """The whole consecutive blocks of k, in the order given."""
    return (g[start : start + k] for start in range(0, len(g) - k + 1, k))


DEFINITIONS: dict[str, Callable[..., list[Fraction]]] = {
    "sloo_minus_one": sloo_minus_one,
    "s": s,
    "sloo": sloo,
    "centered": centered,
    "loo": loo,
    "binary": s,
    "tzsm": tzsm,
    "passk_analytic": passk_analytic,
    "passk_bootstrap": passk_bootstrap,
    "passk_full": passk_full,
    "naive_partitioned": naive_partitioned,
    "naive_partitioned_baselined": naive_partitioned_baselined,
    "loo_minus_one_partitioned": loo_minus_one_partitioned,
    "grpo": grpo,
}

PUBLISHED_IN_MEAN_SCALE = {"loo", "grpo", "passk_analytic", "passk_bootstrap", "passk_full"}


# --- the same by counting --------------------------------------------------------------------------------------------
#
# Below, x_1 <= ... <= x_n are a group's rewards as integers, sorted, in units of 1 / `unit`. Python counts from 0, so
# that x[i] has i rewards below it; c(i, k-1) subsets of k have it as their last element.


@dataclass(frozen=True)
class Ratios:
    """Rational numbers over one denominator: cheap to make by the hundred, and to round."""

    numerators: list[int]
    denominator: int

    def floats(self) -> list[float]:
        # Dividing two Python integers rounds once, into the subnormals too.
        return [numerator / self.denominator for numerator in self.numerators]

    def fractions(self) -> list[Fraction]:
        return [Fraction(numerator, self.denominator) for numerator in self.numerators]


@cache
def c(a: int, b: int) -> int:
    """The binomial coefficient, 0 outside its range."""
    return math.comb(a, b) if 0 <= b <= a else 0


def below(terms: Iterable[int]) -> list[int]:
    """At each position, the sum of the terms before it."""
    sums, total = [], 0
    for term in terms:
        sums.append(total)
        total += term
    return sums


def above(terms: Sequence[int]) -> list[int]:
    """At each position, the sum of the terms after it."""
    return below(reversed(terms))[::-1]


def sum_of_maxima(x: list[int], k: int) -> int:
    """Of all k-subsets: rho times c(n, k). Of any other quantity x: its sum over the subsets' last elements."""
    return sum(c(i, k - 1) * x_i for i, x_i in enumerate(x))


def sums_of_maxima_with(x: list[int], k: int) -> list[int]:
    """Of the k-subsets holding i: i is the last, or some j > i is and the other k - 2 come from the j - 1 others."""
    later = above([c(j - 1, k - 2) * x_j for j, x_j in enumerate(x)])
    return [c(i, k - 1) * x_i + later[i] for i, x_i in enumerate(x)]


def sums_of_maxima_without(x: list[int], k: int) -> list[int]:
    """Of the k-subsets of the others: whoever lies above i has one reward fewer below."""
    earlier = below(c(j, k - 1) * x_j for j, x_j in enumerate(x))
    later = above([c(j - 1, k - 1) * x_j for j, x_j in enumerate(x)])
    return [e + f for e, f in zip(earlier, later, strict=True)]


def counted_s(x: list[int], k: int, unit: int) -> Ratios:
    return Ratios(sums_of_maxima_with(x, k), c(len(x), k) * unit)


def counted_sloo(x: list[int], k: int, unit: int) -> Ratios:
    """s_i - k / (n-1) * rho of the others, where c(n-1, k) = c(n, k) (n-k) / n."""
    n = len(x)
    common = (n - 1) * (n - k)
    pairs = zip(sums_of_maxima_with(x, k), sums_of_maxima_without(x, k), strict=True)
    return Ratios([common * inside - k * n * outside for inside, outside in pairs], common * c(n, k) * unit)


def counted_sloo_minus_one(x: list[int], k: int, unit: int) -> Ratios:
    """Sample i adds x_i - x_j to the subsets in which it comes last and x_j next to last."""
    n = len(x)
    if k == 1:
        loo = counted_loo(x, k, unit)
        return Ratios(loo.numerators, loo.denominator * n)
    next_to_last = below(c(j, k - 2) * x_j for j, x_j in enumerate(x))
    return Ratios([c(i, k - 1) * x_i - next_to_last[i] for i, x_i in enumerate(x)], c(n, k) * unit)


def counted_centered(x: list[int], k: int, unit: int) -> Ratios:
    n = len(x)
    everything = (n - k) * sum_of_maxima(x, k)
    return Ratios([everything - n * rest for rest in sums_of_maxima_without(x, k)], (n - k) * c(n, k) * unit)


def counted_loo(x: list[int], k: int, unit: int) -> Ratios:
    n, total = len(x), sum(x)
    return Ratios([n * x_i - total for x_i in x], (n - 1) * unit)


def counted_tzsm(x: list[int], k: int, unit: int) -> Ratios:
    return Ratios([0] * (len(x) - 1) + [x[-1] - x[-2]], unit)


def counted_passk_analytic(x: list[int], k: int, unit: int) -> Ratios:
    """(n / k s_i - rho) / sd, where sd^2 is the mean of the squared maxima less the square of rho."""
    n, total = len(x), sum_of_maxima(x, k)
    variance = c(n, k) * sum_of_maxima([x_i * x_i for x_i in x], k) - total * total
    if variance == 0:
        return Ratios([0] * n, 1)
    deviation = math.isqrt(variance << 2 * ROOT_BITS)
    return Ratios([(n * s_i - k * total) << ROOT_BITS for s_i in sums_of_maxima_with(x, k)], k * deviation)


def counted_grpo(x: list[int], k: int, unit: int) -> Ratios:
    n, total = len(x), sum(x)
    deviations = [n * x_i - total for x_i in x]
    deviation = root(Fraction(sum(d * d for d in deviations), n - 1)) / n + Fraction(GRPO_EPSILON) * unit
    return Ratios([d * deviation.denominator for d in deviations], n * deviation.numerator)


CLOSED_FORMS: dict[str, Callable[[list[int], int, int], Ratios]] = {
    "sloo_minus_one": counted_sloo_minus_one,
    "s": counted_s,
    "sloo": counted_sloo,
    "centered": counted_centered,
    "loo": counted_loo,
    "binary": counted_s,
    "tzsm": counted_tzsm,
    "passk_analytic": counted_passk_analytic,
    "grpo": counted_grpo,
}


def counted(variant: str, rewards: Sequence[float], k: int) -> Ratios:
    """One of CLOSED_FORMS, of rewards in any order."""
    integers, unit = over_common_unit(rewards)
    order = sorted(range(len(rewards)), key=lambda i: integers[i])
    ratios = CLOSED_FORMS[variant]([integers[i] for i in order], k, unit)
    numerators = [0] * len(rewards)
    for i, numerator in zip(order, ratios.numerators, strict=True):
        numerators[i] = numerator
    return Ratios(numerators, ratios.denominator)


def over_common_unit(rewards: Sequence[float]) -> tuple[list[int], int]:
    """The rewards as integers, and the power of two they were multiplied by."""
    ratios = [float(reward).as_integer_ratio() for reward in rewards]
    unit = max(denominator for _, denominator in ratios)
    return [numerator * (unit // denominator) for numerator, denominator in ratios], unit


# --- the bootstrap's subsets -----------------------------------------------------------------------------------------

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64 - 1


def mix(z: int) -> int:
    """SplitMix64's finish: 64 bits in, 64 well-mixed bits out."""
    z &= WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def bootstrap_subsets(n: int, k: int, seed: int = 0, group: int = 0) -> list[list[int]]:
    """The distinct k-subsets that PASSK_BOOTSTRAP draws for one group: n, or as many as there are."""
    key = mix(mix(seed) + group)
    inside = 2 * k <= n
    q = k if inside else n - k
    if q <= 1:
        chosen = [{b} for b in range(n)] if q else [set()]
    else:
        chosen = list(distinct_choices(n, q, min(n, math.comb(n, k)), key))
    return [sorted(choice if inside else set(range(n)) - choice) for choice in chosen]


def distinct_choices(n: int, q: int, number: int, key: int) -> Iterator[set[int]]:
    """Choices of q samples by Floyd's method, less those whose signature came before."""
    seen: set[int] = set()
    attempt = 0
    while len(seen) < number:
        choice: set[int] = set()
        for p in range(q):
            j = n - q + p
            draw = mix(key + (attempt * q + p + 1) * GOLDEN)
            pick = (draw >> 24) * (j + 1) >> 40
            choice.add(j if pick in choice else pick)
        attempt += 1
        signature = 0
        for i in choice:
            signature ^= mix((i + 1) * GOLDEN)
        if signature not in seen:
            seen.add(signature)
            yield choice


# --- questions and answers -------------------------------------------------------------------------------------------


def advantages(
    variant: str, rewards: Sequence[float], k: int, *, scale: str = "sum", subsets: Subsets | None = None
) -> list[float]:
    """The advantages of one group, rounded once. `subsets` are PASSK_BOOTSTRAP's; k is legal, or ignored."""
    n = len(rewards)
    if variant in CLOSED_FORMS:
        published = counted(variant, rewards, k)
    else:
        integers, unit = over_common_unit(rewards)
        group = [Fraction(integer, unit) for integer in integers]
        answer = DEFINITIONS[variant](group, k) if subsets is None else DEFINITIONS[variant](group, k, subsets)
        common = math.lcm(*{a.denominator for a in answer})
        published = Ratios([a.numerator * (common // a.denominator) for a in answer], common)
    if scale == "mean" and variant not in PUBLISHED_IN_MEAN_SCALE:
        return Ratios([n * numerator for numerator in published.numerators], published.denominator).floats()
    if scale == "sum" and variant in PUBLISHED_IN_MEAN_SCALE:
        return Ratios(published.numerators, n * published.denominator).floats()
    return published.floats()


def max_at_k(rewards: Sequence[float], k: int) -> float:
    """The unbiased estimate of max@k (PKPO eq. 3, 12); NaN where k > n, as there is none (corollary 2)."""
    if k > len(rewards):
        return math.nan
    integers, unit = over_common_unit(rewards)
    return sum_of_maxima(sorted(integers), k) / (c(len(rewards), k) * unit)


def standard_error(rewards: Sequence[float], k: int) -> float:
    """Its jackknife standard error, from the n estimates that leave one sample out; NaN where k >= n."""
    n = len(rewards)
    if k >= n:
        return math.nan
    differences = counted("centered", rewards, k)
    square = Fraction((n - 1) * sum(a * a for a in differences.numerators), n * differences.denominator**2)
    return float(root(square))


def legal(variant: str, n: int, k: int) -> bool:
    """Whether the variant is defined for k of n samples."""
    return {
        "sloo_minus_one": n >= 2 and 1 <= k <= n,
        "s": 1 <= k <= n,
        "sloo": 1 <= k <= n - 1,
        "centered": 1 <= k <= n - 1,
        "loo": n >= 2,
        "binary": 1 <= k <= n,
        "tzsm": n >= 2 and k == n,
        "passk_analytic": 1 <= k <= n,
        "passk_bootstrap": 1 <= k <= n and n * k <= BOOTSTRAP_LIMIT,
        "passk_full": 1 <= k <= n,
        "naive_partitioned": k >= 1 and n % k == 0,
        "naive_partitioned_baselined": k >= 1 and n % k == 0 and n >= 2 * k,
        "loo_minus_one_partitioned": k >= 2 and n % k == 0,
        "grpo": n >= 2,
    }[variant]


def legal_ks(variant: str, n: int) -> list[int]:
    """Every k the variant is defined for; one stands for all where k is ignored."""
    if variant in ("loo", "grpo"):
        return [1] if n >= 2 else []
    return [k for k in range(1, n + 1) if legal(variant, n, k)]


def clamped(variant: str, n: int, k: int) -> int | None:
    """The largest legal k that is not above the one asked for; None where there is none."""
    return next((lower for lower in range(min(k, n), 0, -1) if legal(variant, n, lower)), None)


def error(
    variant: str, rewards: Sequence[float], k: int, measured: Iterable[float], *, scale: str = "sum", **asked: Subsets
) -> float:
    """The worst deviation of the measured advantages, as a share of the group's largest: what exactness is judged by.

    For the variants that are not built from differences of rewards, as a share of (k/n) times the largest reward
    if that is more.
    """
    exact = advantages(variant, rewards, k, scale=scale, **asked)
    largest = max(map(abs, exact))
    if variant in ("s", "sloo", "binary"):
        largest = max(largest, k * max(map(abs, rewards)) / (len(rewards) if scale == "sum" else 1))
    worst = max(abs(a - float(b)) for a, b in zip(exact, measured, strict=True))
    return worst / largest if worst else 0.0
