"""How often the intervals of `pkpo evaluate` hold the truth, where the truth is known; and the table that tells of it.

    python -m benchmarks.coverage [--runs N] [--write docs/evaluation.md]

A run draws prompts with pass rates from a Beta distribution, and n samples of each.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pkpo_client.evaluation import Confidence, Row, curve, prompt_estimates
from pkpo_client.prompt_rewards import PromptRewards

N = 16
KS = (1, 4, 8)
PROMPTS = (10, 30, 100)
PASS_RATES = ((0.4, 1.0), (1.0, 5.0))
LEVEL, Z = 0.95, 1.959964
DRAWS = 1000

Shares = NDArray[np.float64]


def held(prompts: int, a: float, b: float, runs: int) -> Shares:
    """The share of runs in which each interval held the truth.

    Args:
        prompts: in each run.
        a, b: of the Beta distribution of pass rates.
        runs: how many.

    Returns:
        Shape (3, ks): the interval over prompts, estimate -+ 1.96 standard errors, and that of these very prompts.
    """
    generator = np.random.default_rng(0)
    everywhere = [1 - math.prod((b + j) / (a + b + j) for j in range(k)) for k in KS]
    counts = np.zeros((3, len(KS)))
    for run in range(runs):
        rates = generator.beta(a, b, prompts)
        here = [float(np.mean(1 - (1 - rates) ** k)) for k in KS]
        rewards = (generator.random((prompts, N)) < rates[:, None]).astype(np.float64)
        rows = curve(prompt_estimates([_named(rewards)], KS), Confidence(LEVEL, DRAWS, seed=run))
        for column, (row, population, sampled) in enumerate(zip(rows, everywhere, here, strict=True)):
            counts[:, column] += list(_holds(row, population, sampled))
    return counts / runs


def _named(rewards: Shares) -> PromptRewards:
    prompts, n = rewards.shape
    names: list[tuple[str | int, ...]] = [(prompt,) for prompt in range(prompts)]
    return PromptRewards(names, [()] * prompts, np.full(prompts, n, dtype=np.int64), rewards.reshape(-1))


def _holds(row: Row, population: float, sampled: float) -> Iterator[bool]:
    yield row["low"] <= population <= row["high"]
    yield abs(row["estimate"] - population) <= Z * row["standard_error"]
    yield row["sampling_low"] <= sampled <= row["sampling_high"]


def table(runs: int) -> str:
    """The table, in Markdown."""
    rows = [
        "| prompts | `from` .. `to` | estimate ∓ 1.96 std. error | sampling error, k = 1 and 4 | k = 8 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for prompts in PROMPTS:
        shares = np.array([held(prompts, a, b, runs) for a, b in PASS_RATES])
        cells = (shares[:, 0], shares[:, 1], shares[:, 2, :2], shares[:, 2, 2:])
        rows.append(f"| {prompts} | {' | '.join(map(_between, cells))} |")
    return "\n".join(rows)


def _between(shares: Shares) -> str:
    low, high = (round(100 * share) for share in (shares.min(), shares.max()))
    return f"{low} %" if low == high else f"{low} to {high} %"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--write", type=Path, help="the page to put the table into")
    chosen = parser.parse_args(arguments)
    made = table(chosen.runs)
    print(made)
    if chosen.write is not None:
        before, _, rest = chosen.write.read_text().partition("<!-- coverage -->")
        _, marker, after = rest.partition("<!-- end of coverage -->")
        if not marker:
            parser.error(f"--write: {chosen.write} has no place between <!-- coverage --> and <!-- end of coverage -->")
        chosen.write.write_text(f"{before}<!-- coverage -->\n\n{made}\n\n{marker}{after}")


if __name__ == "__main__":
    main()
