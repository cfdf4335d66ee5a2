"""Programs that misbehave get nothing done, and what they passed before counts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer_example.tasks.sandbox import Limits, SandboxUnavailable, share_passed, shares_passed

# How an attempt fails where the kernel's answer is not what Python raises.
REFUSALS = {
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1')": "OSError",
    "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))": "(PermissionError, ValueError)",
    "bytearray(1 << 30)": "MemoryError",
    "import threading; threading.Thread(target=print).start()": "RuntimeError",
}
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
        "import fcntl; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "import fcntl; fcntl.fcntl(1, 10, 9)",
        "os.chmod('/tmp', 0o777)",
        "os.chown('/tmp', 0, 0)",
        "os.utime('/tmp')",
        "os.setxattr('/tmp', 'user.pkpo', b'1')",
        "os.setuid(os.getuid())",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 1)",
        "os.nice(1)",
        "os.sched_setaffinity(os.getppid(), {0})",
        "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
        "import ctypes; assert ctypes.CDLL(None).sethostname(b'vm', 2) == 0",
        "import ctypes; assert ctypes.CDLL(None).userfaultfd(0) >= 0",
        "os.memfd_create('x')",
        "os.mkfifo('/tmp/pkpo-sandbox-test')",
        "os.symlink('/etc/passwd', '/tmp/pkpo-sandbox-test')",
        "open('/etc/passwd')",
        "open('/proc/self/environ')",
        "import os; os.listdir('/')",
        "open('/tmp/pkpo-sandbox-test', 'w')",
        "os.remove('/tmp/pkpo-sandbox-victim')",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "bytearray(1 << 30)",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_what_is_not_allowed_fails(attempt: str) -> None:
    refusal = "(AssertionError, AttributeError)" if "ctypes" in attempt else REFUSALS.get(attempt, "PermissionError")
    lines = ["import os", "def refused():", "    try:", f"        {attempt}", f"    except {refusal}:",
             "        return True", "    return False"]  # fmt: skip
    victim = Path("/tmp/pkpo-sandbox-victim")
    victim.write_text("")
    try:
        assert share_passed("\n".join(lines), ["assert refused()"]) == 1.0
        assert victim.exists()
    finally:
        victim.unlink()
    assert not Path("/tmp/pkpo-sandbox-test").exists()


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.socket().close()",
        "os.waitpid(os.fork() or os._exit(0), 0)",
        "os.kill(os.getppid(), 0)",
        "open('/etc/passwd').close()",
        "os.listdir('/')",
        "os.utime('.')",
        "os.setuid(os.getuid())",
        "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        "os.close(os.memfd_create('x'))",
    ],
)
def test_the_same_is_possible_outside(attempt: str, tmp_path: Path) -> None:
    """Else the test before this one could not fail."""
    subprocess.run([sys.executable, "-c", f"import fcntl, os, socket\n{attempt}"], cwd=tmp_path, check=True)


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


def test_a_program_that_writes_without_end_is_not_listened_to() -> None:
    flood = """
import os
while True:
    for fd in range(3, 32):
        try: os.write(fd, b'x' * 65536)
        except OSError: pass
"""
    start = time.monotonic()
    assert share_passed(flood, SQUARES, Limits(seconds=60)) == 0.0
    assert time.monotonic() - start < 50


def test_a_program_has_a_module_of_its_own() -> None:
    right = "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\ndef f(x): return A(x).x ** 2"
    assert share_passed(right, SQUARES[:3]) == 1.0
    assert share_passed("def f(x: List[int]): return x * x", SQUARES[:3]) == 0.0
    assert share_passed("import sys\ndef f(x): print('x' * 10**6, file=sys.stderr); return x * x", SQUARES[:3]) == 1.0


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
