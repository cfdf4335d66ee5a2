"""The rewards of each prompt, from files of any size.

Small files are read line by line, here, and so is standard input: that takes 16 bytes of memory a rollout and what the
prompts' names need. Large ones are grouped by DuckDB, on all processors and on disk where memory does not suffice, and
come back some prompts at a time. Both give the same, but that DuckDB lets a comma too many in a JSON object pass. What
it does not take, or refuses, is read line by line after all, which finds the line to name.
"""

from __future__ import annotations

import glob
import importlib.util
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pkpo_client.rollouts import Progress, RolloutsError, each_rollout, said, size

Name = tuple[str | int, ...]

LARGE = 64 << 20  # bytes of files: above, starting DuckDB pays


@dataclass(frozen=True)
class Columns:
    """What the columns of rollouts are called.

    Attributes:
        group: those that name a prompt.
        reward: the reward's.
        split: those that say which curve a rollout belongs to; they are part of the prompt's name.
        cluster: those that name the cluster a prompt is in; none where each is one of its own.
    """

    group: tuple[str, ...]
    reward: str
    split: tuple[str, ...] = ()
    cluster: tuple[str, ...] = ()

    @property
    def prompt(self) -> tuple[str, ...]:
        """The columns whose values together are a prompt's name: of the split first."""
        return tuple(dict.fromkeys((*self.split, *self.group)))


@dataclass(frozen=True)
class PromptRewards:
    """Some prompts, with all their rewards.

    Attributes:
        names: of each prompt, the values of `Columns.prompt`.
        clusters: of each prompt, the values of `Columns.cluster`.
        sizes: how many rewards each has, int64, shape (prompts,).
        rewards: of one prompt after the other, float64.
    """

    names: list[Name]
    clusters: list[Name]
    sizes: NDArray[np.int64]
    rewards: NDArray[np.float64]


#: Makes what is told of progress, from what is read, how much of it there is (where that is known), and the unit.
ProgressOf = Callable[[str, float | None, str], AbstractContextManager[Progress]]


def prompt_rewards(
    paths: Sequence[str], columns: Columns, *, memory: int | None, progress: ProgressOf
) -> Iterator[PromptRewards]:
    """The prompts of files, each once, in no particular order.

    Args:
        paths: as `rollouts.each_rollout` takes them.
        columns: what they are called.
        memory: the bytes that DuckDB may use; None leaves it to it, and to the files' size whether it is used.
        progress: of each file, or of DuckDB's work.

    Raises:
        RolloutsError: a file, or a line of it, cannot be used; two clusters hold one prompt; DuckDB is not installed
            and `memory` given, or does not get by with it.
    """
    installed = importlib.util.find_spec("duckdb") is not None
    if memory is not None and not installed:
        raise RolloutsError("--memory needs duckdb: pip install 'pkpo[evaluate]'")
    if memory is not None and "-" in paths:
        raise RolloutsError("--memory is for files; standard input is read line by line")
    large = memory is not None or sum(Path(path).stat().st_size for path in paths if Path(path).is_file()) > LARGE
    # DuckDB would take a * in a file's name for a pattern.
    plain = all(Path(path).is_file() and not glob.has_magic(path) for path in paths)
    if not (large and installed and plain):
        yield read_here(paths, columns, progress)
        return
    import duckdb

    from pkpo_client.rollout_query import NotForDuckDB, RolloutQuery

    try:
        query = RolloutQuery(paths, columns, memory=memory, progress=progress)
    except duckdb.OutOfMemoryException as error:
        raise RolloutsError(f"DuckDB needs more memory; give it with --memory ({_first_line(error)})") from error
    except (duckdb.Error, NotForDuckDB) as error:
        print(f"pkpo: reading line by line, since DuckDB stopped: {_first_line(error)}", file=sys.stderr)
        yield read_here(paths, columns, progress)
        return
    with query:
        yield from query.prompts()


def read_here(paths: Sequence[str], columns: Columns, progress: ProgressOf) -> PromptRewards:
    """The same, read in this process line by line.

    Raises:
        RolloutsError: as of `prompt_rewards`; names the file, the line and the column.
    """
    names: dict[Name, int] = {}
    clusters: list[Name] = []
    numbers, rewards = array("q"), array("d")
    width = len(columns.prompt)
    for path in paths:
        with progress(path, *size(path)) as told:
            for rollout in each_rollout(
                path, (*columns.prompt, *columns.cluster), columns.reward, whole=False, progress=told
            ):
                name, cluster = rollout.ids[:width], rollout.ids[width:]
                number = names.setdefault(name, len(names))
                if number == len(clusters):
                    clusters.append(cluster)
                elif clusters[number] != cluster:
                    raise RolloutsError(
                        f"{rollout.place}: {shown(columns.prompt, name)} is in the cluster "
                        f"{shown(columns.cluster, cluster)}, and was in {shown(columns.cluster, clusters[number])} "
                        "before; a prompt is in one cluster"
                    )
                numbers.append(number)
                rewards.append(rollout.reward)
    if not rewards:
        raise nothing_in(paths)
    of_prompt = np.frombuffer(numbers, dtype=np.int64)
    order = np.argsort(of_prompt, kind="stable")
    return PromptRewards(list(names), clusters, np.bincount(of_prompt), np.frombuffer(rewards, dtype=np.float64)[order])


def nothing_in(paths: Sequence[str]) -> RolloutsError:
    """The error of files without a rollout."""
    return RolloutsError(f"{said(paths[0])}{f' and {len(paths) - 1} more' if paths[1:] else ''}: holds no rollouts")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def shown(columns: Sequence[str], values: Name) -> str:
    """A name as messages have it."""
    return ", ".join(f"{column}={value!r}" for column, value in zip(columns, values, strict=True))
