"""Where figures go: a JSONL file, Prometheus, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from torch.utils.tensorboard import SummaryWriter

from trainer_example.configuration import Configuration

METRICS_FILE = "metrics.jsonl"
STAGES = ("sampling", "reward", "service", "update")


class Stopwatch:
    """How long each stage of a step takes, in seconds; the accelerator's queue is waited for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Adds to a stage what the block takes."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def figures(self) -> dict[str, float]:
        """The stages, all of them together, and on a GPU the most memory that was in use so far."""
        stages = {f"{stage}_seconds": seconds for stage, seconds in self.seconds.items()}
        stages["step_seconds"] = sum(self.seconds.values())
        if torch.cuda.is_available():
            stages["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated())
        return stages


class Metrics(AbstractContextManager["Metrics"]):
    """The figures of a run, by training step.

    Each record is a line of `metrics.jsonl`: {"step": ..., "kind": "train" or "evaluation", and the figures}.

    Args:
        configuration: where they go, and as which run.
        from_step: the steps done; records of later ones are of a life that was not kept, and go.
        written: whether this is the process that writes and serves them; in others records go nowhere.
    """

    def __init__(self, configuration: Configuration, from_step: int, written: bool) -> None:
        run_dir = Path(configuration.run_dir)
        self._run = configuration.name
        self._file = _opened(run_dir / METRICS_FILE, from_step) if written else None
        boarded = written and configuration.tensorboard
        self._board = SummaryWriter(f"{run_dir}/tensorboard", purge_step=from_step + 1) if boarded else None
        self._registry = registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._seconds = Counter("pkpo_trainer_stage_seconds", "Time spent in each stage of the steps.",
                                ["run", "stage"], registry=registry)  # fmt: skip
        self._steps = Counter("pkpo_trainer_steps", "Training steps done.", ["run"], registry=registry)
        self._answers = Counter("pkpo_trainer_answers", "Answers sampled to train on.", ["run"], registry=registry)
        self._server = None
        if written and configuration.metrics_port >= 0:
            where = configuration.metrics_port, configuration.metrics_host
            try:
                self._server = start_http_server(*where, registry)
            except OSError as error:
                raise ValueError(f"metrics_port, metrics_host: cannot serve metrics at {where}: {error}") from error
        self.port = self._server[0].server_port if self._server else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._server is not None:
            self._server[0].shutdown()
            self._server[0].server_close()

    def record(self, step: int, kind: str, figures: Mapping[str, float]) -> None:
        """Writes figures down everywhere."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "kind": kind, **figures}) + "\n")
        for name, value in figures.items():
            self._gauge(kind, name).set(value)
            if self._board is not None:
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def _gauge(self, kind: str, name: str) -> Gauge:
        """pass@8 of an evaluation is pkpo_trainer_evaluation_pass{run="...", k="8"}."""
        figure, _, k = name.partition("@")
        metric = f"pkpo_trainer_{kind}_{figure}"
        if metric not in self._gauges:
            text = f"{figure} of the newest {'training step' if kind == 'train' else kind}."
            self._gauges[metric] = Gauge(metric, text, ["run", "k"], registry=self._registry)
        return self._gauges[metric].labels(self._run, k)

    def count_step(self, answers: int, seconds: Mapping[str, float]) -> None:
        """Counts a training step, its answers and the time each stage took."""
        self._steps.labels(self._run).inc()
        self._answers.labels(self._run).inc(answers)
        for stage, time_spent in seconds.items():
            self._seconds.labels(self._run, stage).inc(time_spent)


def _opened(path: Path, from_step: int) -> TextIO:
    """The file of metrics, to go on behind the records that are kept: an evaluation of this step comes again."""
    kept = [r for r in records(path) if r["step"] < from_step or (r["step"] == from_step and r["kind"] == "train")]
    path.parent.mkdir(parents=True, exist_ok=True)
    rewritten = path.with_suffix(".rewritten")
    rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept))
    rewritten.replace(path)
    return path.open("a", buffering=1)


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, and none where there is no such file; a last line cut short does not count."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
