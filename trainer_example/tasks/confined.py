"""The child of `sandbox.share_passed`: confines itself, then runs a program and its tests. Not to be imported."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
import types

from landlock import FSAccess, LandlockError, Ruleset

_SECCOMP_MODE_FILTER, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 2, 22, 38
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # the audit number, and the column below
# All that a program may ask of the kernel: to use its memory, its time and what is open, and to open what Landlock
# lets it. No sockets, programs, processes, threads, signals, owners, modes, limits, priorities or shared memory.
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "openat": (257, 56),
    "close": (3, 57),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "arch_prctl": (158, None),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "times": (100, 153),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Of fcntl, what does not send signals or change what others see: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC.
_FCNTL, _FCNTL_COMMANDS = (72, 25), (0, 1, 2, 3, 1030)


def limit(limits: dict[str, float]) -> None:
    """Time and memory; nor may it leave a core."""
    seconds, memory = math.ceil(limits["seconds"]), int(limits["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))


def shut_files() -> None:
    """Python's own may be read, and nothing else be touched."""
    rules = Ruleset()
    folders = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/lib", "/lib", "/lib64"}
    rules.allow(*filter(os.path.isdir, folders), rules=FSAccess.READ_FILE | FSAccess.READ_DIR)
    rules.allow(*filter(os.path.isfile, ["/etc/ld.so.cache"]), rules=FSAccess.READ_FILE)
    rules.apply()


def shut_calls() -> None:
    """Only the calls above reach the kernel; the others fail with EPERM."""
    architecture, column = _ARCHITECTURES[platform.machine()]

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    def load(offset: int) -> bytes:
        return instruction(0x20, offset)

    def where_equal(value: int, action: int) -> bytes:
        return instruction(0x15, value, 0, 1) + instruction(0x06, action)

    program = load(4) + instruction(0x15, architecture, 1, 0) + instruction(0x06, _KILL) + load(0)
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += where_equal(number, _ALLOW)
    commands = load(24) + b"".join(where_equal(command, _ALLOW) for command in _FCNTL_COMMANDS)
    program += instruction(0x15, _FCNTL[column], 0, len(commands) // 8) + commands
    program += instruction(0x06, _EPERM)

    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))):
        if prctl(*arguments, *[0] * (5 - len(arguments))) != 0:
            raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


class TestTimeout(BaseException):
    """A test took too long. Not an Exception: programs that catch those do not catch this."""


def _time_is_up(signum: int, frame: object) -> None:
    raise TestTimeout


def main() -> None:
    report = int(sys.argv[1])
    order = json.load(sys.stdin)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        limit(order["limits"])
        shut_files()
        shut_calls()
    except (LandlockError, OSError, KeyError) as error:
        sys.exit(f"the sandbox needs Linux 5.13 or newer with Landlock and seccomp, on x86-64 or arm64: {error!r}")
    os.write(report, b"ready\n")
    os.dup2(nowhere, 2)

    # A module of its own, where dataclasses and the like look for it; without this file's future imports.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec(compile(order["program"], "program", "exec", dont_inherit=True), module.__dict__)
    signal.signal(signal.SIGALRM, _time_is_up)
    for number, test in enumerate(order["tests"]):
        signal.setitimer(signal.ITIMER_REAL, order["limits"]["test_seconds"])
        with contextlib.suppress(Exception, TestTimeout):
            exec(compile(test, "test", "exec", dont_inherit=True), dict(module.__dict__))
            os.write(report, f"{order['nonce']} {number}\n".encode())
        signal.setitimer(signal.ITIMER_REAL, 0)


main()
