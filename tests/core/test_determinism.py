"""The same bits in every process, in every thread, and with the compiler off."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.samples import JIT, digest
from pkpo_core import compilation, kernels


@pytest.mark.parametrize("compiler", ["on", "off"])
def test_another_process_computes_the_same_bits(compiler: str) -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from core.samples import digest; print(digest())"],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "NUMBA_DISABLE_JIT": "1" if compiler == "off" else "0",
            # Without the compiler NumPy adds positions and integers, which before NumPy 2 makes floats of them.
            "NPY_PROMOTION_STATE": "weak",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest()


def test_machine_code_is_kept_only_for_the_sources_it_was_made_of(tmp_path: Path) -> None:
    shutil.copy(inspect.getfile(kernels), tmp_path)
    before = compilation.stamp_of(tmp_path)
    (tmp_path / "order.py").write_text("# a part of kernels of another file")
    assert compilation.stamp_of(tmp_path) != before
    if JIT:
        stamp = kernels.small_gap_advantages._dispatcher._cache._cache_file._source_stamp  # type: ignore[attr-defined]
        assert stamp[1] == compilation.stamp_of(Path(inspect.getfile(kernels)).parent)


def test_many_threads_compute_the_same_bits() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({digest(), *pool.map(lambda _: digest(), range(16))}) == 1


def test_the_first_calls_of_a_process_may_come_from_many_threads() -> None:
    program = """
import threading
import numpy as np
from pkpo_core import transform
together = threading.Barrier(8)
rows = np.arange(12.0).reshape(3, 4)
answers = []
def first():
    together.wait()
    answers.append(transform(rows, 2).advantages.tolist())
threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(answers) == 8 and all(answer == answers[0] for answer in answers)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
