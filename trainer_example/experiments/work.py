"""Runs, several at a time, each in a process that lives on for the next; what is done is not done again."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from statistics import fmean

import torch

from pkpo_client import DeadlineExceeded, Unavailable
from trainer_example.configuration import Configuration
from trainer_example.experiments.plan import Run
from trainer_example.experiments.provenance import PROVENANCE
from trainer_example.experiments.results import Result, key_of, result_of, result_path, save_result, switch_of, thinned
from trainer_example.metrics import METRICS_FILE, records
from trainer_example.tasks import Task, task_named
from trainer_example.train import Interrupted, train

ATTEMPTS = 3


def done(run: Run, server: str, folder: Path) -> Result:
    """The result of a run: as it was kept, or made now, from its newest checkpoint or from its first step.

    Args:
        run: one that follows no other, or one whose other is done.
        server: where the pkpo-server is.
        folder: of all runs; the warm starts are in it too, for the runs of the same seed.

    Raises:
        ValueError: a test prompt is among the training prompts, or the demonstrations of the warm start.
        Interrupted: the server is gone, and stays away.
    """
    kept = result_of(run, folder)
    if kept is not None:
        return kept
    key, options = key_of(run, folder), run.options(switch_of(run, folder))
    assert key is not None, f"{run.label} of seed {run.seed} follows a run that is not done"
    task = task_named(options["task"])
    shared = shared_prompts(task)
    if shared:
        raise ValueError(f"task: {options['task']} has {shared} test prompts that are training prompts too")
    run_dir = folder / "under_way" / key
    configuration = Configuration(
        **options,
        server=server,
        run_dir=str(run_dir),
        run_id=key,
        resume=True,
        warm_start_dir=str(folder / "warm_starts"),
    )
    _train_with_patience(configuration)
    everything = records(run_dir / METRICS_FILE)
    trained = [record for record in everything if record["kind"] == "train"]
    norms = [record["gradient_norm"] for record in trained]
    groups = configuration.steps * configuration.prompts_per_step
    result = Result(
        label=run.label,
        seed=run.seed,
        options=options,
        provenance=PROVENANCE,
        seconds=round(sum(record["step_seconds"] for record in trained), 1),
        groups=groups,
        passes=groups / len(task.train),
        gradient_norm=fmean(norms),
        clipped=fmean(norm > configuration.max_grad_norm for norm in norms),
        evaluations=[without_kind(record) for record in everything if record["kind"] == "evaluation"],
        training=thinned(trained),
    )
    save_result(result, result_path(folder, key))
    shutil.rmtree(run_dir)
    return result


def _train_with_patience(configuration: Configuration) -> None:
    """Trains; a computer that slept in the middle of a call finds its deadline passed, and tries again."""
    for attempt in range(ATTEMPTS):
        try:
            train(configuration)
            return
        except (Interrupted, Unavailable, DeadlineExceeded) as error:
            if attempt + 1 == ATTEMPTS:
                raise Interrupted(str(error)) from error


def shared_prompts(task: Task) -> int:
    """How many test prompts are training prompts too; demonstrations are checked as they are shown."""
    trained = {problem.prompt for problem in task.train}
    return sum(problem.prompt in trained for problem in task.test)


def without_kind(record: dict[str, float]) -> dict[str, float]:
    """The figures of a record."""
    return {name: value for name, value in record.items() if name != "kind"}


def do_all(
    runs: Sequence[Run], server: str, folder: Path, processes: int, tell: Callable[[Run, Result, int], None]
) -> None:
    """Does the runs that are not done, in their order, so many at a time.

    Args:
        runs: any; one that follows another waits for it, which must be done or among them.
        server: where the pkpo-server is.
        folder: of all runs.
        processes: with one thread each.
        tell: called with each run that was done, its result, and how many are left.

    Raises:
        Interrupted: the server is gone.
        ValueError: a run follows one that is neither done nor among them.
    """
    left = [run for run in runs if result_of(run, folder) is None]
    for run in left:
        if run.follows is not None and run.follows not in left and result_of(run.follows, folder) is None:
            raise ValueError(
                f"runs: {run.label} of seed {run.seed} follows {run.follows.label}, which is not among them"
            )
    spawn = multiprocessing.get_context("spawn")
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, in each process; bars of several mix
    with ProcessPoolExecutor(processes, spawn, start_as_worker, (os.getpid(),)) as pool:
        under_way: dict[Future[Result], Run] = {}
        try:
            while left or under_way:
                for run in [run for run in left if key_of(run, folder) is not None][: processes - len(under_way)]:
                    left.remove(run)
                    under_way[pool.submit(done, run, server, folder)] = run
                finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in finished:
                    run = under_way.pop(future)
                    tell(run, future.result(), len(left) + len(under_way))
        except BaseException:
            for process in (pool._processes or {}).values():
                process.terminate()  # what they were at goes on from its checkpoint the next time
            raise


def start_as_worker(parent: int) -> None:
    """One thread, and an end when the command that started it ends."""
    torch.set_num_threads(1)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("trainer_example").setLevel(logging.WARNING)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    print("the command that started this run has ended, and so does the run", file=sys.stderr)
    os._exit(1)
