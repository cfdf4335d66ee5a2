"""How long a server takes to serve, against importing what it cannot do without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.measurement import Effort, in_turns
from benchmarks.table import Bar, Result


def results(effort: Effort) -> Iterator[Result]:
    """The row of the table about starting."""
    bar = Bar("start of pkpo-server to SERVING, warm kernel cache", 'python -c "import grpc, numba"', 1.5)
    ratio = in_turns([_serve_once], [_import_once], effort.of(15), 1)
    yield Result(bar, ratio, f"{ratio.ours:.2f} s of {ratio.floor:.2f}")


def _import_once() -> None:
    subprocess.run([sys.executable, "-c", "import grpc, numba"], check=True)


def _serve_once() -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "pkpo_server", "--port", "0", "--metrics-port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert started.stderr is not None
    for line in started.stderr:
        if '"serving"' in line:
            break
    else:
        raise RuntimeError("the server ended before it served")
    # Ending it is not part of what is measured, nor is it waited for.
    started.kill()
    started.stderr.close()
    started.wait()
