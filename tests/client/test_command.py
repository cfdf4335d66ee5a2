"""The pkpo command, as a shell runs it."""

from __future__ import annotations

import datetime
import fcntl
import gzip
import json
import math
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pkpo_core
import reference
from live_identity import asking_server
from live_server import LiveServer

RECORDS = [
    {"prompt_id": "a", "reward": 1.0, "step": 0},
    {"prompt_id": "b", "reward": 0.25, "step": 0},
    {"prompt_id": "a", "reward": 0.0, "step": 1},
    {"prompt_id": "b", "reward": 0.5, "step": 1},
    {"prompt_id": "a", "reward": 0.0, "step": 0},
    {"prompt_id": "c", "reward": 0.75, "step": 0},
]
GROUPS = {"a": [1.0, 0.0, 0.0], "b": [0.25, 0.5], "c": [0.75]}


def run(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pkpo_client.command", *map(str, arguments)]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def jsonl(folder: Path) -> Path:
    path = folder / "rollouts.jsonl"
    path.write_text(lines(RECORDS))
    return path


def jsonl_gz(folder: Path) -> Path:
    path = folder / "rollouts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(lines(RECORDS))
    return path


def parquet(folder: Path) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = folder / "rollouts.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(RECORDS), path)
    return path


@pytest.mark.parametrize("write", [jsonl, jsonl_gz, parquet])
def test_evaluate_reads_every_kind_of_file(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    done = run("evaluate", write(tmp_path), "--k", "1,2", "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    means = [float(np.mean(rewards)) for rewards in GROUPS.values()]
    assert first["k"] == 1
    assert first["estimate"] == pytest.approx(np.mean(means))
    assert first["standard_error"] == pytest.approx(np.std(means, ddof=1) / math.sqrt(3))
    assert (first["prompts"], first["left_out"]) == (3, 0)
    of_two = [float(reference.max_at_k(GROUPS[name], 2)) for name in ("a", "b")]
    assert second["estimate"] == pytest.approx(np.mean(of_two))
    assert (second["prompts"], second["left_out"]) == (2, 1)


def test_evaluate_reads_standard_input_and_other_columns() -> None:
    records = [{"task": r["prompt_id"], "try": r["step"], "correct": r["reward"] > 0.4} for r in RECORDS]
    done = run("evaluate", "-", "--group", "task", "--reward", "correct", stdin=lines(records))
    assert done.returncode == 0, done.stderr
    assert "pass@k" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["k", "1", "2"]
    by_step = run(
        "evaluate", "-", "--group", "task,try", "--reward", "correct", "--k", "1", "--json", stdin=lines(records)
    )
    assert json.loads(by_step.stdout)[0]["prompts"] == 5


def test_evaluate_says_so_where_no_group_is_large_enough() -> None:
    done = run("evaluate", "-", "--k", "9", "--json", stdin=lines(RECORDS))
    assert json.loads(done.stdout) == [{"k": 9, "estimate": None, "standard_error": None, "prompts": 0, "left_out": 3}]


@pytest.mark.parametrize("output", ["-", "out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_transform_adds_a_column_in_the_order_of_the_file(tmp_path: Path, output: str) -> None:
    path = output if output == "-" else tmp_path / output
    done = run("transform", jsonl(tmp_path), "--k", "2", "--k-policy", "clamp", "--output", path)
    assert done.returncode == 0, done.stderr
    if output.endswith(".parquet"):
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
        written = parquet.read_table(path).to_pylist()
    elif output.endswith(".gz"):
        with gzip.open(path, "rt") as file:
            written = [json.loads(line) for line in file]
    else:
        written = [json.loads(line) for line in (done.stdout if output == "-" else Path(path).read_text()).splitlines()]
    expected = {
        name: pkpo_core.transform([rewards], 2, k_policy=pkpo_core.KPolicy.CLAMP).advantages[0].tolist()
        for name, rewards in GROUPS.items()
    }
    assert written == [{**record, "advantage": expected[record["prompt_id"]].pop(0)} for record in RECORDS]


def test_transform_through_a_service_is_the_same_to_the_bit(tmp_path: Path) -> None:
    arguments = ["transform", jsonl(tmp_path), "--variant", "s", "--k", "1", "--scale", "mean"]
    with LiveServer() as server:
        served = run(*arguments, "--address", server.address)
        from_environment = run(*arguments, PKPO_ADDRESS=server.address)
        served_rewards = sum(v for name, v in server.metrics().items() if name.startswith("pkpo_rewards_total{"))
    assert served.stdout == from_environment.stdout == run(*arguments).stdout
    assert served_rewards == 12


def test_info_tells_version_limits_and_variants() -> None:
    with LiveServer("--max-groups", "4321") as server:
        table = run("info", "--address", server.address)
        data = json.loads(run("info", "--address", server.address, "--json").stdout)
    assert table.returncode == 0, table.stderr
    assert "4,321" in table.stdout
    assert "passk_bootstrap" in table.stdout
    assert data["limits"]["max_groups"] == 4321
    assert len(data["variants"]) == 14


def test_who_is_calling_is_in_files(tmp_path: Path) -> None:
    with asking_server(tmp_path) as (address, files):
        flags = [part for name, file in files.items() for part in (f"--{name.replace('_', '-')}", file)]
        told = run("info", "--address", address, "--timeout", 120, *flags)
        by_environment = run(
            "info", "--address", address, **{f"PKPO_{name.upper()}": file for name, file in files.items()}
        )
        unknown = run("info", "--address", address, "--timeout", 2)
        nobody = run("info", "--address", address, "--timeout", 30, *flags[:6])
        half = run("info", "--address", address, *flags[:4])
    assert told.returncode == 0, told.stderr
    assert by_environment.stdout == told.stdout
    assert unknown.returncode == 1
    assert "do both speak TLS and trust each other" in unknown.stderr
    assert "last error: " in unknown.stderr
    assert "fallback" not in unknown.stderr
    assert nobody.returncode == 1
    assert "does not know the caller" in nobody.stderr
    assert "Give --token-file" in nobody.stderr
    assert "token=" not in nobody.stderr
    assert half.returncode == 2
    assert "key_file: is given without certificate_file, or the other way round" in half.stderr


def test_advice_is_in_flags_and_given_once() -> None:
    slow = run("bench", "--timeout", "1e-9", "--groups", "40000")
    assert slow.returncode == 1
    assert slow.stderr.rstrip().endswith("took longer than 0.0 s; give a longer --timeout")


def test_a_token_in_the_clear_is_refused_with_the_flag_to_give(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    done = run("info", "--address", "10.0.0.1:50051", "--token-file", token)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith("token: would travel in plaintext to 10.0.0.1:50051; give --ca-file")


def test_bench_measures() -> None:
    done = run("bench", "--seconds", "0.01", "--groups", "4")
    assert done.stdout.split()[:3] == ["calls", "p50", "ms"]
    assert int(done.stdout.splitlines()[1].split()[0]) >= 1


@pytest.mark.parametrize(
    ("stdin", "arguments", "said"),
    [
        ('{"prompt_id": "a"}', [], "standard input:1: no column 'reward'; it has 'prompt_id'"),
        ('{"prompt_id": "a", "reward": 1}\nnonsense', [], "standard input:2: is not JSON"),
        ("[" * 100_000, [], "standard input:1: is not JSON"),
        ('{"prompt_id": "a", "reward": 1' + "0" * 400 + "}", [], "must be a number of magnitude at most 1e100"),
        ('{"prompt_id": true, "reward": 1}', [], "'prompt_id' is True; a group is named by a string or an integer"),
        ("[1]", [], "standard input:1: is a JSON list; must be an object"),
        (
            '{"prompt_id": "a", "reward": NaN}',
            [],
            "standard input:1: 'reward' is nan; must be a number of magnitude at most 1e100",
        ),
        (
            '{"prompt_id": "a", "reward": "high"}',
            [],
            "standard input:1: 'reward' is 'high'; must be a number of magnitude at most 1e100",
        ),
        (
            '{"prompt_id": [1], "reward": 1}',
            [],
            "standard input:1: 'prompt_id' is [1]; a group is named by a string or an integer",
        ),
        ("", [], "standard input: holds no rollouts"),
        ('{"prompt_id": "a", "reward": 1}', ["--k", "0"], "k[0]"),
        ('{"prompt_id": "a", "reward": 1}', ["--k", "1,x"], "'1,x' must be integers with commas between"),
    ],
)
def test_bad_input_says_where_and_what(stdin: str, arguments: list[str], said: str) -> None:
    done = run("evaluate", "-", *arguments, stdin=stdin)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "missing.jsonl"], "missing.jsonl: No such file or directory"),
        (["evaluate", "missing.parquet"], "missing.parquet"),
        (
            ["transform", "-", "--k", "1", "--variant", "s", "--output", "/nowhere/out.jsonl"],
            "/nowhere/out.jsonl: No such file",
        ),
        (["transform", "-", "--k", "9"], "k[0]: is 9 for group 0 of n = 3"),
        (["transform", "-"], "--k is needed for --variant sloo_minus_one"),
        (["transform", "-", "--k", "1", "--advantage", "reward"], "there is a column 'reward' already"),
        (["bench", "--groups", "-1"], "'-1' must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_done_says_why(arguments: list[str], said: str) -> None:
    done = run(*arguments, stdin=lines(RECORDS))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    whole = jsonl_gz(tmp_path).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "corrupt.jsonl.gz").write_bytes(whole[:30] + bytes(reversed(whole[30:-8])) + whole[-8:])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    for name in ("cut.jsonl.gz", "corrupt.jsonl.gz", "bad.parquet"):
        done = run("evaluate", tmp_path / name)
        assert done.returncode == 2
        assert name in done.stderr
        assert "Traceback" not in done.stderr


def test_what_does_not_fit_a_kind_of_file_leaves_the_old_one_alone(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    mixed = lines({**record, "note": note} for record, note in zip(RECORDS, [1, "x", 2, 3, 4, 5], strict=True))
    output = tmp_path / "out.parquet"
    output.write_text("precious")
    done = run("transform", "-", "--k", "1", "--variant", "s", "--output", output, stdin=mixed)
    assert done.returncode == 2
    assert "the records do not fit Parquet" in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_what_json_cannot_say_is_an_error(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "when.parquet"
    records = [{**record, "when": datetime.datetime(2026, 1, 1)} for record in RECORDS]
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(records), path)
    done = run("transform", path, "--k", "1", "--variant", "s")
    assert done.returncode == 2
    assert "does not fit JSON" in done.stderr


def test_a_clamped_k_is_said() -> None:
    done = run("transform", "-", "--k", "3", "--k-policy", "clamp", stdin=lines(RECORDS))
    assert done.returncode == 0
    assert "k was lowered in 1 of 3 groups" in done.stderr
    assert "1 of 3 groups are too small for any k, and got advantages of 0" in done.stderr


@pytest.mark.parametrize(("content", "kind"), [(b"PAR1 and more\n", "Parquet"), (b"\x1f\x8b\x08 and more\n", "gzip")])
def test_a_file_of_another_kind_is_recognised(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(content)
    assert f"It looks like {kind}" in run("evaluate", path).stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(lines(RECORDS[:3]) * 20000)
    command = f"{sys.executable} -m pkpo_client.command transform {path} --k 1 --k-policy clamp | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_long_file_shows_a_bar_on_a_terminal() -> None:
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-m", "pkpo_client.command", "evaluate", "-", "--k", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=terminal) as process:
        os.close(terminal)
        assert process.stdin is not None
        shown = b""
        deadline = time.monotonic() + 60
        while b"B/s" not in shown and time.monotonic() < deadline:
            process.stdin.write(lines(RECORDS).encode() * 1000)
            process.stdin.flush()
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 4096)
        process.stdin.close()
    os.close(ours)
    assert b"B/s" in shown
    assert process.returncode == 0
