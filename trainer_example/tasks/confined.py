"""The child of `sandbox.share_passed`: confines itself, then runs a program and its tests. Not to be imported."""

from __future__ import annotations

import builtins
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

from landlock import FSAccess, LandlockError, Ruleset

_SECCOMP_MODE_FILTER, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 2, 22, 38
_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # the audit number, and the column below
# Sockets; programs and processes; signals to and tracing of others; and ways out: limits, mounts, namespaces, keys,
# kernel programs, and io_uring, which this filter does not see into.
_FORBIDDEN = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "bind": (49, 200),
    "listen": (50, 201),
    "connect": (42, 203),
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "mount": (165, 40),
    "umount2": (166, 39),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "memfd_create": (319, 279),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_X32 = 0x40000000  # the other numbers that an x86-64 kernel may answer to


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
    """No network, no other programs or processes."""
    architecture, column = _ARCHITECTURES[platform.machine()]

    def load(offset: int) -> bytes:
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def unless_equal(value: int, skip: int) -> bytes:
        return struct.pack("HBBI", 0x15, 0, skip, value)

    def answer(action: int) -> bytes:
        return struct.pack("HBBI", 0x06, 0, 0, action)

    program = load(4) + unless_equal(architecture, 1) + struct.pack("HBBI", 0x05, 0, 0, 1) + answer(_KILL)
    program += load(0) + struct.pack("HBBI", 0x35, 0, 1, _X32) + answer(_EPERM)  # 0x35: greater or equal
    for numbers in _FORBIDDEN.values():
        if (number := numbers[column]) is not None:
            program += unless_equal(number, 1) + answer(_EPERM)
    program += answer(_ALLOW)
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
    try:
        limit(order["limits"])
        shut_files()
        shut_calls()
    except (LandlockError, OSError, KeyError) as error:
        sys.exit(f"the sandbox needs Linux 5.13 or newer with Landlock and seccomp, on x86-64 or arm64: {error!r}")
    os.write(report, b"ready\n")

    names = {"__name__": "program", "__builtins__": builtins}
    exec(compile(order["program"], "program", "exec"), names)
    signal.signal(signal.SIGALRM, _time_is_up)
    for number, test in enumerate(order["tests"]):
        signal.setitimer(signal.ITIMER_REAL, order["limits"]["test_seconds"])
        with contextlib.suppress(Exception, TestTimeout):
            exec(compile(test, "test", "exec"), dict(names))
            os.write(report, f"{order['nonce']} {number}\n".encode())
        signal.setitimer(signal.ITIMER_REAL, 0)


main()
