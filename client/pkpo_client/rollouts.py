"""Rollouts in files: a group and a reward per line of JSON, per row of Parquet, or per line of CSV."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pkpo_client.errors import PkpoError

LARGEST_REWARD = 1e100

# The csv module refuses fields of more than 128 KiB until told otherwise, and answers are longer.
csv.field_size_limit(2**31 - 1)


class RolloutsError(PkpoError):
    """A file of rollouts that cannot be read; says where and what to do."""


class Progress(Protocol):
    """What is told of the bytes or rows that have been read."""

    def update(self, n: float) -> object: ...


class NoProgress:
    """Nobody is told."""

    def update(self, n: float) -> None:
        pass


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a file, in its order.

    Attributes:
        group_ids: of each rollout: the value of the group column, or a tuple where there are several columns.
        rewards: float64, shape (rollouts,).
        records: each rollout's record, where asked for.
    """

    group_ids: list[Any]
    rewards: NDArray[np.float64]
    records: list[Mapping[str, Any]]


def read_rollouts(
    path: str, group_columns: Sequence[str], reward_column: str, *, keep_records: bool, progress: Progress
) -> Rollouts:
    """The rollouts of a file.

    Args:
        path: of a .jsonl, .jsonl.gz or .parquet file, or "-" for JSON lines on standard input.
        group_columns: the columns whose values together name a rollout's group.
        reward_column: the column of the reward: a number, true or false.
        keep_records: whether to keep whole records too.
        progress: told of each line's bytes or each row.

    Raises:
        RolloutsError: the file, a line of it, or a needed library cannot be had; names the line and the column.
    """
    if is_csv(path):
        raise RolloutsError(f"{path}: a table of CSV has no types to keep; give JSON lines or Parquet")
    group_ids: list[Any] = []
    rewards: list[float] = []
    kept: list[Mapping[str, Any]] = []
    for rollout in each_rollout(path, group_columns, reward_column, whole=keep_records, progress=progress):
        group_ids.append(rollout.ids[0] if len(group_columns) == 1 else rollout.ids)
        rewards.append(rollout.reward)
        if keep_records:
            kept.append(rollout.record)
    if not rewards:
        raise RolloutsError(f"{said(path)}: holds no rollouts")
    return Rollouts(group_ids, np.array(rewards), kept)


class Rollout(NamedTuple):
    """One line or row of a file.

    Attributes:
        place: where it is: the file and the line, or the row of Parquet.
        ids: the values of the columns that name things, in the order asked for.
        reward: a finite number.
        record: all that was read of it.
    """

    place: str
    ids: tuple[str | int, ...]
    reward: float
    record: Mapping[str, Any]


def each_rollout(
    path: str, id_columns: Sequence[str], reward_column: str, *, whole: bool, progress: Progress
) -> Iterator[Rollout]:
    """The rollouts of a file, one after the other, with nothing kept of those before.

    Args:
        path: of a .jsonl, .csv or .parquet file, the first two as .gz too, or "-" for JSON lines on standard input.
        id_columns: columns whose values are strings or integers.
        reward_column: the column of the reward: a number, true or false.
        whole: whether all columns of Parquet are read, or only those named.
        progress: told of each line's bytes or each row.

    Raises:
        RolloutsError: the file, a line of it, or a needed library cannot be had; names the line and the column.
    """
    columns = [*id_columns, reward_column]
    of_text = is_csv(path)
    if is_parquet(path):
        records = _parquet_records(path, None if whole else columns, progress)
    elif of_text:
        records = _csv_records(path, progress)
    else:
        records = _json_records(path, progress)
    for place, record in records:
        missing = [column for column in columns if column not in record]
        if missing:
            raise RolloutsError(
                f"{place}: no column {missing[0]!r}; it has {', '.join(map(repr, record)) or 'none'}. "
                "Name the columns with --group and --reward."
            )
        reward = record[reward_column]
        yield Rollout(
            place,
            _ids(record, id_columns, place, of_text),
            _reward(_number(reward) if of_text else reward, reward_column, place),
            record,
        )


def _ids(record: Mapping[str, Any], columns: Sequence[str], place: str, of_text: bool) -> tuple[Any, ...]:
    values = tuple(record[column] for column in columns)
    for column, value in zip(columns, values, strict=True):
        # CSV does not tell an empty string from a value that is missing.
        if not isinstance(value, (str, int)) or isinstance(value, bool) or (of_text and not value):
            raise RolloutsError(f"{place}: {column!r} is {value!r}; a group is named by a string or an integer")
    return values


def _number(text: str) -> float | str:
    """What a field of CSV says: a number, true or false; the text itself where it is neither."""
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
    try:
        return text if "_" in text else float(text)
    except ValueError:
        return text


def _reward(value: Any, column: str, place: str) -> float:
    if not isinstance(value, (int, float)) or not abs(value) <= LARGEST_REWARD:  # false for NaN too
        raise RolloutsError(f"{place}: {column!r} is {value!r:.40}; must be a number of magnitude at most 1e100")
    return float(value)


def _json_records(path: str, progress: Progress) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            progress.update(len(line))
            if line.isspace():
                continue
            place = f"{said(path)}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RolloutsError(f"{place}: is not JSON: {error}{_hint(line)}") from error
            if not isinstance(record, dict):
                raise RolloutsError(
                    f"{place}: is a JSON {type(record).__name__}; must be an object with a group and a reward"
                )
            yield place, record


def said(path: str) -> str:
    """What messages call a file."""
    return "standard input" if path == "-" else path


def _hint(line: bytes) -> str:
    """What else a file may be whose first line is no JSON."""
    for magic, kind, ending in ((b"PAR1", "Parquet", ".parquet"), (b"\x1f\x8b", "gzip", ".gz")):
        if line.startswith(magic):
            return f". It looks like {kind}: give it as a file named ...{ending}"
    return ""


def _csv_records(path: str, progress: Progress) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with _opened(path) as lines:
        rows = csv.reader(_text(lines, path, progress), strict=True)
        header: list[str] = []
        try:
            for row in rows:
                place = f"{path}:{rows.line_num}"
                if not row:
                    continue
                if not header:
                    header = row
                    twice = [name for name in header if header.count(name) > 1]
                    if twice:
                        raise RolloutsError(f"{place}: two columns are called {twice[0]!r}")
                    continue
                if len(row) != len(header):
                    raise RolloutsError(f"{place}: has {len(row)} fields; must have {len(header)}, as the header")
                yield place, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise RolloutsError(f"{path}:{rows.line_num}: is not CSV: {error}") from error


def csv_header(path: str) -> list[str]:
    """The names of the columns of a CSV file; none of an empty one.

    Raises:
        RolloutsError: the file cannot be had, or its header is not CSV.
    """
    with _opened(path) as lines:
        try:
            return next((row for row in csv.reader(_text(lines, path, NoProgress())) if row), [])
        except csv.Error as error:
            raise RolloutsError(f"{path}: is not CSV: {error}") from error


def _text(lines: Iterable[bytes], path: str, progress: Progress) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        progress.update(len(line))
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise RolloutsError(f"{path}:{number}: is not UTF-8: {error}{_hint(line)}") from error


@contextmanager
def _opened(path: str) -> Iterator[Iterable[bytes]]:
    try:
        if path == "-":
            yield sys.stdin.buffer
        elif path.endswith(".gz"):
            with gzip.open(path) as lines:
                yield lines
        else:
            with Path(path).open("rb") as lines:
                yield lines
    except (OSError, EOFError, zlib.error) as error:
        raise RolloutsError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _parquet_records(
    path: str, columns: list[str] | None, progress: Progress
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise RolloutsError(f"{path}: reading Parquet needs pyarrow: pip install 'pkpo[local]'") from error
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names] if columns else None
            for batch in file.iter_batches(columns=present):
                for record in batch.to_pylist():
                    row += 1
                    progress.update(1)
                    yield f"{path}: row {row}", record
    except (OSError, ArrowException) as error:
        raise RolloutsError(f"{path}: {error}") from error


def is_parquet(path: str) -> bool:
    """Whether a file is Parquet, by its name."""
    return path.lower().endswith((".parquet", ".pq"))


def is_csv(path: str) -> bool:
    """Whether a file is CSV, gzipped or not, by its name."""
    return path.lower().endswith((".csv", ".csv.gz"))


def files(patterns: Sequence[str]) -> list[str]:
    """The files that paths and patterns such as "runs/*.parquet" name; `**` is any folders; "-" is standard input.

    Raises:
        RolloutsError: a pattern matches no file, or a file is named twice.
    """
    paths: list[str] = []
    for pattern in patterns:
        if pattern == "-" or not glob.has_magic(pattern) or Path(pattern).exists():
            paths.append(pattern)
            continue
        matching = [path for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_file()]
        if not matching:
            raise RolloutsError(f"{pattern}: matches no file")
        paths += matching
    seen: set[str] = set()
    for path in paths:
        real = path if path == "-" else os.path.realpath(path)
        if real in seen:
            raise RolloutsError(f"{said(path)}: is given twice, and its rollouts must count once")
        seen.add(real)
    return paths


def size(path: str) -> tuple[int | None, str]:
    """How much `each_rollout` will tell its progress of, where that is known, and of what: bytes, or rows."""
    if is_parquet(path):
        try:
            from pyarrow import parquet

            return int(parquet.read_metadata(path).num_rows), "rows"
        except Exception:  # reading will say what is wrong
            return None, "rows"
    known = path != "-" and not path.endswith(".gz") and Path(path).is_file()
    return Path(path).stat().st_size if known else None, "B"


def write_records(records: Iterable[Mapping[str, Any]], path: str) -> None:
    """Writes records as JSON lines, or as Parquet where the path ends so; "-" is standard output.

    A file that was there is replaced only once all is written.

    Raises:
        RolloutsError: the file or a needed library cannot be had, or a record does not fit the kind of file.
    """
    if path == "-":
        _write_lines(records, sys.stdout)
        return
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # a pipe or a device, which must not be replaced
            _write_file(records, target)
            return
        part = target.with_name(f".part-{os.getpid()}-{target.name}")
        try:
            _write_file(records, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise RolloutsError(f"{path}: {error.strerror or error}") from error


def _write_file(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    if is_parquet(path.name):
        _write_parquet(records, path)
    else:
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
            _write_lines(records, file)


def _write_parquet(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise RolloutsError("writing Parquet needs pyarrow: pip install 'pkpo[local]'") from error
    try:
        parquet.write_table(pa.Table.from_pylist(list(records)), path)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise RolloutsError(f"the records do not fit Parquet ({error}); write JSON lines instead") from error


def _write_lines(records: Iterable[Mapping[str, Any]], file: IO[str] | io.TextIOBase) -> None:
    for number, record in enumerate(records, 1):
        try:
            line = json.dumps(record, ensure_ascii=False)
        except TypeError as error:
            raise RolloutsError(f"rollout {number} does not fit JSON ({error}); write Parquet instead") from error
        file.write(line + "\n")
