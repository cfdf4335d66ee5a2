"""The `pkpo` command: rollouts in files, from the shell."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

import pkpo
from pkpo_client import Client, GroupStatus, LocalClient, options
from pkpo_client.errors import InvalidArgument, PkpoError
from pkpo_client.results import MaxAtK
from pkpo_client.rollouts import Progress, Rollouts, RolloutsError, is_parquet, read_rollouts, size, write_records

DEFAULT_ADDRESS = "localhost:50051"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command. Exit status: 0 done, 1 the service failed or cannot be reached, 2 wrong usage or bad input."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has had enough. What is left in the buffer must not be written again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (RolloutsError, InvalidArgument) as error:
        _fail(2, str(error))
    except PkpoError as error:
        _fail(1, str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail(status: int, message: str) -> NoReturn:
    print(f"pkpo: error: {message}", file=sys.stderr)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pkpo", description="Rewards of groups of samples in, advantages that optimise pass@k out."
    )
    parser.add_argument("--version", action="version", version=f"pkpo {pkpo.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    transform = commands.add_parser(
        "transform",
        help="add an advantage to each rollout of a file",
        description="Writes each rollout with its advantage: as JSON lines, or as Parquet where --output is so named.",
    )
    _add_file(transform)
    transform.add_argument("--k", type=int, help="how many samples the best is taken of (not for loo, grpo, tzsm)")
    transform.add_argument(
        "--variant",
        choices=sorted(options.VARIANTS),
        default="sloo_minus_one",
        metavar="NAME",
        help="which function of the rewards (default: %(default)s; `pkpo info` lists them)",
    )
    transform.add_argument(
        "--scale", choices=options.SCALES, default="sum", help="what the loss does with a group (default: %(default)s)"
    )
    transform.add_argument(
        "--k-policy",
        choices=options.K_POLICIES,
        default="strict",
        help="refuse a k outside the variant's range, or lower it (default: %(default)s)",
    )
    transform.add_argument("--seed", type=int, default=0, help="of passk_bootstrap (default: %(default)s)")
    transform.add_argument(
        "--advantage", default="advantage", metavar="COLUMN", help="the column to write (default: %(default)s)"
    )
    transform.add_argument(
        "--output", "-o", default="-", metavar="FILE", help="where to write (default: standard output)"
    )
    _add_address(transform, "a service to compute it (default: this process computes)")
    transform.set_defaults(run=_transform)

    evaluate = commands.add_parser(
        "evaluate",
        help="pass@k of a file of rollouts, with standard errors",
        description="Estimates pass@k (max@k of continuous rewards) of each group, and prints the mean over groups. "
        "The standard error is that of the mean over groups. Groups of fewer than k rollouts are left out and counted.",
    )
    _add_file(evaluate)
    evaluate.add_argument(
        "--k", type=_k_list, metavar="K,K,...", help="which k (default: powers of two up to the largest group)"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    evaluate.set_defaults(run=_evaluate)

    info = commands.add_parser("info", help="what a service says of itself: version, variants, limits")
    _add_address(info, "of the service", DEFAULT_ADDRESS)
    info.add_argument("--json", action="store_true", help="print JSON instead of a table")
    info.set_defaults(run=_info)

    bench = commands.add_parser(
        "bench",
        help="how long calls take",
        description="Transforms random rewards again and again, one call at a time, and prints latency and throughput.",
    )
    _add_address(bench, "of the service (default: this process computes)")
    bench.add_argument("--groups", type=_at_least_one, default=1024, help="in a call (default: %(default)s)")
    bench.add_argument("--samples", type=_at_least_one, default=16, help="in a group (default: %(default)s)")
    bench.add_argument("--k", type=_at_least_one, default=8, help="of the transform (default: %(default)s)")
    bench.add_argument("--seconds", type=_seconds, default=3.0, help="to run for (default: %(default)s)")
    bench.set_defaults(run=_bench)
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="rollouts: .jsonl, .jsonl.gz or .parquet; - is standard input")
    parser.add_argument(
        "--group",
        type=_columns,
        default=["prompt_id"],
        metavar="COLUMN,...",
        help="the columns that name a rollout's group (default: prompt_id)",
    )
    parser.add_argument("--reward", default="reward", metavar="COLUMN", help="(default: %(default)s)")


def _add_address(parser: argparse.ArgumentParser, meaning: str, default: str | None = None) -> None:
    default = os.environ.get("PKPO_ADDRESS", default)
    parser.add_argument(
        "--address",
        default=default,
        metavar="HOST:PORT",
        help=meaning + (f" (default: {default})" if default else "") + "; PKPO_ADDRESS sets it too",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="to wait for the service (default: %(default)s)",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
    return seconds


def _columns(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _k_list(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be integers with commas between, such as 1,2,4") from None


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _client(arguments: argparse.Namespace) -> Client | LocalClient:
    return Client(arguments.address, timeout=arguments.timeout) if arguments.address else LocalClient()


def _transform(arguments: argparse.Namespace) -> None:
    if arguments.k is None and arguments.variant not in options.WITHOUT_K:
        raise RolloutsError(f"--k is needed for --variant {arguments.variant}")
    rollouts = _read(arguments, keep_records=True)
    if any(arguments.advantage in record for record in rollouts.records):
        raise RolloutsError(f"there is a column {arguments.advantage!r} already; name another with --advantage")
    with _client(arguments) as client:
        result = client.transform_detailed(
            rollouts.rewards,
            arguments.k,
            group_ids=rollouts.group_ids,
            variant=arguments.variant,
            scale=arguments.scale,
            k_policy=arguments.k_policy,
            seed=arguments.seed,
        )
    _say_statuses(result.group_statuses)
    write_records(
        (
            {**record, arguments.advantage: advantage}
            for record, advantage in zip(rollouts.records, result.advantages.tolist(), strict=True)
        ),
        arguments.output,
    )


def _say_statuses(statuses: NDArray[np.uint8]) -> None:
    counts = np.bincount(statuses, minlength=len(GroupStatus))
    for status, said in (
        (GroupStatus.K_CLAMPED, "k was lowered in {} of {} groups"),
        (GroupStatus.TOO_SMALL, "{} of {} groups are too small for any k, and got advantages of 0"),
    ):
        if counts[status]:
            print("pkpo: " + said.format(counts[status], statuses.size), file=sys.stderr)


def _evaluate(arguments: argparse.Namespace) -> None:
    rollouts = _read(arguments, keep_records=False)
    k = arguments.k or _powers_of_two(max(np.unique(_numbered(rollouts.group_ids), return_counts=True)[1]))
    with LocalClient() as client:
        rows = [_mean_over_prompts(each) for each in client.estimate(rollouts.rewards, k, group_ids=rollouts.group_ids)]
    if arguments.json:
        print(json.dumps(rows))
        return
    measure = "pass@k" if np.isin(rollouts.rewards, (0.0, 1.0)).all() else "max@k"
    _print_table(
        ("k", measure, "std. error", "groups", "left out (n < k)"),
        [
            [row["k"], _figure(row["estimate"]), _figure(row["standard_error"]), row["prompts"], row["left_out"]]
            for row in rows
        ],
    )


def _mean_over_prompts(estimate: MaxAtK) -> dict[str, Any]:
    values = estimate.values[~np.isnan(estimate.values)]
    return {
        "k": estimate.k,
        "estimate": float(values.mean()) if values.size else None,
        "standard_error": float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else None,
        "prompts": int(values.size),
        "left_out": int(estimate.values.size - values.size),
    }


def _info(arguments: argparse.Namespace) -> None:
    with Client(arguments.address, timeout=arguments.timeout) as client:
        info = client.server_info()
    limits = vars(info.limits)
    if arguments.json:
        variants = [vars(variant) for variant in info.variants]
        print(
            json.dumps(
                {
                    "version": info.version,
                    "default_variant": info.default_variant,
                    "limits": limits,
                    "variants": variants,
                }
            )
        )
        return
    print(f"pkpo-server {info.version} at {arguments.address}, default variant {info.default_variant}\n")
    _print_table(("limit", "value"), [[name, f"{value:,}"] for name, value in limits.items()])
    print()
    _print_table(("variant", "k", "source"), [[each.name, each.k_range, each.source] for each in info.variants])


def _bench(arguments: argparse.Namespace) -> None:
    rewards = np.random.default_rng(0).random((arguments.groups, arguments.samples))
    seconds: list[float] = []
    with _client(arguments) as client:
        client.transform(rewards, arguments.k)
        end = time.perf_counter() + arguments.seconds
        while not seconds or time.perf_counter() < end:
            start = time.perf_counter()
            client.transform(rewards, arguments.k)
            seconds.append(time.perf_counter() - start)
    p50, p99 = np.quantile(seconds, (0.5, 0.99))
    _print_table(
        ("calls", "p50 ms", "p99 ms", "rewards/s"),
        [[len(seconds), f"{p50 * 1e3:.3f}", f"{p99 * 1e3:.3f}", f"{rewards.size * len(seconds) / sum(seconds):,.0f}"]],
    )


def _read(arguments: argparse.Namespace, *, keep_records: bool) -> Rollouts:
    with _progress(arguments.file) as progress:
        return read_rollouts(
            arguments.file, arguments.group, arguments.reward, keep_records=keep_records, progress=progress
        )


@contextmanager
def _progress(path: str) -> Iterator[Progress]:
    """A bar on the terminal once reading has taken a second."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield _NoProgress()
        return
    unit = "rows" if is_parquet(path) else "B"
    with tqdm(total=size(path), unit=unit, unit_scale=True, desc=path, delay=1, leave=False, disable=None) as bar:
        yield bar


class _NoProgress:
    def update(self, n: float) -> None:
        pass


def _powers_of_two(largest: int) -> list[int]:
    return [1 << power for power in range(int(largest).bit_length())]


def _numbered(group_ids: list[Any]) -> list[int]:
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(group_id, len(numbers)) for group_id in group_ids]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    align: list[Callable[[str, int], str]] = [
        str.rjust if any(cell[:1].isdigit() for cell in column[1:2]) else str.ljust
        for column in zip(*cells, strict=True)
    ]
    for row in cells:
        print("  ".join(pad(cell, width) for pad, cell, width in zip(align, row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
