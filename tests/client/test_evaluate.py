"""pkpo evaluate: curves, comparisons, files of every kind and size, against oracles written apart from it."""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import reference
from pkpo_client import command, prompt_rewards, rollout_query
from pkpo_client.evaluation import curve, prompt_estimates
from pkpo_client.prompt_rewards import Columns, PromptRewards, read_here
from pkpo_client.rollouts import NoProgress, RolloutsError

GENERATOR = np.random.default_rng(0)
PASSED = {f"p{i}": (GENERATOR.random(12) < rate).tolist() for i, rate in enumerate(np.linspace(0.02, 0.9, 15))}
SCORED = {name: GENERATOR.random(12).round(2).tolist() for name in PASSED}
Record = dict[str, Any]
Evaluate = Callable[..., Any]


def records(groups: dict[str, list[float]], **more: Any) -> list[Record]:
    """Rollouts of the groups, taking turns."""
    turns = zip(*([(name, reward) for reward in rewards] for name, rewards in groups.items()), strict=True)
    return [{"prompt_id": name, "reward": reward, **more} for turn in turns for name, reward in turn]


def write_jsonl(path: Path, rollouts: Sequence[Record]) -> Path:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.writelines(json.dumps(rollout) + "\n" for rollout in rollouts)
    return path


def write_csv(path: Path, rollouts: Sequence[Record]) -> Path:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rollouts[0]))
        writer.writeheader()
        writer.writerows(rollouts)
    return path


def write_parquet(path: Path, rollouts: Sequence[Record]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(list(rollouts)), path)
    return path


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.jsonl.gz": write_jsonl,
    "a.csv": write_csv,
    "a.csv.gz": write_csv,
    "a.parquet": write_parquet,
}


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """What the command prints, as data; a refusal is what it says instead."""

    def run(*arguments: object) -> Any:
        with pytest.raises(SystemExit) as ended:
            command.main(["evaluate", *map(str, arguments), "--json"])
        printed = capsys.readouterr()
        return json.loads(printed.out) if ended.value.code == 0 else f"exit {ended.value.code}: {printed.err}"

    return run


def human_eval(n: int, c: int, k: int) -> float:
    """Chen et al. (2021): pass@k without bias, from c successes in n."""
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def test_pass_at_k_is_that_of_human_eval(tmp_path: Path, evaluate: Evaluate) -> None:
    rows = evaluate(write_jsonl(tmp_path / "a.jsonl", records(PASSED)), "--k", "1,2,5,12")
    for row in rows:
        expected = [human_eval(12, sum(rewards), row["k"]) for rewards in PASSED.values()]
        assert row["estimate"] == pytest.approx(np.mean(expected), rel=1e-13)
        assert row["standard_error"] == pytest.approx(np.std(expected, ddof=1) / math.sqrt(15), rel=1e-13)
        assert list(row) == ["k", "estimate", "standard_error", "prompts", "left_out"]


@pytest.mark.parametrize("memory", [[], ["--memory", "150MB"]], ids=["here", "duckdb"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_says_the_same(tmp_path: Path, evaluate: Evaluate, name: str, memory: list[str]) -> None:
    if memory:
        pytest.importorskip("duckdb", reason="needs duckdb")
    path = WRITERS[name](tmp_path / name, records(SCORED))
    for row in evaluate(path, "--k", "1,4", "--level", "0.9", *memory):
        values = [reference.max_at_k(rewards, row["k"]) for rewards in SCORED.values()]
        assert row["estimate"] == pytest.approx(np.mean(values), rel=1e-13)
        assert row["low"] < row["estimate"] < row["high"]
        assert row["clusters"] == 15


def test_several_files_and_patterns_are_one_run(tmp_path: Path, evaluate: Evaluate) -> None:
    rollouts = records(PASSED)
    whole = evaluate(write_jsonl(tmp_path / "whole.jsonl", rollouts), "--level", "0.95")
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    write_parquet(tmp_path / "parts" / "1.parquet", rollouts[:50])
    write_csv(tmp_path / "parts" / "2.csv", rollouts[50:90])
    write_jsonl(tmp_path / "parts" / "deep" / "3.jsonl.gz", rollouts[90:])
    parts = tmp_path / "parts"
    assert evaluate(parts / "*.*", parts / "deep/3.jsonl.gz", "--level", "0.95") == whole
    assert evaluate(parts / "**/*.*", "--level", "0.95") == whole
    assert "matches no file" in evaluate(parts / "*.txt")
    assert "1.parquet: is given twice" in evaluate(parts / "*.*", parts / "1.parquet")


def test_the_order_of_rollouts_changes_nothing(tmp_path: Path, evaluate: Evaluate) -> None:
    rollouts = [{**record, "book": record["prompt_id"][1:2]} for record in records(SCORED)]
    asked = ["--level", "0.95", "--cluster", "book"]
    first = evaluate(write_jsonl(tmp_path / "a.jsonl", rollouts), *asked)
    np.random.default_rng(1).shuffle(rollouts)
    assert evaluate(write_jsonl(tmp_path / "a.jsonl", rollouts), *asked) == first
    assert evaluate(write_jsonl(tmp_path / "a.jsonl", rollouts), *asked, "--seed", 1) != first


def test_errors_for_want_of_samples(tmp_path: Path, evaluate: Evaluate) -> None:
    """Unbiased up to k = n/2, the jackknife's up to n, none at n."""
    path = write_jsonl(tmp_path / "a.jsonl", records(SCORED))
    _, seven, twelve = evaluate(path, "--k", "1,7,12", "--level", "0.95")
    errors = [reference.standard_error(rewards, 7) for rewards in SCORED.values()]
    assert seven["sampling_error"] == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 15)
    assert seven["sampling_low"] == pytest.approx(seven["estimate"] - 1.959964 * seven["sampling_error"])
    assert (twelve["sampling_error"], twelve["sampling_low"]) == (None, None)
    (five,) = evaluate(write_jsonl(tmp_path / "b.jsonl", records(PASSED)), "--k", "5", "--level", "0.95")
    variances = [
        float(Fraction(math.comb(f, 5), math.comb(12, 5)) ** 2 - Fraction(math.comb(f, 10), math.comb(12, 10)))
        for f in (12 - sum(rewards) for rewards in PASSED.values())
    ]
    assert five["sampling_error"] == pytest.approx(math.sqrt(sum(variances)) / 15)


def test_each_prompt(tmp_path: Path, evaluate: Evaluate) -> None:
    path, out = write_jsonl(tmp_path / "a.jsonl", records(PASSED)), tmp_path / "prompts.jsonl"
    evaluate(path, "--k", "1,3,7,12", "--per-prompt", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 60
    for row in rows:
        rewards = PASSED[row["prompt_id"]]
        assert row["n"] == 12
        assert row["estimate"] == pytest.approx(human_eval(12, sum(rewards), row["k"]))
        assert 0 <= row["low"] < row["high"] <= 1
        # Without bias and without an error of its own, the estimate for a large k may be above all that is plausible.
        assert row["low"] <= row["estimate"] <= row["high"] or row["estimate"] == 1
        if row["k"] == 7:
            assert row["standard_error"] == pytest.approx(reference.standard_error(rewards, 7))
        assert (row["standard_error"] is None) == (row["k"] == 12)
    evaluate(write_jsonl(path, records(SCORED)), "--k", "1,12", "--per-prompt", out, "--level", "0.5")
    one, twelve = [json.loads(line) for line in out.read_text().splitlines()][:2]
    assert one["high"] - one["estimate"] == pytest.approx(0.6744898 * one["standard_error"])
    assert (twelve["low"], twelve["high"]) == (None, None)


def test_a_curve_for_each_value_of_a_column(tmp_path: Path, evaluate: Evaluate) -> None:
    rollouts = [*records(PASSED, dataset="a", year=1), *records(SCORED, dataset="b", year=2)]
    path = write_jsonl(tmp_path / "a.jsonl", rollouts)
    rows = evaluate(path, "--by", "dataset,year", "--k", "1,2")
    assert [(row["split"], row["k"]) for row in rows] == [
        ({"dataset": name, "year": year}, k) for name, year in (("a", 1), ("b", 2)) for k in (1, 2)
    ]
    alone = evaluate(write_jsonl(tmp_path / "b.jsonl", records(SCORED)), "--k", "1,2")
    assert [{key: value for key, value in row.items() if key != "split"} for row in rows[2:]] == alone


def test_clusters_are_drawn_together(tmp_path: Path, evaluate: Evaluate) -> None:
    rollouts = [{**record, "book": int(record["prompt_id"][1:]) // 5} for record in records(SCORED)]
    path = write_jsonl(tmp_path / "a.jsonl", rollouts)
    (alone,) = evaluate(path, "--k", "1", "--level", "0.95")
    (together,) = evaluate(path, "--k", "1", "--level", "0.95", "--cluster", "book")
    assert (alone["clusters"], together["clusters"]) == (15, 3)
    assert alone["estimate"] == together["estimate"]
    books = np.array([np.mean(list(SCORED.values())[5 * book : 5 * book + 5]) for book in range(3)])
    assert together["standard_error"] == pytest.approx(books.std(ddof=1) / math.sqrt(3))
    rollouts[20]["book"] = 9
    for memory in ([], ["--memory", "150MB"]):
        said = evaluate(write_jsonl(path, rollouts), "--cluster", "book", *memory)
        assert "prompt_id='p5' is in the cluster" in said
        assert "a prompt is in one cluster" in said


def test_two_runs_are_compared_on_the_prompts_of_both(tmp_path: Path, evaluate: Evaluate) -> None:
    better = {name: [reward + number / 16 for reward in SCORED[name]] for number, name in enumerate(SCORED)}
    one = records({name: better[name] for name in list(SCORED)[:13]}) + records({"new": [1.0]})
    other = records({name: SCORED[name] for name in list(SCORED)[2:]}) + records({"old": [0.0] * 2})
    paths = write_jsonl(tmp_path / "one.jsonl", one), write_csv(tmp_path / "other.csv", other)
    rows = evaluate(paths[0], "--against", paths[1], "--k", "1,6,20")
    for row in rows[:2]:
        shared = list(SCORED)[2:13]
        values = [[reference.max_at_k(run[name], row["k"]) for name in shared] for run in (better, SCORED)]
        differences = np.subtract(*values)
        assert row["estimate"] == pytest.approx(np.mean(values[0]))
        assert row["against"] == pytest.approx(np.mean(values[1]))
        assert row["difference"] == pytest.approx(np.mean(differences))
        assert row["standard_error"] == pytest.approx(np.std(differences, ddof=1) / math.sqrt(11))
        assert 0 < row["low"] < row["difference"] < row["high"]
        assert row["p_value"] == row["p_adjusted"] == pytest.approx(2 / 2**11)  # all differences above 0: listed
        assert (row["pairs"], row["clusters"], row["left_out"], row["left_out_against"]) == (11, 11, 3, 3)
    nothing = ("estimate", "against", "difference", "standard_error", "low", "high", "p_value", "p_adjusted")
    counts = {"k": 20, "level": 0.95, "pairs": 0, "clusters": 0, "left_out": 14, "left_out_against": 14}
    assert rows[2] == dict.fromkeys(nothing) | counts
    (same,) = evaluate(paths[0], "--against", paths[0], "--k", "1")
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)


def test_rounding_is_no_difference(tmp_path: Path, evaluate: Evaluate) -> None:
    """The same pass rates from 10 and from 30 rollouts: as floats their means are not all equal."""
    one = records({f"p{i}": [1.0] * (i % 10) + [0.0] * (10 - i % 10) for i in range(200)})
    paths = write_jsonl(tmp_path / "1.jsonl", one), write_jsonl(tmp_path / "3.jsonl", one * 3)
    (row,) = evaluate(paths[0], "--against", paths[1], "--k", "1")
    assert (row["difference"], row["low"], row["high"], row["p_value"]) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("more", "said"), [(0, ""), (1, "pkpo: 1 of 3 groups have fewer rollouts in one run than in the")]
)
def test_unequal_numbers_of_rollouts_are_told(
    more: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = records({"a": [0, 1], "b": [1, 1], "c": [0, 0]})
    other = one + records({"a": [1] * more})
    paths = write_jsonl(tmp_path / "1.jsonl", one), write_jsonl(tmp_path / "2.jsonl", other)
    with pytest.raises(SystemExit):
        command.main(["evaluate", str(paths[0]), "--against", str(paths[1]), "--k", "1"])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pkpo: ")]
    assert len(told) == more
    assert "".join(told).startswith(said)


def test_long_texts_in_csv(tmp_path: Path, evaluate: Evaluate) -> None:
    path = write_csv(tmp_path / "a.csv", [{**record, "text": "x" * 200_000} for record in records({"a": [0, 1]})])
    assert evaluate(path, "--k", "1")[0]["estimate"] == 0.5


def test_a_column_asked_for_twice_is_one(tmp_path: Path, evaluate: Evaluate) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", records(PASSED, d="a"))
    assert evaluate(path, "--by", "d,d") == evaluate(path, "--by", "d")


def test_comparisons_are_made_within_splits_and_clusters(tmp_path: Path, evaluate: Evaluate) -> None:
    one = write_jsonl(tmp_path / "1.jsonl", [*records(PASSED, d="a", c=1), *records(SCORED, d="b", c=1)])
    other = write_jsonl(tmp_path / "2.jsonl", [*records(SCORED, d="b", c=1), *records(PASSED, d="c", c=1)])
    (row,) = evaluate(one, "--against", other, "--by", "d", "--k", "1")
    assert row["split"] == {"d": "b"}
    assert (row["pairs"], row["left_out"], row["left_out_against"]) == (15, 0, 0)
    (row,) = evaluate(one, "--against", other, "--by", "d", "--k", "1", "--cluster", "c")
    assert (row["clusters"], row["low"], row["p_value"]) == (1, None, 1)
    write_jsonl(other, records(SCORED, d="b", c=2))
    said = evaluate(one, "--against", other, "--by", "d", "--cluster", "c")
    assert "d='b', prompt_id='p0' is not in the same cluster in both runs" in said
    write_jsonl(other, [{"prompt_id": 0, "reward": 1, "d": "b"}])
    said = evaluate(one, "--against", other, "--by", "d")
    assert "no group in common: one has d='a', prompt_id='p0', the other d='b', prompt_id=0" in said


# An old matplotlib calls its newest parts by names that they no longer like.
of_matplotlib = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@of_matplotlib
@pytest.mark.parametrize("picture", ["curve.png", "curve.svg"])
@pytest.mark.parametrize("more", [[], ["--by", "d"], ["--against", "other.jsonl"]], ids=["one", "splits", "against"])
def test_pictures(
    tmp_path: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, picture: str, more: list[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    monkeypatch.chdir(tmp_path)
    rollouts = [record for d in range(3) for record in records(PASSED, d=d)]
    write_jsonl(Path("a.jsonl"), rollouts)
    write_jsonl(Path("other.jsonl"), records(SCORED))
    assert isinstance(evaluate("a.jsonl", "--plot", picture, *more), list)
    drawn = Path(picture).read_bytes()
    if picture.endswith(".png"):
        assert drawn.startswith(b"\x89PNG")
        return
    text = drawn.decode()
    assert "pass@k, mean over" in text if "--against" not in more else "max@k, mean over shared" in text
    for said in {"--by": ["d 0", "d 2"], "--against": ["this run", "the other", "difference"]}.get(
        (more or [""])[0], []
    ):
        assert f"<!-- {said} -->" in text
    evaluate("a.jsonl", "--plot", picture, *more)
    assert Path(picture).read_bytes() == drawn


@of_matplotlib
def test_what_cannot_be_drawn_says_why(tmp_path: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    path = write_jsonl(tmp_path / "a.jsonl", records(PASSED))
    assert "nothing to draw" in evaluate(path, "--k", "99", "--plot", tmp_path / "a.png")
    assert "No such file or directory" in evaluate(path, "--plot", tmp_path / "nowhere" / "a.png")
    assert "'a.bmp' must end in .png, .svg or .pdf" in evaluate(path, "--plot", "a.bmp")
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("duckdb", "matplotlib") else there(name)
    )
    assert "--plot needs matplotlib: pip install 'pkpo[evaluate]'" in evaluate(path, "--plot", tmp_path / "a.png")
    assert "--memory needs duckdb: pip install 'pkpo[evaluate]'" in evaluate(path, "--memory", "1GB")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--level", "95"], "'95' must be a number above 0 and below 1, such as 0.95"),
        (["--level", "0.9999999999999999"], "must be a number above 0 and below 1, such as 0.95"),
        (["--group", "n", "--per-prompt", "-"], "--per-prompt writes a column 'n' of its own"),
        (["--draws", "99"], "'99' must be a whole number of at least 100"),
        (["--seed", "-1"], "'-1' must be a whole number of at least 0"),
        (["--memory", "5"], "'5' must be a size above 1 MB, such as 500MB or 4GB"),
        (["--against", "b.jsonl", "--per-prompt", "-"], "--per-prompt is of one run"),
        (["--by", "nothing"], "a.jsonl:1: no column 'nothing'; it has 'prompt_id', 'reward'"),
        (["--cluster", "reward"], "a.jsonl:1: 'reward' is False; a group is named by a string or an integer"),
        (["-", "--memory", "1GB"], "standard input is read line by line"),
    ],
)
def test_what_cannot_be_asked_says_why(tmp_path: Path, evaluate: Evaluate, arguments: list[str], said: str) -> None:
    answer = evaluate(write_jsonl(tmp_path / "a.jsonl", records(PASSED)), *arguments)
    assert answer.startswith("exit 2")
    assert said in answer


BAD_CSV = [
    ("prompt_id,reward\na,1\nb,x\n", ":3: 'reward' is 'x'; must be a number of magnitude at most 1e100"),
    ("prompt_id,reward\na,1_0\n", ":2: 'reward' is '1_0'; must be a number"),
    ("prompt_id,reward\na,nan\n", ":2: 'reward' is nan; must be a number"),
    ("prompt_id,reward\na,\n", ":2: 'reward' is ''; must be a number"),
    ("prompt_id,reward\n,1\n", ":2: 'prompt_id' is ''; a group is named by"),
    ('prompt_id,reward,text\na,1,"two\nlines"\nb,1\n', ":4: has 2 fields; must have 3, as the header"),
    ('prompt_id,reward\n"a"b,1\n', ":2: is not CSV"),
    ("prompt_id,prompt_id,reward\na,b,1\n", ":1: two columns are called 'prompt_id'"),
    ("prompt_id,reward\ra,1\r", "is not CSV"),
    ("prompt,reward\na,1\n", ":2: no column 'prompt_id'; it has 'prompt', 'reward'"),
    ("prompt_id,reward\n", "holds no rollouts"),
    ("", "holds no rollouts"),
]
BAD_JSON = [
    ('{"prompt_id": "a", "reward": 1}\n\nnonsense\n', ":3: is not JSON"),
    ('{"prompt_id": "a", "reward": 1}\n{"prompt_id": "a", "reward": NaN}\n', ":2: 'reward' is nan"),
    ('{"prompt_id": "a", "reward": "1"}\n', ":1: 'reward' is '1'; must be a number"),
    ('{"prompt_id": 1.5, "reward": 1}\n', ":1: 'prompt_id' is 1.5; a group is named by"),
    ('{"prompt_id": "a", "Reward": 1}\n', ":1: no column 'reward'; it has 'prompt_id', 'Reward'"),
]


@pytest.mark.parametrize("memory", [[], ["--memory", "150MB"]], ids=["here", "duckdb"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("a.csv", *case) for case in BAD_CSV] + [("a.jsonl", *case) for case in BAD_JSON],
)
def test_bad_lines_are_named(
    tmp_path: Path, evaluate: Evaluate, name: str, content: str, said: str, memory: list[str]
) -> None:
    if memory:
        pytest.importorskip("duckdb", reason="needs duckdb")
    (tmp_path / name).write_text(content)
    answer = evaluate(tmp_path / name, *memory)
    assert answer.startswith("exit 2")
    assert said in answer


def test_csv_that_is_not_utf_8(tmp_path: Path, evaluate: Evaluate) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt_id,reward\n\xff,1\n")
    assert "a.csv:2: is not UTF-8" in evaluate(tmp_path / "a.csv")


def test_a_nan_of_parquet_is_found_whatever_the_statistics_say(tmp_path: Path, evaluate: Evaluate) -> None:
    pytest.importorskip("duckdb", reason="needs duckdb")
    path = write_parquet(tmp_path / "a.parquet", [{"prompt_id": "a", "reward": value} for value in (1.0, math.nan)])
    assert "a.parquet: row 2: 'reward' is nan" in evaluate(path, "--memory", "150MB")


@contextlib.contextmanager
def untold(*_: object) -> Iterator[NoProgress]:
    yield NoProgress()


def as_table(parts: Sequence[PromptRewards]) -> dict[Any, tuple[Any, list[float]]]:
    table: dict[Any, tuple[Any, list[float]]] = {}
    for part in parts:
        for name, cluster, rewards in zip(
            part.names, part.clusters, np.split(part.rewards, np.cumsum(part.sizes)[:-1]), strict=True
        ):
            assert name not in table
            table[name] = (cluster, sorted(rewards.tolist()))
    return table


NAMES = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=5), st.sampled_from(["1", "a", "A", "q\"'", 1]))
ROLLOUTS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt id": NAMES,
            "re'ward": st.one_of(
                st.booleans(), st.integers(-(10**30), 10**30), st.floats(-1e100, 1e100, allow_subnormal=True)
            ),
            "text": st.text(max_size=9),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(ROLLOUTS, st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.csv"]))
def test_duckdb_reads_what_the_line_reader_reads(
    tmp_path_factory: pytest.TempPathFactory, rollouts: list[Record], name: str
) -> None:
    pytest.importorskip("duckdb", reason="needs duckdb")
    # Before Python 3.11 nobody can write a zero into CSV.
    assume(sys.version_info >= (3, 11) or name != "a.csv" or "\\x00" not in repr(rollouts))
    path = str(WRITERS[name](tmp_path_factory.mktemp("rollouts") / name, rollouts))
    columns = Columns(("prompt id",), "re'ward", cluster=("prompt id",))

    def read(parts: Callable[[], Sequence[PromptRewards]]) -> Any:
        try:
            return as_table(parts())
        except RolloutsError as error:  # an empty name in CSV, or half of a character
            return str(error)

    here = read(lambda: [read_here([path], columns, untold)])
    assert read(lambda: list(prompt_rewards.prompt_rewards([path], columns, memory=2 * 10**8, progress=untold))) == here


def test_prompts_come_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of different sizes have the same default k."""
    pytest.importorskip("duckdb", reason="needs duckdb")
    monkeypatch.setattr(rollout_query, "_ROLLOUTS_AT_ONCE", 20)
    monkeypatch.setattr(prompt_rewards, "LARGE", 0)
    groups = {f"p{i}": [i / 8, 1.0] * (1 + i % 4) for i in range(10)}
    rollouts = [record for name, rewards in groups.items() for record in records({name: rewards})]
    path = str(write_jsonl(tmp_path / "a.jsonl", rollouts))
    columns = Columns(("prompt_id",), "reward")
    parts = list(prompt_rewards.prompt_rewards([path], columns, memory=None, progress=untold))
    assert len(parts) > 1
    assert as_table(parts) == as_table([read_here([path], columns, untold)])
    assert curve(prompt_estimates(parts, None)) == curve(prompt_estimates([read_here([path], columns, untold)], None))


class Told:
    """Remembers what it was told of progress."""

    def __init__(self) -> None:
        self.done = 0.0
        self.about: tuple[Any, ...] = ()

    @contextlib.contextmanager
    def __call__(self, *about: Any) -> Iterator[Told]:
        self.about = about
        yield self

    def update(self, n: float) -> None:
        assert n >= 0
        self.done += n


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("memory", [None, 2 * 10**8], ids=["here", "duckdb"])
def test_progress_is_told_to_the_end(tmp_path: Path, name: str, memory: int | None) -> None:
    if memory:
        pytest.importorskip("duckdb", reason="needs duckdb")
    path, told = WRITERS[name](tmp_path / name, records(PASSED)), Told()
    columns = Columns(("prompt_id",), "reward")
    assert list(prompt_rewards.prompt_rewards([str(path)], columns, memory=memory, progress=told))
    total = 180 if name == "a.parquet" else path.stat().st_size
    of_file = (str(path), total, "rows" if name == "a.parquet" else "B")
    assert told.about == (("DuckDB", 100, "%") if memory else of_file)
    assert told.done == pytest.approx(told.about[1])


LIMIT = 384 << 20


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    """Under a limit of the process's memory that the file does not fit into."""
    pytest.importorskip("duckdb", reason="needs duckdb")
    path = tmp_path / "large.jsonl"
    text = "x" * (1 << 16)
    with path.open("w") as file:
        for number in range(LIMIT // len(text) + 100):
            file.write(f'{{"prompt_id": {number % 100}, "text": "{text}", "reward": {number % 2}}}\n')
    assert path.stat().st_size > LIMIT
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            preexec_fn=limited,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    assert "MemoryError" in run("-c", f"open({str(path)!r}, 'rb').read()").stderr
    evaluate = ["-m", "pkpo_client.command", "evaluate", str(path), "--k", "1,4", "--json"]
    done = run(*evaluate, "--memory", "100MB")
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # not read line by line after all
    assert [row["estimate"] for row in json.loads(done.stdout)] == [0.5, 0.5]


def test_too_little_memory_is_said(tmp_path: Path, evaluate: Evaluate) -> None:
    pytest.importorskip("duckdb", reason="needs duckdb")
    path = write_jsonl(tmp_path / "a.jsonl", records(PASSED))
    assert "DuckDB needs more memory; give it with --memory" in evaluate(path, "--memory", "5MB")
