"""Surroundings that are against the server: it serves right answers, or ends soon and says what to do."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numba
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from live_server import SERVER_PYTHON, START_SECONDS, LiveServer, poll
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo.v1 import reward_transform_pb2_grpc as pb_grpc
from pkpo_client import Client, LocalClient
from pkpo_core import compilation, kernels

MIB = 2**20
SERVING = health_pb2.HealthCheckResponse.SERVING
REWARDS = np.random.default_rng(3).normal(size=(64, 16))
# Nobody in /etc/passwd, and may write nowhere. Reading everything finds this interpreter wherever it is.
STRANGER = (
    "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search",
)  # fmt: skip


def need(*commands: str, root: bool = False) -> None:
    for command in commands:
        if shutil.which(command) is None:
            pytest.skip(f"needs {command}")
    if root and os.geteuid() != 0:
        pytest.skip("needs root, to change who the server is and what it sees")


def serves_right(target: str, local: LocalClient, **options: Any) -> bool:
    """Whether a batch is answered over a connection of its own, as it is answered in this process."""
    with Client(target, timeout=60, **options) as client:
        answer = client.transform(REWARDS, k=4)
    return bool(np.array_equal(answer, local.transform(REWARDS, k=4)))


def complaint(*flags: str, within: Sequence[str] = (), env: Mapping[str, str] | None = None, status: int = 1) -> str:
    """What a server that cannot start says, which is one line."""
    command = [*within, SERVER_PYTHON, "-m", "pkpo_server", "--port", "0", "--metrics-port", "0", *flags]
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    return str(json.loads(line)["message"]) if line.startswith("{") else line


def own_health(address: str) -> Any:
    """What is answered over a connection of its own: the status, or the code of a failure."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status
        except grpc.RpcError as error:
            return error.code()


def busy(process: psutil.Process, seconds: float = 1.0) -> float:
    """What share of a processor a process takes."""
    before, started = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - started)


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    need("mount", "umount", root=True)
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True)
    if made.returncode:
        pytest.skip("needs a kernel that lets root mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(folder: Path, left: int = 0) -> Path:
    """Takes all the room there is but for some bytes."""
    path = folder / "full"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(file.tell() - left)
    return path


# --- where compiled kernels are kept ----------------------------------------------------------------------------------


def kept_kernels(folder: Path, but: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a server that finds in a folder what is compiled for this process, but for some kernels."""
    if numba.config.DISABLE_JIT:
        pytest.skip("needs the compiler")
    LocalClient().close()
    kernel: Any = kernels.small_gap_advantages
    found = Path(kernel._dispatcher._cache._cache_path)
    kept = folder / compilation._Locator.get_suitable_cache_subpath(kernels.__file__)
    kept.mkdir(parents=True)
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    for index in found.glob(f"*.{version}.nbi"):
        # Those of former sources, too, are there.
        if compilation._read(str(index)) is not None and not index.name.startswith(tuple(but)):
            for path in (index, *found.glob(f"{index.stem}.*.nbc")):
                shutil.copy(path, kept)
    return {"NUMBA_CACHE_DIR": str(folder)}


CHEAP = ("kernels.raise_statuses", "advantages._number_of_0_and_1", "groups._number_within")


def test_a_kernel_cache_without_room_is_said_and_serves(tmp_path: Path, local: LocalClient) -> None:
    """It fills up in the middle: of what is missing, one kernel fits."""
    with small_disk(tmp_path / "disk", 16 * MIB) as disk:
        env = kept_kernels(disk, CHEAP)
        fill(disk, left=16 * 2**10)
        with LiveServer(env=env) as server:
            assert serves_right(server.address, local)
            (line,) = [line for line in server.log_lines("warning") if "not kept" in line["message"]]
        assert line["category"] == "RuntimeWarning"
        assert "No space left on device" in line["message"]
        assert str(disk) in line["message"]
        assert not list(disk.rglob("*.tmp.*"))


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "cut": content[:middle],
        "empty": b"",
        "garbled": content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :],
        "text": b"No such file\n" * 100,
    }
    path.write_bytes(changed[how])


def test_a_damaged_kernel_cache_is_compiled_anew_and_mended(tmp_path: Path, local: LocalClient) -> None:
    """Machine code in which one bit is wrong would crash, or answer wrongly."""
    env = kept_kernels(tmp_path)

    def files(kernel: str, end: str) -> list[Path]:
        return sorted(tmp_path.rglob(f"{kernel}-*.{end}"))

    damage = zip(
        [*files(CHEAP[0], "nbi"), *files(CHEAP[1], "nbi"), *files(CHEAP[1], "nbc"), *files("weights._descend", "nbc")],
        ["cut", "text", "garbled", "garbled"],
        strict=False,
    )
    hurt = [path for path, how in damage if damaged(path, how) is None]
    # What another kernel was compiled to: whole, and not what the index says that it is.
    strange = files(CHEAP[2], "nbc")[0]
    shutil.copy(files("weights._sum_from_top", "nbc")[0], strange)
    hurt.append(strange)
    before = {path: path.read_bytes() for path in hurt}
    with LiveServer(env=env) as server:
        assert serves_right(server.address, local)
        assert [line["event"] for line in server.log_lines()] == ["metrics", "listening", "compiling", "serving"]
    assert all(compilation._read(str(path)) is not None for path in hurt)
    assert all(path.read_bytes() != before[path] for path in hurt)


# --- who the server is, and what it sees ------------------------------------------------------------------------------


def test_a_stranger_without_a_home_and_with_signals_held_back(tmp_path: Path, local: LocalClient) -> None:
    """No entry in /etc/passwd, no home, no locale, no stdin; another's kernel cache; every signal blocked."""
    need("setpriv", "env", "sh", root=True)
    env = kept_kernels(tmp_path / "kernels", CHEAP[2:])
    env |= {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "LC_ALL": "C", "LANG": ""}
    within = (
        "env",
        "-u",
        "USER",
        "--block-signal",
        "--ignore-signal=CHLD",
        *STRANGER,
        "sh",
        "-c",
        'exec "$@" <&-',
        "sh",
    )
    with LiveServer("--workers", "2", env=env, within=within) as server:
        assert serves_right(server.address, local)
        assert any("is read-only" in line["message"] for line in server.log_lines("warning"))
        os.kill(server.log_lines("worker_serving")[0]["pid"], signal.SIGKILL)
        poll(lambda: len(server.log_lines("worker_serving")) == 3, "another worker", 60)
        assert server.log_lines("worker_died")[0]["status"] == -signal.SIGKILL
        assert serves_right(server.address, local)
        assert server.stop() == 0


READ_ONLY = """
for place in "$0" / /tmp /var/tmp /dev/shm "$PWD"; do
  [ "$place" = / ] || mount --bind "$place" "$place" || exit 77
  mount -o remount,bind,ro "$place" || exit 77
done
exec "$@"
"""


def test_a_read_only_file_system(tmp_path: Path, local: LocalClient) -> None:
    need("unshare", "mount", root=True)
    env = {**kept_kernels(tmp_path), "TMPDIR": str(tmp_path)}
    within = ("unshare", "--mount", "sh", "-c", READ_ONLY, str(tmp_path))
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("needs a kernel that lets root mount")
    with LiveServer(env=env, within=within) as server:
        assert serves_right(server.address, local)
        assert [line["event"] for line in server.log_lines()] == ["metrics", "listening", "serving"]
    said = complaint("--workers", "2", within=within, env=env, status=2)
    assert said.startswith("pkpo-server: TMPDIR: No usable temporary directory found")


@pytest.mark.parametrize(("files", "flags"), [(8, ()), (32, ()), (53, ("--workers", "3"))])
def test_too_few_files_are_said(files: int, flags: Sequence[str]) -> None:
    need("prlimit")
    said = complaint(*flags, within=("prlimit", f"--nofile={files}:{files}"))
    assert said == f"the limit of open files is {files}; must be at least {50 if not flags else 54} (ulimit -n)"


def test_more_files_are_asked_for_where_they_may_be(server: LiveServer) -> None:
    with LiveServer(within=("sh", "-c", 'ulimit -S -n 32; exec "$@"', "sh"), wait=False) as low:
        poll(lambda: low.log_lines("listening"), "start")
        assert resource.prlimit(low.process.pid, resource.RLIMIT_NOFILE)[0] >= 1024


def test_too_little_virtual_memory_is_said() -> None:
    need("prlimit")
    said = complaint(within=("prlimit", f"--as={400 * MIB}"))
    assert said == "the limit of virtual memory is 419430400 bytes; must be at least 1342177280 (ulimit -v)"


@pytest.mark.parametrize("tasks", [1, 12])
def test_too_few_threads_are_said(tasks: int) -> None:
    need("prlimit", "setpriv", root=True)  # whom no such limit holds
    said = complaint(within=("prlimit", f"--nproc={tasks}:{tasks}", *STRANGER))
    assert said.startswith(f"{tasks - 1} threads can be started; must be at least ")


def test_a_full_folder_of_counters(tmp_path: Path, local: LocalClient) -> None:
    """The library would write where there is no room, and the system kill the worker for it, again and again."""
    runs = [f"run-{i}" for i in range(8)]
    with small_disk(tmp_path / "disk", 8 * MIB) as disk:
        with LiveServer("--workers", "2", "--max-run-ids", "32", env={"TMPDIR": str(disk)}) as server:

            def serve_runs() -> None:
                # Each over a connection of its own, which either worker takes; of so many, some need another page.
                assert all(serves_right(server.address, local, run_id=run) for run in runs)

            full = fill(disk)
            serve_runs()
            os.kill(server.log_lines("worker_serving")[0]["pid"], signal.SIGKILL)
            poll(lambda: len(server.log_lines("worker_serving")) == 3, "another worker", 60)
            serve_runs()
            assert server.metrics()["pkpo_worker_restarts_total"] == 1
            assert any("counters are not shown: No space left" in str(line) for line in server.log_lines())
            full.unlink()

            def all_shown() -> bool:
                serve_runs()
                shown = server.metrics()
                return all(shown.get(f'pkpo_groups_total{{run="{run}",variant="SLOO_MINUS_ONE"}}') for run in runs)

            poll(all_shown, "counters of all runs")
            assert server.stop() == 0
            assert len(server.log_lines("worker_died")) == 1
        assert list(disk.iterdir()) == []


# --- a log that nobody takes ------------------------------------------------------------------------------------------


@contextmanager
def logging_to(stderr: int | None, folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A server with this stderr, or without one, and where it serves."""
    target = f"unix:{folder / 'pkpo.sock'}"
    command = [SERVER_PYTHON, "-m", "pkpo_server", "--unix-socket", target[5:], "--metrics-port", "0"]
    if stderr is None:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr) as process:
        try:
            poll(lambda: process.poll() is not None or own_health(target) == SERVING, "SERVING", START_SECONDS)
            assert process.poll() is None
            yield psutil.Process(process.pid), target
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def be_refused(target: str, times: int) -> None:
    """As often as that, each a line of the log."""
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.RewardTransformServiceStub(channel)
        for _ in range(times):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Transform(pb.TransformRequest(), timeout=60)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_log_on_a_full_disk(tmp_path: Path, local: LocalClient) -> None:
    with open("/dev/full", "wb") as full, logging_to(full.fileno(), tmp_path) as (process, target):
        be_refused(target, 20)
        assert serves_right(target, local)
        assert busy(process) < 0.1


def test_no_stderr(tmp_path: Path, local: LocalClient) -> None:
    """Its number would be that of the first file or connection, which the log would then go to."""
    with logging_to(None, tmp_path) as (process, target):
        be_refused(target, 20)
        assert serves_right(target, local)
        assert os.readlink(f"/proc/{process.pid}/fd/2") == os.devnull


def test_a_log_that_is_not_read_and_one_whose_reader_is_gone(tmp_path: Path, local: LocalClient) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with logging_to(write, tmp_path) as (process, target):
        os.close(write)
        be_refused(target, 20)
        assert serves_right(target, local)
        log = os.read(read, 65536).splitlines()
        assert all(json.loads(line)["event"] for line in log)

        def told() -> Any:
            be_refused(target, 1)
            if not select.select([read], [], [], 0)[0]:
                return None
            return [line for line in os.read(read, 65536).splitlines() if json.loads(line)["event"] == "lost"]

        (lost,) = poll(told, "what was lost")
        assert json.loads(lost)["lines"] > 0
        os.close(read)
        be_refused(target, 20)
        assert serves_right(target, local)
        assert busy(process) < 0.1


# --- one processor, few files, little memory --------------------------------------------------------------------------

FILES = 64


@pytest.fixture(scope="module")
def poor() -> Iterator[LiveServer]:
    need("prlimit", "taskset")
    processor = min(os.sched_getaffinity(0))
    within = ("prlimit", f"--nofile={FILES}:{FILES}", "taskset", "--cpu-list", str(processor))
    with LiveServer("--health-port", "0", within=within) as live:
        yield live


def test_one_processor_has_one_thread(poor: LiveServer, local: LocalClient) -> None:
    assert poor.metrics()["pkpo_threads"] == 1
    assert serves_right(poor.address, local)
    rewards = np.random.default_rng(4).normal(size=(2**14, 16))
    with Client(poor.address, timeout=60) as client:
        answers = [client.transform(rewards, k=4) for _ in range(3)]
    assert all(np.array_equal(answer, local.transform(rewards, k=4)) for answer in answers)


def connected(address: str, times: int) -> list[socket.socket]:
    """Connections on which nothing is said, as many as there is room for."""
    host, _, port = address.rpartition(":")
    made = [socket.socket() for _ in range(times)]
    for each in made:
        each.setblocking(False)
        each.connect_ex((host, int(port)))
    return made


def test_connections_that_take_all_files(poor: LiveServer, local: LocalClient) -> None:
    process = psutil.Process(poor.process.pid)
    health = poor.log_lines("health")[0]["address"]
    want = local.transform(REWARDS, k=4)
    poor_connections = poor.log_lines("serving")[0]["connections"]
    assert 0 < poor_connections < FILES
    with Client(poor.address, timeout=60) as client:
        assert np.array_equal(client.transform(REWARDS, k=4), want)
        crowd = connected(poor.address, FILES)
        try:
            # Callers leave files for whoever looks after the server.
            poll(lambda: own_health(poor.address) is grpc.StatusCode.UNAVAILABLE, "a refused connection")
            assert own_health(health) == SERVING
            assert poor.metrics()["pkpo_threads"] == 1
            crowd += connected(health, FILES)
            poll(lambda: own_health(health) is grpc.StatusCode.UNAVAILABLE, "a refused probe")
            assert poor.metrics()["pkpo_threads"] == 1

            def all_taken() -> bool:
                # A few at a time: no more wait to be taken.
                crowd.extend(connected(poor.metrics_address, 4))
                return process.num_fds() == FILES

            poll(all_taken, "no more files")
            (line,) = poll(lambda: poor.log_lines("few_files"), "a warning")
            assert (line["level"], line["limit"], line["connections"]) == ("warning", FILES, poor_connections)
            crowd += connected(poor.metrics_address, 4)
            assert busy(process) < 0.1
            assert np.array_equal(client.transform(REWARDS, k=4), want)
        finally:
            for each in crowd:
                each.close()
        poll(lambda: own_health(poor.address) == SERVING, "room for callers")
        poll(lambda: own_health(health) == SERVING, "room for probes")
        assert poor.metrics()["pkpo_threads"] == 1
        assert np.array_equal(client.transform(REWARDS, k=4), want)
    assert not poor.log_lines("failed")


def of_rewards(count: int, k: int = 4) -> pb.TransformRequest:
    request = pb.TransformRequest(k=[k], groups=pb.RewardGroups(group_size=16))
    request.groups.f64.values.extend(np.random.default_rng(5).random(count))
    return request


BIG = 2**22  # 32 MiB of rewards
OPTIONS = (("grpc.max_receive_message_length", 64 * MIB), ("grpc.use_local_subchannel_pool", 1))


def test_a_batch_for_which_there_is_no_memory_is_refused_alone(poor: LiveServer, local: LocalClient) -> None:
    pid = poor.process.pid
    big, small = of_rewards(BIG), of_rewards(64)
    with grpc.insecure_channel(poor.address, options=OPTIONS) as channel:
        stub = pb_grpc.RewardTransformServiceStub(channel)
        answer = stub.Transform(small, timeout=60)
        _, most = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + 40 * MIB, most))
        try:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Transform(big, timeout=60)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "memory" in caught.value.details()
            assert stub.Transform(small, timeout=60) == answer
            assert serves_right(poor.address, local)
        finally:
            resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        assert len(stub.Transform(big, timeout=60).f64.values) == BIG


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_refused_is_not_kept(poor: LiveServer, broken: bool) -> None:
    """An error and the frames it passed keep each other, and with them kept what they were about."""
    process = psutil.Process(poor.process.pid)
    raw = of_rewards(BIG, k=99).SerializeToString()
    with grpc.insecure_channel(poor.address, options=OPTIONS) as channel:
        call = channel.unary_unary("/pkpo.v1.RewardTransformService/Transform")
        largest: list[int] = []
        for _ in range(6):
            with pytest.raises(grpc.RpcError) as caught:
                call(raw[:-20] if broken else raw, timeout=60)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            largest.append(process.memory_info().rss)
    assert max(largest) < min(largest) + 3 * 32 * MIB


# --- a clock that jumps -----------------------------------------------------------------------------------------------


def fake_clock() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("needs libfaketime")
    return str(found[0])


def is_known(server: LiveServer, token: str) -> bool:
    """Whether calls with a token are answered. Raises RpcError where they are refused for anything else."""
    with grpc.insecure_channel(server.address) as channel:
        call = pb_grpc.RewardTransformServiceStub(channel).Transform
        done = call.future(of_rewards(64), timeout=20, metadata=[("authorization", f"Bearer {token}")])
        if done.code() is grpc.StatusCode.UNAUTHENTICATED:
            return False
        return len(done.result().f64.values) == 64


def test_a_clock_that_jumps(tmp_path: Path, local: LocalClient) -> None:
    """Hours ahead, and hours back: only the log's times and those of certificates go by the clock on the wall."""
    clock, tokens = tmp_path / "clock", tmp_path / "tokens"
    clock.write_text("+0")
    tokens.write_text("a-token-of-some-length\n")
    env = {
        "LD_PRELOAD": fake_clock(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    request = of_rewards(64)
    with LiveServer("--run-idle-seconds", "3600", "--tokens", str(tokens), env=env) as server:
        assert serves_right(server.address, local, token="a-token-of-some-length", run_id="jumping")
        poll(lambda: server.metrics()["pkpo_runs"] == 1, "a run")
        for jump, token in (("+9h", "the-next-token-of-them"), ("-9h", "and-yet-another-token")):
            clock.write_text(jump)
            tokens.write_text(f"{token}\n")
            poll(lambda token=token: is_known(server, token), "the new token")
            assert serves_right(server.address, local, token=token, run_id="jumping")
            # Lines beyond the bound are counted when their second is over, by whatever clock.
            suppressed = len(server.log_lines("suppressed"))
            with grpc.insecure_channel(server.address) as channel:
                stub = pb_grpc.RewardTransformServiceStub(channel)
                for _ in range(30):
                    with pytest.raises(grpc.RpcError):
                        stub.Transform(request, timeout=60)
            poll(lambda before=suppressed: len(server.log_lines("suppressed")) > before, "lines again")
            assert server.metrics()["pkpo_runs"] == 1
        hours = {line["timestamp"][:13] for line in server.log_lines("tokens_changed")}
        assert len(hours) == 2  # the clock did jump
        assert server.stop() == 0
        assert server.log_lines("stopped")[0]["seconds"] < 30
