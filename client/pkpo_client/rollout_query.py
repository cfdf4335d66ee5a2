"""Rollouts that may not fit into memory, grouped by DuckDB.

Names travel as the text of their JSON, in which a string is never an integer.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pkpo_client.prompt_rewards import Columns, Name, ProgressOf, PromptRewards, nothing_in, shown
from pkpo_client.rollouts import LARGEST_REWARD, Progress, RolloutsError, csv_header, is_csv, is_parquet

_MEMORY_OF_A_THREAD = 200_000_000  # bytes: DuckDB's buffers for lines of up to 16 MiB, and as much to work with
_ROLLOUTS_AT_ONCE = 1 << 18
_ROWS_AT_ONCE = 1 << 14
_INTEGERS = {f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")}
_NUMBERS = {*_INTEGERS, "FLOAT", "DOUBLE", "BOOLEAN"}


class NotForDuckDB(Exception):
    """Something that is to be read line by line."""


class RolloutQuery:
    """The files' prompts, clusters and rewards with how often they come, in the order of the prompts; to be closed.

    Args:
        paths: of files, without what DuckDB takes for a pattern.
        columns: what they are called.
        memory: the bytes it may use; None leaves it to DuckDB.
        progress: of the work, in percent.

    Raises:
        duckdb.Error: it cannot read a file, or refuses a line of one.
        NotForDuckDB: a file has columns that DuckDB would read otherwise than line by line.
    """

    def __init__(self, paths: Sequence[str], columns: Columns, *, memory: int | None, progress: ProgressOf) -> None:
        import duckdb

        self._paths = paths
        self._columns = columns
        self._folder = tempfile.TemporaryDirectory(prefix="pkpo-evaluate-")
        config: dict[str, Any] = {
            "temp_directory": self._folder.name,
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            # By the statistics of a Parquet file, which leave NaN out, it would take NaN for a number below the bound.
            "disabled_optimizers": "statistics_propagation",
        }
        if memory is not None:
            config["memory_limit"] = f"{memory >> 20}MiB"
            config["threads"] = str(max(1, min(os.cpu_count() or 1, memory // _MEMORY_OF_A_THREAD)))
        try:
            self._connection = duckdb.connect(config=config)
            try:
                with progress("DuckDB", 100, "%") as told:
                    self._run(self._query(paths), told)
            except BaseException:
                self._connection.close()
                raise
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> RolloutQuery:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def _query(self, paths: Sequence[str]) -> str:
        kinds: dict[tuple[str, ...], list[str]] = {}
        for path in paths:
            kinds.setdefault(self._kind(path), []).append(path)
        selected = " UNION ALL ".join(self._selection(kind, of_kind) for kind, of_kind in kinds.items())
        width = len(self._columns.prompt)
        by_name = ", ".join(f"id{number}" for number in range(width))
        return f"SELECT *, count(*) AS times FROM ({selected}) GROUP BY ALL ORDER BY {by_name}"

    def _kind(self, path: str) -> tuple[str, ...]:
        """What files must have in common to be read as one table."""
        if is_parquet(path):
            relation = self._connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [path])
            return ("parquet", *(f"{name}\0{kind}" for name, kind, *_ in relation.fetchall()))
        if is_csv(path):
            return ("csv", *csv_header(path))
        return ("json",)

    def _selection(self, kind: tuple[str, ...], paths: list[str]) -> str:
        """A row for each rollout: the text of its ids in JSON, and its reward as a double."""
        ids = (*self._columns.prompt, *self._columns.cluster)
        wanted = dict.fromkeys((*ids, self._columns.reward))
        files = f"[{', '.join(map(_text, paths))}]"
        if kind[0] == "json":
            typed = dict.fromkeys(wanted, "JSON")
            source = f"read_json({files}, format='newline_delimited', columns={_struct(typed)})"
        elif kind[0] == "csv":
            typed = dict.fromkeys(kind[1:], "CSV")
            texts = dict.fromkeys(kind[1:], "VARCHAR")
            source = (
                f"read_csv({files}, auto_detect=false, header=true, delim=',', quote='\"', escape='\"', "
                f"columns={_struct(texts)})"
            )
        else:
            typed = dict(each.split("\0") for each in kind[1:])
            source = f"read_parquet({files})"
        # DuckDB's names do not differ by case; ours do.
        if not set(wanted) <= set(typed) or len({column.lower() for column in typed}) < len(typed):
            raise NotForDuckDB(f"the columns of {paths[0]}")
        selected = [f"{_id(column, typed[column])} AS id{number}" for number, column in enumerate(ids)]
        reward = _reward(self._columns.reward, typed[self._columns.reward])
        bounded = f"isfinite({reward}) AND abs({reward}) <= {LARGEST_REWARD!r}"
        checked = f"CASE WHEN {bounded} THEN {reward} ELSE error('a reward') END"
        return f"SELECT {', '.join(selected)}, {checked} AS reward FROM {source}"

    def _run(self, query: str, told: Progress) -> None:
        """Executes the query in a thread of its own, so that this one can tell of its progress, and be interrupted."""
        failed: list[BaseException] = []

        def execute() -> None:
            try:
                self._connection.execute(query)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=execute, name="pkpo-duckdb")
        thread.start()
        done = 0.0
        try:
            while thread.is_alive():
                thread.join(0.05)
                now = max(done, self._connection.query_progress())
                told.update(now - done)
                done = now
        except BaseException:
            self._connection.interrupt()
            thread.join()
            raise
        if failed:
            raise failed[0]
        told.update(100 - done)

    def prompts(self) -> Iterator[PromptRewards]:
        """Some prompts at a time, once.

        Raises:
            RolloutsError: there are none, or one is in two clusters.
        """
        width = len(self._columns.prompt)
        names: list[tuple[str, ...]] = []
        clusters: list[tuple[str, ...]] = []
        starts: list[int] = []
        rewards: list[float] = []
        times: list[int] = []
        rollouts = 0

        def decoded(ids: tuple[str, ...]) -> Name:
            return tuple(map(json.loads, ids))

        def finished() -> PromptRewards:
            repeated = np.array(times)
            sizes = np.add.reduceat(repeated, starts)
            return PromptRewards(
                [decoded(name) for name in names],
                [decoded(cluster) for cluster in clusters],
                sizes,
                np.repeat(np.array(rewards), repeated),
            )

        while rows := self._connection.fetchmany(_ROWS_AT_ONCE):
            for *ids, reward, count in rows:
                name, cluster = tuple(ids[:width]), tuple(ids[width:])
                if not names or name != names[-1]:
                    if rollouts >= _ROLLOUTS_AT_ONCE:
                        yield finished()
                        for each in (names, clusters, starts, rewards, times):
                            each.clear()
                        rollouts = 0
                    names.append(name)
                    clusters.append(cluster)
                    starts.append(len(rewards))
                elif cluster != clusters[-1]:
                    raise RolloutsError(
                        f"{shown(self._columns.prompt, decoded(name))} is in the clusters "
                        f"{shown(self._columns.cluster, decoded(clusters[-1]))} and "
                        f"{shown(self._columns.cluster, decoded(cluster))}; a prompt is in one cluster"
                    )
                rewards.append(reward)
                times.append(count)
                rollouts += count
        if not names:
            raise nothing_in(self._paths)
        yield finished()


def _id(column: str, kind: str) -> str:
    name = _name(column)
    if kind == "JSON":
        return f"CASE WHEN json_type({name}) IN ('VARCHAR', 'BIGINT', 'UBIGINT') THEN {name}::VARCHAR {_OR_STOP}"
    if kind == "CSV":
        return f"CASE WHEN {name} <> '' THEN to_json({name})::VARCHAR {_OR_STOP}"
    if kind == "VARCHAR" or kind in _INTEGERS:
        return f"CASE WHEN {name} IS NOT NULL THEN to_json({name})::VARCHAR {_OR_STOP}"
    raise NotForDuckDB(f"{column} is of type {kind}")


_OR_STOP = "ELSE error('a name') END"


def _reward(column: str, kind: str) -> str:
    name = _name(column)
    if kind == "JSON":
        return (
            f"CASE json_type({name}) WHEN 'BOOLEAN' THEN ({name}::VARCHAR = 'true')::INTEGER::DOUBLE "
            f"WHEN 'VARCHAR' THEN NULL ELSE TRY_CAST({name}::VARCHAR AS DOUBLE) END"
        )
    if kind == "CSV":
        return (
            f"CASE lower({name}) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0 "
            f"ELSE CASE WHEN contains({name}, '_') THEN NULL ELSE TRY_CAST({name} AS DOUBLE) END END"
        )
    if kind in _NUMBERS:
        return f"{name}::DOUBLE"
    raise NotForDuckDB(f"{column} is of type {kind}")


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _struct(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f"{_text(field)}: {_text(value)}" for field, value in fields.items()) + "}"
