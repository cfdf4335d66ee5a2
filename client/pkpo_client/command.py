"""The `pkpo` command: rollouts in files, from the shell."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

import pkpo
from pkpo_client import Client, GroupStatus, LocalClient, options
from pkpo_client.errors import DeadlineExceeded, InvalidArgument, PkpoError, Unauthenticated
from pkpo_client.evaluation import (
    OF_EACH_PROMPT,
    Confidence,
    Pairs,
    PromptEstimates,
    Row,
    comparison,
    curve,
    each_prompt,
    prompt_estimates,
)
from pkpo_client.identity import NAMES, IdentityFiles
from pkpo_client.prompt_rewards import Columns, Name, prompt_rewards, shown
from pkpo_client.rollouts import (
    NoProgress,
    Progress,
    RolloutsError,
    files,
    read_rollouts,
    size,
    write_records,
)

DEFAULT_ADDRESS = "localhost:50051"
DEFAULT_TIMEOUT = 10.0

# In place of the errors' own advice, which is for programs.
_ADVICE: dict[type[PkpoError], str] = {
    Unauthenticated: ". Give --token-file, or another one",
    DeadlineExceeded: "; give a longer --timeout",
    InvalidArgument: "; give --ca-file",  # of a token, which would travel in plaintext
}


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
    except PkpoError as error:
        advice = _ADVICE.get(type(error), "") if error.advice else ""
        _fail(2 if isinstance(error, (RolloutsError, InvalidArgument)) else 1, f"{error.args[0]}{advice}")
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
    transform.add_argument("file", metavar="FILE", help="rollouts: .jsonl, .jsonl.gz or .parquet; - is standard input")
    _add_columns(transform)
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
    _add_run_id(transform)
    transform.set_defaults(run=_transform)

    evaluate = commands.add_parser(
        "evaluate",
        help="pass@k of rollouts, with errors and intervals; two runs compared",
        description="Estimates pass@k (max@k of continuous rewards) of each group, and prints the mean over groups. "
        "The standard error is that of the mean over groups. Groups of fewer than k rollouts are left out and counted.",
    )
    evaluate.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="rollouts: .jsonl, .csv (both also .gz) or .parquet; patterns such as 'runs/*.parquet'; "
        "- is JSON lines on standard input",
    )
    _add_columns(evaluate)
    evaluate.add_argument(
        "--k", type=_k_list, metavar="K,K,...", help="which k (default: powers of two up to the largest group)"
    )
    evaluate.add_argument(
        "--by", type=_columns, default=[], metavar="COLUMN,...", help="a curve for each value of these columns"
    )
    evaluate.add_argument(
        "--against",
        action="append",
        metavar="FILE",
        help="another run (again for more files): print FILE less this one, on the groups of both, with a paired test",
    )
    evaluate.add_argument(
        "--level",
        type=_level,
        help="add confidence intervals of this level (default: 0.95 with --against, --plot and --per-prompt)",
    )
    evaluate.add_argument(
        "--cluster",
        type=_columns,
        default=[],
        metavar="COLUMN,...",
        help="groups alike in these columns are drawn together (default: each group alone)",
    )
    evaluate.add_argument(
        "--draws", type=_draws, default=10_000, help="of the bootstrap and of the test (default: %(default)s)"
    )
    evaluate.add_argument("--seed", type=_seed, default=0, help="of the draws (default: %(default)s)")
    evaluate.add_argument("--plot", type=_picture, metavar="FILE", help="draw the curves: .png, .svg or .pdf")
    evaluate.add_argument(
        "--per-prompt",
        metavar="FILE",
        help="write each group's estimates: JSON lines, or .parquet; - in place of the table",
    )
    evaluate.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="read by DuckDB, with so much memory and the rest on disk: 500MB, 4GB (default: DuckDB, if installed, "
        "reads files of more than 64 MiB, with up to 80 %% of the machine's memory)",
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
    _add_run_id(bench)
    bench.add_argument("--groups", type=_at_least_one, default=1024, help="in a call (default: %(default)s)")
    bench.add_argument("--samples", type=_at_least_one, default=16, help="in a group (default: %(default)s)")
    bench.add_argument("--k", type=_at_least_one, default=8, help="of the transform (default: %(default)s)")
    bench.add_argument("--seconds", type=_seconds, default=3.0, help="to run for (default: %(default)s)")
    bench.set_defaults(run=_bench)
    return parser


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group",
        type=_columns,
        default=["prompt_id"],
        metavar="COLUMN,...",
        help="the columns that name a rollout's group (default: prompt_id)",
    )
    parser.add_argument("--reward", default="reward", metavar="COLUMN", help="(default: %(default)s)")


def _add_address(parser: argparse.ArgumentParser, meaning: str, default: str | None = None) -> None:
    here = "" if default else ", or for this process (default: no end)"
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
        metavar="SECONDS",
        help=f"to wait for the service (default: {DEFAULT_TIMEOUT:g})" + here,
    )
    for name, meaning in (
        ("ca_file", "certificate authorities in PEM, of a service with TLS"),
        ("certificate_file", "one's own certificate in PEM, where the service asks for it"),
        ("key_file", "its key"),
        ("token_file", "that holds a bearer token"),
    ):
        variable = f"PKPO_{name.upper()}"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=os.environ.get(variable, ""),
            metavar="FILE",
            help=f"{meaning}; {variable} sets it too",
        )


def _add_run_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-id",
        default=os.environ.get("PKPO_RUN_ID", ""),
        metavar="NAME",
        help="the run that the calls are for, in the service's metrics and by its tokens; PKPO_RUN_ID sets it too",
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


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = math.nan
    if not 0 < level <= 1 - 1e-9:  # nearer to 1, quantiles are lost in rounding
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0 and below 1, such as 0.95")
    return level


def _draws(text: str) -> int:
    if not text.isdecimal() or int(text) < 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 100")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(MB|GB)", text, re.IGNORECASE)
    size = float(match[1]) * {"MB": 1e6, "GB": 1e9}[match[2].upper()] if match else 0
    if size < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} must be a size above 1 MB, such as 500MB or 4GB")
    return int(size)


def _picture(text: str) -> str:
    if not text.lower().endswith((".png", ".svg", ".pdf")):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png, .svg or .pdf")
    return text


def _client(arguments: argparse.Namespace) -> Client | LocalClient:
    if arguments.address:
        return _remote(arguments, arguments.run_id)
    return LocalClient(timeout=arguments.timeout or math.inf)


def _remote(arguments: argparse.Namespace, run_id: str = "") -> Client:
    files = IdentityFiles(**{name: getattr(arguments, name) for name in NAMES})
    return Client(
        arguments.address,
        credentials=files.credentials(),
        token=files.token(),
        run_id=run_id,
        timeout=arguments.timeout or DEFAULT_TIMEOUT,
    )


def _transform(arguments: argparse.Namespace) -> None:
    if arguments.k is None and arguments.variant not in options.WITHOUT_K:
        raise RolloutsError(f"--k is needed for --variant {arguments.variant}")
    with _progress(arguments.file, *size(arguments.file)) as progress:
        rollouts = read_rollouts(
            arguments.file, arguments.group, arguments.reward, keep_records=True, progress=progress
        )
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
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        raise RolloutsError("--plot needs matplotlib: pip install 'pkpo[evaluate]'")
    if arguments.against and arguments.per_prompt:
        raise RolloutsError("--per-prompt is of one run, and goes without --against")
    columns = Columns(
        tuple(arguments.group),
        arguments.reward,
        split=tuple(dict.fromkeys(arguments.by)),
        cluster=tuple(arguments.cluster),
    )
    clash = [name for name in columns.prompt if name in OF_EACH_PROMPT]
    if arguments.per_prompt and clash:
        raise RolloutsError(f"--per-prompt writes a column {clash[0]!r} of its own; rename that of the rollouts")
    confidence = Confidence(arguments.level or 0.95, arguments.draws, arguments.seed)
    prompts = _estimates(arguments, arguments.files, columns, arguments.k)
    if arguments.against:
        _compare(arguments, columns, prompts, confidence)
        return
    if arguments.per_prompt:
        write_records(each_prompt(prompts, columns.prompt, confidence.level), arguments.per_prompt)
        if arguments.per_prompt == "-":
            return
    asked = arguments.level or arguments.plot
    curves = [(split, curve(some, confidence if asked else None)) for split, some in prompts.splits(len(columns.split))]
    if arguments.plot:
        from pkpo_client.curve_plot import draw_curves

        draw_curves(arguments.plot, _labelled(columns, curves), prompts.measure)
    table = [("k", "k"), (prompts.measure, "estimate"), ("std. error", "standard_error")]
    if asked:
        table += [*_interval(confidence), ("sampling error", "sampling_error")]
    table += [("groups", "prompts"), ("left out (n < k)", "left_out")]
    _print_rows(arguments, columns, curves, table)


def _compare(arguments: argparse.Namespace, columns: Columns, one: PromptEstimates, confidence: Confidence) -> None:
    pairs = Pairs.of(one, _estimates(arguments, arguments.against, columns, one.k))
    if not pairs.one.names:
        raise RolloutsError(
            f"the runs have no group in common: one has {shown(columns.prompt, one.names[0])}, "
            f"the other {shown(columns.prompt, pairs.only_other[0])}; a string is not an integer"
        )
    moved = pairs.moved()
    if moved:
        raise RolloutsError(
            f"{shown(columns.prompt, moved)} is not in the same cluster in both runs; a group is in one cluster"
        )
    uneven = int((pairs.one.sizes != pairs.other.sizes).sum())
    if uneven:
        print(
            f"pkpo: {uneven} of {len(pairs.one.sizes)} groups have fewer rollouts in one run than in the other; where "
            "that is by much and success is rare, p and the interval say too much (docs/evaluation.md)",
            file=sys.stderr,
        )
    curves = [(split, comparison(some, confidence)) for split, some in pairs.splits(len(columns.split))]
    measure = "pass@k" if pairs.one.binary and pairs.other.binary else "max@k"
    if arguments.plot:
        from pkpo_client.curve_plot import draw_comparison

        draw_comparison(arguments.plot, _labelled(columns, curves), measure)
    _print_rows(
        arguments,
        columns,
        curves,
        [
            ("k", "k"),
            (measure, "estimate"),
            ("against", "against"),
            ("difference", "difference"),
            ("std. error", "standard_error"),
            *_interval(confidence),
            ("p", "p_value"),
            ("p, all k", "p_adjusted"),
            ("pairs", "pairs"),
            ("left out", "left_out"),
            ("of the other", "left_out_against"),
        ],
    )


def _estimates(
    arguments: argparse.Namespace, patterns: Sequence[str], columns: Columns, k: list[int] | None
) -> PromptEstimates:
    return prompt_estimates(prompt_rewards(files(patterns), columns, memory=arguments.memory, progress=_progress), k)


def _interval(confidence: Confidence) -> list[tuple[str, str]]:
    return [(f"{confidence.level * 100:g} % from", "low"), ("to", "high")]


def _labelled(columns: Columns, curves: Sequence[tuple[Name, list[Row]]]) -> list[tuple[str, list[Row]]]:
    return [
        (", ".join(f"{column} {value}" for column, value in zip(columns.split, split, strict=True)), rows)
        for split, rows in curves
    ]


def _print_rows(
    arguments: argparse.Namespace,
    columns: Columns,
    curves: Sequence[tuple[Name, list[Row]]],
    table: Sequence[tuple[str, str]],
) -> None:
    """Each curve's rows, in a table of the given titles and keys; with --by they begin with the split they are of."""
    if arguments.json:
        splits = [
            {"split": dict(zip(columns.split, split, strict=True))} if columns.split else {} for split, _ in curves
        ]
        print(json.dumps([split | row for split, (_, rows) in zip(splits, curves, strict=True) for row in rows]))
        return
    cells = [[*split, *(_cell(row[key]) for _, key in table)] for split, rows in curves for row in rows]
    _print_table((*columns.split, *(title for title, _ in table)), cells)


def _cell(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _info(arguments: argparse.Namespace) -> None:
    with _remote(arguments) as client:
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


@contextmanager
def _progress(name: str, total: float | None, unit: str) -> Iterator[Progress]:
    """A bar on the terminal once reading has taken a second."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield NoProgress()
        return
    with tqdm(total=total, unit=unit, unit_scale=True, desc=name, delay=1, leave=False, disable=None) as bar:
        yield bar


def _print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    align: list[Callable[[str, int], str]] = [
        str.rjust if any(cell == "-" or cell.lstrip("-")[:1].isdigit() for cell in column[1:2]) else str.ljust
        for column in zip(*cells, strict=True)
    ]
    for row in cells:
        print("  ".join(pad(cell, width) for pad, cell, width in zip(align, row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
