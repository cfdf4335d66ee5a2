"""The counters of training runs, of several processes that share one metrics endpoint.

The library keeps what a process counts in files, so that it outlives the process, and sums these files when they are
read. Nothing can be taken out of them. So what has a run is kept in files of our own, of the library's form: a worker
writes one anew, without the runs that it lets go, and whoever sums them sees to it that no sum falls for that.
"""

from __future__ import annotations

import json
import math
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
        return {_run(key) for key, _, _ in _entries(self._values)}

    def forget(self, runs: Collection[str]) -> None:
        """Takes out all counters of some runs, which must not be counted on."""
        path = self._path.with_suffix(".new")
        path.unlink(missing_ok=True)
        fresh = _opened(path)
        for key, value, _ in _entries(self._values):
            if _run(key) not in runs:
                _write(fresh, key, value)
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
        value: float = self._values.read_value(key)[0]  # type: ignore[no-untyped-call]
        return value

    def write(self, key: str, value: float) -> None:
        """Writes what is counted under a key."""
        _write(self._values, key, value)


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


def _opened(path: Path) -> MmapedDict:
    return MmapedDict(str(path))  # type: ignore[no-untyped-call]


def _entries(values: MmapedDict) -> Iterator[tuple[str, float, float]]:
    entries: Iterator[tuple[str, float, float]] = values.read_all_values()  # type: ignore[no-untyped-call]
    return entries


def _write(values: MmapedDict, key: str, value: float) -> None:
    values.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]


def _run(key: str) -> str:
    run: str = json.loads(key)[2][RUN_LABEL]
    return run
