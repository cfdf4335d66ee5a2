"""Programs that misbehave get nothing done, and what they passed before counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from trainer_example.tasks.sandbox import Limits, SandboxUnavailable, share_passed, shares_passed

SQUARES = ["assert f(2) == 4", "assert f(3) == 9", "assert f(4) == 16", "assert f(5) == 26"]


def test_the_share_of_tests_is_the_reward() -> None:
    assert share_passed("def f(x): return x * x", SQUARES) == 0.75
    assert share_passed("def f(x): return 4", SQUARES) == 0.25
    assert share_passed("def f(x) return x", SQUARES) == 0.0


def test_what_programs_usually_import_is_there() -> None:
    program = (
        "import math, re, heapq, hashlib, collections, decimal, random\ndef f(x): return hashlib.md5(b'x') and x * x"
    )
    assert share_passed(program, SQUARES[:3]) == 1.0


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 22))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 0)",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "import os; os.listdir('/')",
        "open('/tmp/pkpo-sandbox-test', 'w')",
        "import os; os.remove('/tmp/pkpo-sandbox-test')",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "bytearray(1 << 30)",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_what_is_not_allowed_fails(attempt: str) -> None:
    # The test passes only if the attempt raises what a refusal looks like.
    refused = "(PermissionError, OSError, MemoryError, RuntimeError, ValueError, AssertionError)"
    program = (
        f"def refused():\n    try:\n        {attempt}\n    except {refused}:\n        return True\n    return False\n"
    )
    assert share_passed(program, ["assert refused()"]) == 1.0
    assert not Path("/tmp/pkpo-sandbox-test").exists()


def test_the_attempts_are_possible_outside() -> None:
    """Else the test before this one could not fail."""
    (Path("/tmp") / f"pkpo-sandbox-{os.getpid()}").write_text("")
    (Path("/tmp") / f"pkpo-sandbox-{os.getpid()}").unlink()
    assert Path("/etc/passwd").read_text()


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("def f(x):\n    while x == 3: pass\n    return x * x", 0.5),
        ("def f(x):\n    import os\n    if x == 3: os._exit(0)\n    return x * x", 0.25),
        ("def f(x):\n    import ctypes\n    if x == 3: ctypes.string_at(0)\n    return x * x", 0.25),
        ("def f(x):\n    if x == 3: raise SystemExit(0)\n    return x * x", 0.25),
        ("def f(x):\n    if x == 3: return f(x)\n    return x * x", 0.5),
        ("while True: pass", 0.0),
        ("import sys; sys.exit(0)", 0.0),
        ("print('x' * 10**7)\ndef f(x): return x * x", 0.75),
    ],
)
def test_tests_behind_one_that_hangs_or_ends_it_all_fail_or_go_on(program: str, passed: float) -> None:
    start = time.monotonic()
    assert share_passed(program, SQUARES, Limits(seconds=4, test_seconds=1)) == passed
    assert time.monotonic() - start < 60


def test_a_program_that_catches_everything_ends_with_its_time() -> None:
    stubborn = """
def f(x):
    while x > 2:
        try:
            while True: pass
        except BaseException: pass
    return x * x
"""
    start = time.monotonic()
    assert share_passed(stubborn, SQUARES, Limits(seconds=2, test_seconds=0.5)) == 0.25
    assert time.monotonic() - start < 60


def test_lines_that_a_program_makes_up_do_not_count() -> None:
    forged = (
        "import os\nfor fd in range(32):\n    try: os.write(fd, b'ready\\n0\\n1\\n2\\n3\\n')\n    except OSError: pass"
    )
    assert share_passed(forged, SQUARES) == 0.0


def test_many_run_side_by_side() -> None:
    right, wrong = ("def f(x): return x * x", SQUARES[:3]), ("def f(x): return x", SQUARES[:3])
    assert shares_passed([right, wrong] * 8) == [1.0, 0.0] * 8


def test_where_nothing_can_be_confined_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "confined.py"
    broken.write_text("import sys; sys.exit('the sandbox needs a kernel')")
    monkeypatch.setattr("trainer_example.tasks.sandbox.CONFINED", broken)
    with pytest.raises(SandboxUnavailable, match="needs a kernel"):
        share_passed("def f(x): return x * x", SQUARES)
