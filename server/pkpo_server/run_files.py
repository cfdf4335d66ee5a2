"""The counters of training runs, of several processes that share one metrics endpoint.

The library keeps what a process counts in files, so that it outlives the process, and sums these files when they are
read. Nothing can be taken out of them. So what has a run is kept in files of our own, of the library's form: a worker
writes one anew, without the runs that it lets go, and whoever sums them sees to it that no sum falls for that.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import mmap
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.registry import Collector

RUN_LABEL = "run"
# Not .db, by which the library knows its own.
_SUFFIX = ".runs"
# Of an entry: its length, the value and its time, and what fills it up.
_MOST_BESIDE_KEY = 32
# What a file begins with, as the library's do; most of it is no room yet.
_FIRST_BYTES = 2**16

_log = logging.getLogger(__name__)


class RunFile:
    """The counters of runs of one worker. Belongs to one thread.

    Args:
        folder: that of all workers of a server.
        worker: its number; what a worker of that number counted before is gone on from.
    """

    def __init__(self, folder: Path, worker: int) -> None:
        self._path = folder / f"{worker}{_SUFFIX}"
        self._values = _opened(self._path)

    def runs(self) -> set[str]:
        """Those it holds counters of."""
        return {_run(key) for key, _, _ in self._values.read_all_values()}

    def forget(self, runs: Collection[str]) -> None:
        """Takes out all counters of some runs, which must not be counted on. Raises OSError where the disk is full."""
        path = self._path.with_suffix(".new")
        path.unlink(missing_ok=True)
        fresh = _opened(path)
        for key, value, _ in self._values.read_all_values():
            if _run(key) not in runs:
                fresh.write_value(key, value, 0.0)
        if not fresh.complete:
            fresh.close()  # type: ignore[no-untyped-call]
            path.unlink(missing_ok=True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        # Whoever reads the former one goes on with it.
        path.replace(self._path)
        self.close()
        self._values = fresh

    def close(self) -> None:
        """Nothing may be counted any more."""
        self._values.close()  # type: ignore[no-untyped-call]

    def value_class(self, others: Callable[..., Any]) -> Callable[..., Any]:
        """For prometheus_client.values.ValueClass: counters with a run are kept here, and all else by `others`."""

        def value(
            kind: str,
            metric: str,
            name: str,
            labels: tuple[str, ...],
            values: tuple[str, ...],
            help_text: str,
            **more: Any,
        ) -> Any:
            if RUN_LABEL not in labels:
                return others(kind, metric, name, labels, values, help_text, **more)
            return _Value(self, mmap_key(metric, name, list(labels), list(values), help_text))

        return value

    def read(self, key: str) -> float:
        """What is counted under a key; nothing yet, from now on, where it is new."""
        value: float = self._values.read_value(key)[0]
        return value

    def write(self, key: str, value: float) -> None:
        """Writes what is counted under a key."""
        self._values.write_value(key, value, 0.0)


class _Value:
    """One counter, as the library's are."""

    def __init__(self, file: RunFile, key: str) -> None:
        self._file = file
        self._key = key
        self._value = file.read(key)

    def inc(self, amount: float) -> None:
        self._value += amount
        self._file.write(self._key, self._value)

    def get(self) -> float:
        return self._value

    def get_exemplar(self) -> None:
        return None


class RunFiles(Collector):
    """The counters of runs of all workers, summed.

    A run that one worker lets go may have another that keeps it. What the one counted stays in the sum until none has
    it, since a sum that falls would look as if everything had been counted anew.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        # What each file held when it was read last, and what has since been taken out of files.
        self._read: dict[Path, dict[str, float]] = {}
        self._taken_out: dict[str, list[float]] = {}

    def collect(self) -> Iterator[Metric]:
        """The sums now."""
        metrics: dict[str, Metric] = {}
        for key, value in self._sums().items():
            metric, name, labels, help_text = json.loads(key)
            metrics.setdefault(metric, Metric(metric, help_text, "counter")).add_sample(name, labels, value)
        yield from metrics.values()

    def _sums(self) -> dict[str, float]:
        with self._lock:
            read: dict[Path, dict[str, float]] = {}
            counted: dict[str, list[float]] = defaultdict(list)
            taken_out = {key: list(values) for key, values in self._taken_out.items()}
            for path in self._folder.glob(f"*{_SUFFIX}"):
                entries = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
                now = read[path] = {key: value for key, value, *_ in entries}
                for key, before in self._read.get(path, {}).items():
                    if now.get(key, 0.0) < before:
                        taken_out.setdefault(key, []).append(before)
                for key, value in now.items():
                    counted[key].append(value)
            # Both or none, should a file not be readable.
            self._read = read
            self._taken_out = {key: values for key, values in taken_out.items() if key in counted}
            # Rounded once: rounded after each addition, a sum would go by the order, and might fall when that changes.
            return {key: math.fsum([*values, *self._taken_out.get(key, ())]) for key, values in counted.items()}


class CounterFile(MmapedDict):
    """The library's file of counters, in which there is room for every counter before it is written.

    Where the disk is full the library's has none, and the process that writes to it is killed. This one then keeps the
    counter for itself, until there is room.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self._kept: dict[str, tuple[float, float]] = {}
        self._shown = _has_room(path)
        if self._shown:
            super().__init__(path)  # type: ignore[no-untyped-call]
            return
        memory = os.memfd_create(Path(path).name)
        super().__init__(f"/proc/self/fd/{memory}")  # type: ignore[no-untyped-call]
        os.close(memory)

    @property
    def complete(self) -> bool:
        """Whether all counters are in the file."""
        return self._shown and not self._kept

    def read_all_values(self) -> Iterator[tuple[str, float, float]]:
        """Each counter: its key, value and time."""
        yield from super().read_all_values()  # type: ignore[no-untyped-call]
        yield from ((key, value, timestamp) for key, (value, timestamp) in self._kept.items())

    def read_value(self, key: str) -> Any:
        """The value under a key, and the time; zeros, from now on, where it is new."""
        try:
            return super().read_value(key)  # type: ignore[no-untyped-call]
        except OSError as error:
            return self._keep(key, self._kept.get(key, (0.0, 0.0)), error)

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Writes the value under a key."""
        try:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._keep(key, (value, timestamp), error)
        else:
            self._kept.pop(key, None)

    def _keep(self, key: str, value: tuple[float, float], error: OSError) -> tuple[float, float]:
        if self.complete:
            _log.warning("new counters are not shown: %s: %s", error.strerror, self._fname)
        self._kept[key] = value
        return value

    def _init_value(self, key: str) -> None:
        # No entry is longer than so, and no page is half there.
        os.posix_fallocate(self._f.fileno(), self._used, len(key.encode()) + _MOST_BESIDE_KEY)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def _has_room(path: str) -> bool:
    """Whether there is room for the beginning of a file of counters; if so, it is there.

    It is made under another name: who sums the files may read them at any moment, and cannot read an empty one.
    """
    if os.path.exists(path):
        return True
    fresh = f"{path}.new"
    with open(fresh, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, mmap.PAGESIZE)
            file.truncate(_FIRST_BYTES)
        except OSError as error:
            _log.warning("counters are not shown: %s: %s", error.strerror, path)
            os.unlink(fresh)
            return False
    os.rename(fresh, path)
    return True


def _opened(path: Path) -> CounterFile:
    return CounterFile(str(path))


def _run(key: str) -> str:
    run: str = json.loads(key)[2][RUN_LABEL]
    return run
