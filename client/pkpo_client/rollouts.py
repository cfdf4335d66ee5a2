"""Rollouts in files: a group and a reward per line of JSON, or per row of Parquet."""

from __future__ import annotations

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
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pkpo_client.errors import PkpoError

LARGEST_REWARD = 1e100


class RolloutsError(PkpoError):
    """A file of rollouts that cannot be read; says where and what to do."""


class Progress(Protocol):
    """What is told of the bytes or rows that have been read."""

    def update(self, n: float) -> object: ...


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
    columns = [*group_columns, reward_column]
    if is_parquet(path):
        records = _parquet_records(path, None if keep_records else columns, progress)
    else:
        records = _json_records(path, progress)
    group_ids: list[Any] = []
    rewards: list[float] = []
    kept: list[Mapping[str, Any]] = []
    for place, record in records:
        missing = [column for column in columns if column not in record]
        if missing:
            raise RolloutsError(
                f"{place}: no column {missing[0]!r}; it has {', '.join(map(repr, record)) or 'none'}. "
                "Name the columns with --group and --reward."
            )
        group_ids.append(_group_id(record, group_columns, place))
        rewards.append(_reward(record[reward_column], reward_column, place))
        if keep_records:
            kept.append(record)
    if not rewards:
        raise RolloutsError(f"{_said(path)}: holds no rollouts")
    return Rollouts(group_ids, np.array(rewards), kept)


def _group_id(record: Mapping[str, Any], columns: Sequence[str], place: str) -> Any:
    values = tuple(record[column] for column in columns)
    for column, value in zip(columns, values, strict=True):
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise RolloutsError(f"{place}: {column!r} is {value!r}; a group is named by a string or an integer")
    return values[0] if len(values) == 1 else values


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
            place = f"{_said(path)}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RolloutsError(f"{place}: is not JSON: {error}{_hint(line)}") from error
            if not isinstance(record, dict):
                raise RolloutsError(
                    f"{place}: is a JSON {type(record).__name__}; must be an object with a group and a reward"
                )
            yield place, record


def _said(path: str) -> str:
    return "standard input" if path == "-" else path


def _hint(line: bytes) -> str:
    """What else a file may be whose first line is no JSON."""
    for magic, kind, ending in ((b"PAR1", "Parquet", ".parquet"), (b"\x1f\x8b", "gzip", ".gz")):
        if line.startswith(magic):
            return f". It looks like {kind}: give it as a file named ...{ending}"
    return ""


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


def size(path: str) -> int | None:
    """How much `read_rollouts` will tell its progress of, where that is known: bytes, or rows of Parquet."""
    if path == "-" or path.endswith(".gz"):
        return None
    if is_parquet(path):
        try:
            from pyarrow import parquet

            return int(parquet.read_metadata(path).num_rows)
        except Exception:  # reading will say what is wrong
            return None
    return Path(path).stat().st_size if Path(path).exists() else None


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
