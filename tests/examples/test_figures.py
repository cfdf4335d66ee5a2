"""The figures are what the command makes, and what docs/estimators.md says of them holds.

Everything is seeded: a sampled claim is judged once, with bounds of five standard errors, wide enough for the hundreds
of rows they are asked of and for the last bit of another machine.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.figures import bias, coin, estimates, toy, variance
from examples.figures.__main__ import FOLDER, SUBJECTS, main, make
from examples.figures.gradients import NORMALISED, UNBIASED, Effort, Moments, gradients
from examples.figures.table import Row, Table, read_csv, where, write_csv
from pkpo_client import LocalClient
from pkpo_core import Variant

PAGE = FOLDER.parent / "estimators.md"
ERRORS = 5.0  # standard errors
RATES = (0.002, 0.02, 0.1, 0.3, 0.5, 0.9)
# On 0/1 rewards; those on blocks depend on the order, too.
OF_COUNTS = ("sloo_minus_one", "s", "sloo", "centered", "loo", "binary", "tzsm", "passk_analytic", "grpo")


@pytest.fixture(scope="module")
def pkpo() -> Iterator[LocalClient]:
    with LocalClient() as client:
        yield client


def kept(name: str) -> Table:
    return read_csv(FOLDER / f"{name}.csv")


def number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, (int, float)), (row, name)
    return float(value)


def only(table: Table, **values: str | int | float) -> Row:
    (row,) = where(table, **values)
    return row


# --- What is kept is what the command makes ---


def assert_same(made: Table, committed: Table) -> None:
    assert [list(row) for row in made] == [list(row) for row in committed]
    for ours, theirs in zip(made, committed, strict=True):
        for name, value in ours.items():
            expected = theirs[name]
            if isinstance(value, float) and isinstance(expected, (int, float)):
                expected = pytest.approx(expected, rel=1e-5, abs=1e-9)
            assert value == expected, (name, ours, theirs)


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if name != "bias"])
def test_the_tables_are_what_the_command_makes(subject: str, pkpo: LocalClient, tmp_path: Path) -> None:
    make_tables, _ = SUBJECTS[subject]
    for name, table in make_tables(pkpo, Effort()).items():
        write_csv(tmp_path / "table.csv", table)
        assert_same(read_csv(tmp_path / "table.csv"), kept(name))


def test_a_zero_of_a_gradient_is_what_the_command_makes(pkpo: LocalClient) -> None:
    n = 64
    made = bias.rest(pkpo, "passk_analytic", n, bias.SAMPLES // n)
    assert number(made, "theta") == pytest.approx(
        number(only(kept("bias"), variant="passk_analytic", n=n), "theta"), rel=1e-5
    )


def test_the_command_makes_all_that_is_kept_and_the_same_bytes_again(tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    assert main(["--quick", "--output", str(once)]) == 0
    assert {path.name for path in once.iterdir()} == {path.name for path in FOLDER.iterdir()}
    make(["objective", "weights", "prompts"], again, Effort(quick=True))
    for path in again.iterdir():
        assert path.read_bytes() == (once / path.name).read_bytes(), path.name


def test_nothing_in_a_picture_changes_by_itself() -> None:
    for path in FOLDER.glob("*.svg"):
        told = path.read_text()
        assert "<dc:date>" not in told, path.name
        assert "<image" not in told, f"{path.name}: a bitmap has a random id"
    for path in FOLDER.glob("*.png"):
        assert b"Software" not in path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "said"), [(["nothing"], "unknown figure 'nothing'"), (["--quick"], "--quick makes nothing to keep")]
)
def test_what_cannot_be_made_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


# --- The truths are true ---


def moment(theta: float, power: int) -> float:
    """E x^power on [0, 1], in closed form: the moments of a truncated normal, by their recursion."""
    low, high = -theta / toy.SIGMA, (1 - theta) / toy.SIGMA

    def density(z: float) -> float:
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    of_z = [math.erf(high / math.sqrt(2)) / 2 - math.erf(low / math.sqrt(2)) / 2, density(low) - density(high)]
    for m in range(2, power + 1):
        edges = low ** (m - 1) * density(low) - high ** (m - 1) * density(high)
        of_z.append((m - 1) * of_z[m - 2] + edges)
    return sum(math.comb(power, m) * theta ** (power - m) * toy.SIGMA**m * of_z[m] for m in range(power + 1))


@pytest.mark.parametrize("theta", [0.6, 0.9, 1.0, 1.2])
def test_quadrature_agrees_with_closed_forms_at_k_1(theta: float) -> None:
    assert toy.max_at_k(theta, 1) == pytest.approx(moment(theta, 2), rel=1e-12)
    assert toy.first_order_variance(theta, 1) == pytest.approx(moment(theta, 4) - moment(theta, 2) ** 2, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4, 32])
def test_the_derivative_is_that_of_max_at_k_and_zero_at_the_optimum(k: int) -> None:
    theta = np.array([0.7, 0.95, 1.1])
    quotient = (toy.max_at_k(theta + 1e-5, k) - toy.max_at_k(theta - 1e-5, k)) / 2e-5
    assert toy.derivative(theta, k) == pytest.approx(quotient, rel=1e-6)
    best = toy.optimum(k)
    assert toy.derivative(best, k) == pytest.approx(0, abs=1e-9)
    assert toy.max_at_k(best, k) > max(toy.max_at_k(best - 0.01, k), toy.max_at_k(best + 0.01, k))


def test_enumeration_of_counts_agrees_with_enumeration_of_groups(pkpo: LocalClient) -> None:
    """Every one of the 2^n groups, each with its probability."""
    n, k, rate = 6, 3, 0.3
    groups = np.array(list(itertools.product([0.0, 1.0], repeat=n)))
    share = np.prod(np.where(groups == 1, rate, 1 - rate), axis=1)
    for variant in ("sloo_minus_one", "sloo", "passk_analytic"):
        gradient = (pkpo.transform(groups, k, variant=variant) * (groups - rate)).sum(axis=1)
        mean = share @ gradient
        expected = (mean, share @ (gradient - mean) ** 2)
        assert coin.moments(coin.groups(pkpo, variant, k, n), rate) == pytest.approx(expected, rel=1e-12)


# --- Two problems: each k has its optimum ---


def test_sampled_curves_lie_on_those_of_the_quadrature() -> None:
    scores = []
    for row in kept("objective_sampled"):
        theta, k = number(row, "theta"), int(number(row, "k"))
        for name, truth in (("max_at_k", toy.max_at_k(theta, k)), ("derivative", toy.derivative(theta, k))):
            scores.append((number(row, name) - float(truth)) / number(row, f"{name}_error"))
    assert np.max(np.abs(scores)) < ERRORS
    # The errors are what they say; the rows of one theta share their samples, hence the width.
    assert 0.6 < np.sqrt(np.mean(np.square(scores))) < 1.4


def test_a_neighbouring_k_loses_little_and_a_distant_one_much() -> None:
    optima = kept("optima")
    for trained in optima:
        for at in (number(trained, "k") / 2, number(trained, "k") * 2):
            best = where(optima, k=at)
            if best:
                assert number(trained, f"max_at_{at:.0f}") > 0.97 * number(best[0], f"max_at_{at:.0f}")
    assert number(only(optima, k=32), "max_at_1") < 0.69 * number(only(optima, k=1), "max_at_1")


# --- Each variant: bias and variance ---


@pytest.mark.parametrize("name", ["variants", "variance_by_n", "variance_by_k"])
def test_the_gradient_of_an_unbiased_variant_is_that_of_max_at_k(name: str) -> None:
    rows = [row for row in kept(name) if row["variant"] in UNBIASED]
    assert rows
    for row in rows:
        truth = float(toy.derivative(variance.THETA, int(number(row, "k"))))
        assert number(row, "derivative") == pytest.approx(truth, rel=1e-5)
        assert abs(number(row, "mean") - truth) < ERRORS * number(row, "mean_error"), row


def test_every_variant_is_measured_and_is_either_unbiased_or_normalised() -> None:
    names = {variant.name.lower() for variant in Variant} - {"binary"}
    assert {row["variant"] for row in kept("variants")} == names == {*UNBIASED, *NORMALISED}


def test_binary_is_s(pkpo: LocalClient) -> None:
    groups = coin.rewards(8)
    assert np.array_equal(pkpo.transform(groups, 3, variant="binary"), pkpo.transform(groups, 3, variant="s"))


def test_what_an_unbiased_variant_comes_to_rest_at_is_the_optimum_and_a_normalised_one_passes_it() -> None:
    for row in kept("bias"):
        beyond = (number(row, "theta") - number(row, "optimum")) / number(row, "theta_error")
        if row["variant"] in UNBIASED:
            assert abs(beyond) < ERRORS, row
        else:
            assert beyond > ERRORS, row


@pytest.mark.parametrize("variant", NORMALISED)
def test_the_bias_within_a_prompt_fades_with_n(variant: str) -> None:
    rows = where(kept("bias"), variant=variant)
    beyond = [number(row, "theta") - number(row, "optimum") for row in rows]
    assert beyond == sorted(beyond, reverse=True)


def test_the_bias_is_least_of_the_analytic_and_most_of_full_sampling() -> None:
    for n in bias.SIZES:
        analytic, bootstrap, full = (
            number(only(kept("bias"), variant=f"passk_{name}", n=n), "theta")
            for name in ("analytic", "bootstrap", "full")
        )
        assert analytic < bootstrap < full


def varies_less(table: Table, one: str, other: str, **at: int) -> bool:
    """Whether the variance of one is below the other's by more than the errors of both."""
    low, high = only(table, variant=one, **at), only(table, variant=other, **at)
    errors = math.hypot(number(low, "variance_error"), number(high, "variance_error"))
    return number(high, "variance") - number(low, "variance") > ERRORS * errors


@pytest.mark.parametrize("n", variance.SIZES[1:])
def test_the_order_of_variances_at_every_n(n: int) -> None:
    table = kept("variance_by_n")
    for one, other in (
        ("sloo_minus_one", "centered"),
        ("centered", "sloo"),
        ("sloo", "s"),
        ("sloo_minus_one", "loo_minus_one_partitioned"),
        ("sloo", "naive_partitioned_baselined"),
        ("s", "naive_partitioned"),
    ):
        assert varies_less(table, one, other, n=n), (one, other)


def test_sloo_minus_one_has_the_lowest_variance_at_every_k() -> None:
    table = kept("variance_by_k")
    for row in where(table, variant="sloo_minus_one"):
        for other in where(table, k=row["k"]):
            if other["variant"] in UNBIASED:
                assert number(row, "variance") <= number(other, "variance"), other


def test_what_a_baseline_and_all_subsets_buy() -> None:
    of = {row["variant"]: number(row, "variance") for row in kept("variants")}
    assert of["s"] / of["sloo_minus_one"] == pytest.approx(68, abs=1)
    assert of["loo_minus_one_partitioned"] / of["sloo_minus_one"] == pytest.approx(3, abs=0.1)


def test_variance_against_n() -> None:
    of = {row["n"]: number(row, "variance") for row in where(kept("variance_by_n"), variant="sloo_minus_one")}
    assert of[4] / of[8] == pytest.approx(5, rel=0.1)
    for n in (16, 32):
        assert of[n] / of[2 * n] == pytest.approx(2, rel=0.1)


def test_variance_of_centered_beside_sloo_minus_one_at_another_theta(pkpo: LocalClient) -> None:
    rewards, scores = toy.sample(0.7, 16, 60_000, [12])
    ours, theirs = (
        Moments.of(gradients(pkpo, variant, 4, rewards, scores)).variance for variant in ("centered", "sloo_minus_one")
    )
    assert ours / theirs == pytest.approx(0.94, abs=0.015)


def test_variance_of_centered_beside_sloo_minus_one_on_the_coin() -> None:
    table = kept("prompts")
    ratio = {
        number(row, "pass_rate"): number(row, "relative_variance")
        / number(only(table, variant="sloo_minus_one", k=4, pass_rate=row["pass_rate"]), "relative_variance")
        for row in where(table, variant="centered")
    }
    rare = [ratio[rate] for rate in ratio if rate <= 0.1]
    assert max(rare) < 1
    assert min(rare) == pytest.approx(0.88, abs=0.01)
    assert min(ratio[rate] for rate in ratio if rate >= 0.3) > 2


def test_signs_of_advantages() -> None:
    table = kept("effective_rewards")
    for k in (2, 4, 8, 16):
        of = {
            variant: [number(row, "advantage") for row in where(table, variant=variant, k=k)]
            for variant in ("s", "sloo_minus_one", "centered")
        }
        assert of["sloo_minus_one"][0] == 0
        assert min(of["sloo_minus_one"]) == 0
        assert sum(of["centered"]) == pytest.approx(0, abs=1e-6)
        best = max(number(row, "reward") for row in table)
        assert max(of["s"]) == pytest.approx(k / 32 * best, rel=1e-5)


def test_weights_are_those_of_the_law_of_the_largest_rank() -> None:
    for row in kept("weights"):
        rank, k = int(number(row, "rank")), int(number(row, "k"))
        assert number(row, "weight") == pytest.approx(math.comb(rank - 1, k - 1) / math.comb(8, k), rel=1e-5, abs=1e-12)


def test_weights_of_advantages_sum_to_what_a_common_reward_gives() -> None:
    for variant, expected in (("s", 4 / 8), ("sloo_minus_one", 0), ("centered", 0)):
        for rank in range(1, 9):
            rows = where(kept("weights_of_advantages"), variant=variant, rank=rank)
            assert sum(number(row, "weight") for row in rows) == pytest.approx(expected, abs=1e-5)


# --- Prompts: what pulls ---


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_unbiased_variants_pull_with_the_derivative_of_pass_at_k(k: int, rate: float, pkpo: LocalClient) -> None:
    for variant in ("sloo_minus_one", "s", "sloo", "centered", "binary"):
        assert pull(pkpo, variant, k, 16, rate) == pytest.approx(k * (1 - rate) ** (k - 1), rel=1e-9)


def pull(pkpo: LocalClient, variant: str, k: int | None, n: int, rate: float) -> float:
    return coin.moments(coin.groups(pkpo, variant, k, n), rate)[0] / (rate * (1 - rate))


def pulls(variant: str, k: int = 4) -> dict[float, float]:
    return {number(row, "pass_rate"): number(row, "pull") for row in where(kept("prompts"), variant=variant, k=k)}


def test_which_prompts_pull_hardest() -> None:
    ours, theirs, grpo = pulls("sloo_minus_one"), pulls("passk_analytic"), pulls("grpo", 1)
    assert ours[0.1] / ours[0.5] == pytest.approx(5.8, abs=0.05)
    assert theirs[0.1] / theirs[0.5] < ours[0.1] / ours[0.5]
    assert set(pulls("loo", 1).values()) == {1}
    assert min(grpo, key=grpo.__getitem__) == 0.5
    assert grpo[0.02] == pytest.approx(grpo[0.98], rel=1e-4)
    assert grpo[0.02] > 1.8 * grpo[0.5]


@pytest.mark.parametrize("variant", ["grpo", "passk_analytic"])
def test_weights_between_prompts_do_not_fade_with_n(variant: str, pkpo: LocalClient) -> None:
    """At n = 512 the deviation is known, and still there."""
    for rate in (0.1, 0.3, 0.5):
        k = 1 if variant == "grpo" else 4
        passed = 1 - (1 - rate) ** k
        expected = (1 - rate) ** (k - 1) / math.sqrt(passed * (1 - passed))
        assert pull(pkpo, variant, None if k == 1 else k, 512, rate) == pytest.approx(expected, rel=0.05)


# --- Scale, and what the loss does ---


@pytest.mark.parametrize("variant", [variant.name.lower() for variant in Variant])
def test_scale_is_a_factor_of_n(variant: str, pkpo: LocalClient) -> None:
    rewards = (toy.sample(0.7, 8, 400, [1])[0] > 0.5).astype(float)
    k = {"loo": None, "grpo": None, "tzsm": 8}.get(variant, 4)
    summed = pkpo.transform(rewards, k, variant=variant, scale="sum")
    assert np.abs(summed).max() > 0
    assert pkpo.transform(rewards, k, variant=variant, scale="mean") == pytest.approx(8 * summed, rel=1e-12)


def test_what_a_mean_over_tokens_follows(pkpo: LocalClient) -> None:
    """A sample's gradient is the sum of its tokens'; advantages are of scale "mean"."""
    generator = np.random.default_rng(1)
    rewards, lengths = generator.uniform(size=(3, 8)), generator.integers(1, 20, size=(3, 8))
    tokens = [[generator.normal(size=length) for length in row] for row in lengths]
    of_samples = np.array([[token.sum() for token in row] for row in tokens])
    truth = (pkpo.transform(rewards, 2) * of_samples).sum(axis=1).mean()
    advantages = pkpo.transform(rewards, 2, scale="mean")
    summed = sum(advantages[g, i] * tokens[g][i].sum() for g in range(3) for i in range(8))
    assert summed / lengths.sum() == pytest.approx(truth / lengths.mean(), rel=1e-12)
    averaged = np.mean([[advantages[g, i] * tokens[g][i].mean() for i in range(8)] for g in range(3)])
    assert averaged == pytest.approx((advantages * of_samples / lengths).mean(), rel=1e-12)
    assert abs(averaged - truth / lengths.mean()) > 0.1 * abs(averaged)


def slope_of_pass_at(k: int, rate: float) -> float:
    return k * (1 - rate) ** (k - 1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("n", "k"), [(8, 2), (16, 4), (8, 7)])
def test_what_an_objective_becomes_where_the_mean_is_subtracted(n: int, k: int, rate: float, pkpo: LocalClient) -> None:
    of_k, of_less = slope_of_pass_at(k, rate), slope_of_pass_at(k - 1, rate)
    becomes = {
        "centered": of_k,
        "s": (1 - k / n) * of_k,
        "sloo": (1 + k / (n * (n - 1))) * of_k,
        "sloo_minus_one": (1 - k / n) * of_k + k / n * of_less,
        "loo": 1.0,
        "tzsm": slope_of_pass_at(n - 1, rate),
    }
    for variant, expected in becomes.items():
        groups = coin.groups(pkpo, variant, {"loo": None, "tzsm": n}.get(variant, k), n)
        right = np.arange(n + 1)
        mean = (right * groups.right + (n - right) * groups.wrong) / n
        centred = coin.Groups(groups.right - mean, groups.wrong - mean, groups.with_signal)
        # Where there is no right answer its advantage counts nothing, whatever it is.
        assert coin.moments(centred, rate)[0] / (rate * (1 - rate)) == pytest.approx(expected, rel=1e-9), variant


@pytest.mark.parametrize(
    "variant", ["centered", "naive_partitioned", "naive_partitioned_baselined", "loo_minus_one_partitioned"]
)
def test_what_blocks_become_where_the_mean_is_subtracted(variant: str, pkpo: LocalClient) -> None:
    n, k, theta = 16, 4, 1.0
    rewards, scores = toy.sample(theta, n, 40_000, [11])
    advantages = pkpo.transform(rewards, k, variant=variant)
    seen = Moments.of(((advantages - advantages.mean(axis=1, keepdims=True)) * scores).sum(axis=1))
    of_k, of_less = float(toy.derivative(theta, k)), float(toy.derivative(theta, k - 1))
    expected = {
        "naive_partitioned": (1 - k / n) * of_k,
        "loo_minus_one_partitioned": (1 - k / n) * of_k + k / n * of_less,
    }.get(variant, of_k)
    assert abs(seen.mean - expected) < ERRORS * seen.mean_error
    assert seen.mean_error < 0.03 * abs(expected)  # which tells 1 from 1 - k/n, and from the mixture


@pytest.mark.parametrize("variant", OF_COUNTS)
def test_normalised_advantages_of_0_and_1_are_normalised_rewards(variant: str, pkpo: LocalClient) -> None:
    n = 8
    rewards = coin.rewards(n)
    for k in (1, 2, 4, 7):
        asked = {"loo": None, "grpo": None, "tzsm": n}.get(variant, k)
        advantages = pkpo.transform(rewards, asked, variant=variant)
        told = np.ptp(advantages, axis=1) > 0
        assert told.sum() >= 1
        assert normalised(advantages[told]) == pytest.approx(normalised(rewards[told]), abs=1e-9)


def normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values - values.mean(axis=1, keepdims=True)
    result: NDArray[np.float64] = centred / centred.std(axis=1, keepdims=True)
    return result


# --- Which n: the estimate's variance ---


def test_the_estimate_of_pass_at_k_is_unbiased_and_its_variance_comes_to_the_law_of_1_over_n() -> None:
    table = kept("estimates_of_pass_at_k")
    for k in estimates.KS:
        rows = where(table, k=k)
        for row in rows:
            assert number(row, "mean") == pytest.approx(1 - (1 - estimates.RATE) ** k, rel=1e-5)
        over = [number(row, "variance") / number(row, "law") for row in rows]
        if k == 1:
            assert over == pytest.approx([1] * len(over), rel=1e-5)
        else:
            assert over == sorted(over, reverse=True)
            assert 1 < over[-1] < 1.02


def test_how_far_from_the_law_a_small_group_is() -> None:
    table = kept("estimates_of_pass_at_k")
    at_k, at_16k = only(table, k=8, n=8), only(table, k=8, n=128)
    assert number(at_k, "variance") / number(at_k, "law") == pytest.approx(2.5, abs=0.05)
    assert number(at_16k, "variance") / number(at_16k, "law") == pytest.approx(1.05, abs=0.005)


def test_the_law_of_1_over_n_holds_for_continuous_rewards() -> None:
    for row in kept("estimates_of_max_at_k"):
        truth = float(toy.max_at_k(estimates.THETA, int(number(row, "k"))))
        assert abs(number(row, "mean") - truth) < ERRORS * number(row, "mean_error")
        beyond = (number(row, "variance") - number(row, "law")) / number(row, "variance_error")
        assert beyond > -ERRORS
        if number(row, "n") >= 256:
            assert beyond < ERRORS
    at_k = only(kept("estimates_of_max_at_k"), k=8, n=8)
    assert number(at_k, "variance") > number(at_k, "law") + 4 * number(at_k, "variance_error")


def test_the_jackknife_is_exact_at_k_1_and_too_large_on_average_above() -> None:
    for row in kept("estimates_of_pass_at_k"):
        if row["squared_error"] is not None:
            ratio = number(row, "squared_error") / number(row, "variance")
            assert ratio == pytest.approx(1, rel=1e-5) if row["k"] == 1 else ratio > 1, row


# --- Which k, and groups without signal ---


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_a_rare_answer_costs_the_same_at_every_k(k: int) -> None:
    row = only(kept("prompts"), variant="sloo_minus_one", k=k, pass_rate=0.02)
    assert number(row, "relative_variance") == pytest.approx(1 / (16 * 0.02), rel=0.2)
    rarer = only(kept("prompts"), variant="sloo_minus_one", k=k, pass_rate=0.002)
    assert number(rarer, "relative_variance") == pytest.approx(1 / (16 * 0.002), rel=0.02)


def test_how_often_a_group_has_a_right_answer() -> None:
    assert round(1 - 0.98**16, 2) == 0.28
    for k in (1, 2, 4, 8):
        row = only(kept("prompts"), variant="sloo_minus_one", k=k, pass_rate=0.02)
        assert number(row, "with_signal") == pytest.approx(1 - 0.98**16, rel=1e-4)


def test_no_variant_makes_a_gradient_of_wrong_answers_alone(pkpo: LocalClient) -> None:
    for variant in Variant:
        name = variant.name.lower()
        k = {"loo": None, "grpo": None, "tzsm": 8}.get(name, 4)
        assert not pkpo.transform(np.zeros((1, 8)), k, variant=name).any()


def test_how_pulls_change_from_k_8_to_k_1() -> None:
    before, after = pulls("sloo_minus_one", 8), pulls("sloo_minus_one", 1)
    assert before[0.02] / after[0.02] == pytest.approx(7, abs=0.1)
    assert after[0.5] / before[0.5] == pytest.approx(16, abs=0.1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("k", [1, 2, 4, 16])
def test_a_group_has_a_signal_where_one_is_right_and_k_less_one_are_wrong(
    k: int, rate: float, pkpo: LocalClient
) -> None:
    n = 16
    groups = coin.groups(pkpo, "sloo_minus_one", k, n)
    share = sum(coin.probabilities(n, rate)[c] for c in range(1, n - max(k - 1, 1) + 1))
    assert coin.probabilities(n, rate) @ groups.with_signal == pytest.approx(share, rel=1e-12)


def test_k_of_n_needs_exactly_one_right_answer() -> None:
    shares = [number(row, "with_signal") for row in where(kept("prompts"), variant="sloo_minus_one", k=16)]
    assert max(shares) == pytest.approx(0.38, abs=0.002)
    assert 16 * (1 / 16) * (15 / 16) ** 15 < 0.3801


def test_groups_left_out_weigh_prompts_by_their_share_of_signal(pkpo: LocalClient) -> None:
    """The mean over groups that have a signal, by enumeration of those alone."""
    n, k, rate = 16, 4, 0.02
    groups = coin.groups(pkpo, "sloo_minus_one", k, n)
    share = coin.probabilities(n, rate) * groups.with_signal
    count = np.arange(n + 1)
    gradient = count * groups.right * (1 - rate) - (n - count) * groups.wrong * rate
    left_out = share @ gradient / share.sum() / coin.moments(groups, rate)[0]
    assert left_out == pytest.approx(3.6, abs=0.03)


@pytest.mark.parametrize("variant", ["s", "binary", "sloo", "naive_partitioned"])
def test_equal_rewards_have_an_advantage_where_there_is_an_offset(variant: str, pkpo: LocalClient) -> None:
    assert pkpo.transform(np.ones((1, 8)), 4, variant=variant).all()


def test_equal_rewards_have_none_elsewhere(pkpo: LocalClient) -> None:
    for variant in (*UNBIASED, *NORMALISED):
        if variant not in ("s", "sloo", "naive_partitioned"):
            k = {"loo": None, "grpo": None, "tzsm": 8}.get(variant, 4)
            assert not pkpo.transform(np.ones((1, 8)), k, variant=variant).any()


# --- The page ---


def table_after(heading: str) -> list[list[str]]:
    """The rows of the page's table that begins with this header."""
    lines = PAGE.read_text().split(f"| {heading} |", 1)[1].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_page_has_the_table_of_optima() -> None:
    rows = [[name.removeprefix("k = "), *cells] for name, *cells in table_after("trained at")]
    assert rows == [
        [str(row["k"]), *(f"{number(row, name):.3f}" for name in row if name != "k")] for row in kept("optima")
    ]


def test_the_page_has_every_variant_with_its_noise_and_its_bias() -> None:
    rows = {cells[0].strip("`"): cells for cells in table_after("variant | optimises | bias | noise | when")}
    assert set(rows) == {variant.name.lower() for variant in Variant}
    for row in kept("variants"):
        _, _, told_bias, noise, _ = rows[str(row["variant"])]
        value, _, of_k = noise.partition(" (")
        assert value == f"{number(row, 'relative_variance'):#.2g}".rstrip("."), row
        assert of_k == ("" if row["k"] == variance.K else f"k = {row['k']})")
        assert (told_bias == "none") == (row["variant"] in UNBIASED)


def test_the_page_shows_every_picture() -> None:
    pictures = {path.name for path in FOLDER.glob("*.svg")}
    assert set(re.findall(r"\(estimators/([\w.]+\.svg)\)", PAGE.read_text())) == pictures
    assert {path.stem for path in FOLDER.glob("*.png")} == {Path(name).stem for name in pictures}
