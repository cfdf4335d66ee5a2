"""`fallback="local"`: an outage does not stop training, is said once, and ends by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from live_identity import TOKEN, asking_server
from live_server import poll
from pkpo_client import AsyncClient, Client, DeadlineExceeded, LocalClient, Unavailable, Unreachable, outage
from pkpo_client.identity import IdentityFiles
from pkpo_client.local_engine import LocalEngine
from pkpo_client.outage import Outage
from pkpo_core import compilation

ROWS = np.random.default_rng(5).random((4, 8))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "pkpo_client"]


@pytest.fixture(autouse=True)
def _capture(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pkpo_client")


def test_a_client_computes_here_while_the_service_is_away_and_returns_to_it(
    restartable: Any, local: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    want = local.transform(ROWS, 4)
    with Client(restartable.address, fallback="local", timeout=1) as client:
        np.testing.assert_array_equal(client.transform(ROWS, 4), want)
        for outage in (1, 2):
            restartable.kill()
            np.testing.assert_array_equal(client.transform(ROWS, 4), want)
            # One outage is waited for once: many calls take less than one timeout.
            started = time.monotonic()
            for _ in range(20):
                np.testing.assert_array_equal(client.transform(ROWS, 4), want)
            np.testing.assert_array_equal(client.estimate(ROWS, 4)[0].values, local.estimate(ROWS, 4)[0].values)
            assert time.monotonic() - started < 20 * 1
            assert sum("cannot be reached" in each for each in said(caplog)) == outage
            with pytest.raises(Unavailable):
                client.server_info()
            restartable.start()

            def back(outage: int = outage) -> bool:
                np.testing.assert_array_equal(client.transform(ROWS, 4), want)
                return sum("is back after" in each for each in said(caplog)) == outage

            poll(back, "return to the service")
    assert restartable.address in said(caplog)[0]
    assert len(said(caplog)) == 4


def test_an_asynchronous_client_does_too(
    restartable: Any, local: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    want = local.transform(ROWS, 4)

    async def main() -> None:
        async with AsyncClient(restartable.address, fallback="local", timeout=1) as client:
            np.testing.assert_array_equal(await client.transform(ROWS, 4), want)
            restartable.kill()
            for _ in range(20):
                np.testing.assert_array_equal(await client.transform(ROWS, 4), want)
            await asyncio.to_thread(restartable.start)
            while not any("is back after" in each for each in said(caplog)):
                np.testing.assert_array_equal(await client.transform(ROWS, 4), want)
                await asyncio.sleep(0.01)
            restartable.kill()
            await client.transform(ROWS, 4)  # and leave in the middle of an outage

    asyncio.run(asyncio.wait_for(main(), 60))
    assert ["cannot" in each for each in said(caplog)] == [True, False, True]


def test_streams_do_too(flavour: Any, restartable: Any, local: LocalClient, caplog: pytest.LogCaptureFixture) -> None:
    given = [ROWS * (i + 1) for i in range(60)]

    def through_an_outage() -> Iterator[Any]:
        for i, rows in enumerate(given):
            if i == 20:
                restartable.kill()
            if i == 40:
                restartable.start()
            yield rows

    results = flavour.stream(restartable.address, through_an_outage(), 4, of_client={"fallback": "local", "timeout": 1})
    for result, rows in zip(results, given, strict=True):
        np.testing.assert_array_equal(result.advantages, local.transform(rows, 4))
    assert "cannot be reached" in said(caplog)[0]


def test_a_stream_finds_an_outage_out_by_itself_long_before_its_time_is_up(
    flavour: Any, restartable: Any, local: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    def through_an_outage() -> Iterator[Any]:
        yield ROWS
        restartable.kill()
        yield from [ROWS * 2] * 3

    gave = flavour.stream(
        restartable.address, through_an_outage(), 4, in_flight=1, timeout=600, of_client={"fallback": "local"}
    )
    for result, rows in zip(gave, [ROWS] + [ROWS * 2] * 3, strict=True):
        np.testing.assert_array_equal(result.advantages, local.transform(rows, 4))
    assert ["cannot be reached" in each for each in said(caplog)] == [True]
    restartable.start()


def test_an_outage_found_out_by_another_call_holds_for_streams_too(proxy: Any, local: LocalClient) -> None:
    """The stream's own call hangs; it is given up as soon as the client knows better."""

    def hanging(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for answer in proxy.pass_on(requests, context):
            yield answer
            threading.Event().wait(5)

    proxy.stream = hanging
    with Client(proxy.address, fallback="local", timeout=60) as client:

        def batches() -> Iterator[Any]:
            for i in range(10):
                if i == 4:
                    client._outage.begin(0.0, "")
                yield ROWS * (i + 1)

        stream = client.stream(batches(), 4, in_flight=4)
        for i, result in enumerate(stream):
            np.testing.assert_array_equal(result.advantages, local.transform(ROWS * (i + 1), 4))


def test_a_service_that_was_never_there(flavour: Any, local: LocalClient) -> None:
    rows = np.random.default_rng(2).random((9, 4))
    found = flavour.call("127.0.0.1:9", "transform", rows, 2, of_client={"fallback": "local", "timeout": 0.3})
    np.testing.assert_array_equal(found, local.transform(rows, 2))
    streamed = flavour.stream("127.0.0.1:9", [rows] * 3, 2, of_client={"fallback": "local", "timeout": 0.3})
    for each in streamed:
        np.testing.assert_array_equal(each.advantages, found)


def test_a_service_that_says_unavailable_until_the_retries_are_used_up(
    flavour: Any, proxy: Any, local: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(context: Any) -> Any:
        # Pushback that forbids retries, so that the test need not sit them out.
        context.set_trailing_metadata([("grpc-retry-pushback-ms", "-1")])
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    proxy.faults["Transform"] = deque([unavailable] * 2)
    with pytest.raises(Unavailable, match="draining"):
        flavour.call(proxy.address, "transform", ROWS, 4)
    found = flavour.call(proxy.address, "transform", ROWS, 4, of_client={"fallback": "local"})
    np.testing.assert_array_equal(found, local.transform(ROWS, 4))
    assert "cannot be reached" in said(caplog)[0]


def test_what_the_service_refuses_is_not_computed_here_instead(
    flavour: Any, proxy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.faults["Transform"] = deque([lambda context: context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")])
    with pytest.raises(Exception, match="no"):
        flavour.call(proxy.address, "transform", ROWS, 4, of_client={"fallback": "local"})
    with pytest.raises(ValueError, match="k"):
        flavour.call(proxy.address, "transform", ROWS, 99, of_client={"fallback": "local"})
    assert said(caplog) == []


def test_a_connected_service_that_does_not_answer_is_no_outage(
    flavour: Any, proxy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.faults["Transform"] = deque([lambda context: time.sleep(1.5)])
    with pytest.raises(DeadlineExceeded, match=r"did not answer within (0\.9|1\.\d) s") as caught:
        flavour.call(proxy.address, "transform", ROWS, 4, timeout=1, of_client={"fallback": "local"})
    assert not isinstance(caught.value, Unavailable)
    assert said(caplog) == []


def test_without_a_fallback_the_error_says_where_how_long_and_what_to_do(flavour: Any) -> None:
    with pytest.raises(Unreachable) as caught:
        flavour.call("127.0.0.1:9", "transform", ROWS, 4, timeout=0.5)
    for word in ("127.0.0.1:9", "0.5 s", "pkpo-server", "fallback='local'"):
        assert word in str(caught.value)
    assert isinstance(caught.value, (Unavailable, DeadlineExceeded, ConnectionError, TimeoutError))
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    (gave,) = flavour.stream("127.0.0.1:9", [ROWS], 4, timeout=0.5)
    assert isinstance(gave, Unreachable)


def test_a_connection_that_fails_is_an_error_that_says_how(
    flavour: Any, local: LocalClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And so is the warning of a client that computes here instead: nothing else says that it lacks its credentials."""
    with asking_server(tmp_path) as (address, files):
        authority = grpc.ssl_channel_credentials(Path(files["ca_file"]).read_bytes())
        elsewhere = IdentityFiles(**{**files, "token_file": ""}).credentials()
        flavour.call(address, "server_info", timeout=120, of_client={"credentials": elsewhere, "token": TOKEN})
        causes = {
            "plaintext": (address, {}),
            "no certificate": (address, {"credentials": authority}),
            "another name": (address.replace("localhost", "127.0.0.1"), {"credentials": elsewhere}),
            "nobody": ("127.0.0.1:9", {}),
        }
        errors = {}
        for cause, (where, of_client) in causes.items():
            with pytest.raises(Unreachable) as caught:
                flavour.call(where, "transform", ROWS, 4, timeout=1.0, of_client=of_client)
            errors[cause] = str(caught.value)
            (gave,) = flavour.stream(where, [ROWS], 4, timeout=1.0, of_client=of_client)
            assert isinstance(gave, Unreachable)
            assert "last error: " in errors[cause]
            assert "last error: " in str(gave)
        where, of_client = causes["no certificate"]
        of_client["fallback"] = "local"
        result = flavour.call(where, "transform", ROWS, 4, of_client=of_client)
        (gave,) = flavour.stream(where, [ROWS], 4, of_client=of_client)
        for advantages in result, gave.advantages:
            np.testing.assert_array_equal(advantages, local.transform(ROWS, 4))
        assert ["last error: " in each for each in said(caplog)] == [True, True], said(caplog)
    assert "refused" in errors["nobody"]


def test_a_service_that_says_no_is_not_probed_at_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Outage("there:1")
    assert not here.may_probe()
    here.begin(0.0, "")
    assert here.may_probe()
    assert not here.may_probe()
    monkeypatch.setattr(outage, "_PAUSE_SECONDS", 60.0)
    here.probe_ended(False)
    assert not here.may_probe()
    monkeypatch.setattr(outage, "_PAUSE_SECONDS", 0.0)
    here.probe_ended(False)
    assert here.may_probe()
    monkeypatch.setattr(outage, "_PAUSE_SECONDS", 60.0)
    here.probe_ended(True)
    here.begin(0.0, "")
    assert here.may_probe()


def test_the_kernels_are_loaded_at_the_first_sign_of_an_outage() -> None:
    """In a process of its own, where nothing has loaded them yet."""
    script = (
        "import sys, threading, pkpo_client\n"
        "client = pkpo_client.Client('127.0.0.1:9', fallback='local')\n"
        "did, do, prepare = [], client._do, client._engine.prepare\n"
        "def noting(task):\n"
        "    did.append(type(task).__name__)\n"
        "    return do(task)\n"
        "def preparing():\n"
        "    did.append('prepare')\n"
        "    prepare()\n"
        "    for thread in threading.enumerate():\n"
        "        if thread.name == 'pkpo-local-kernels':\n"
        "            thread.join()\n"
        "    assert 'pkpo_core' in sys.modules\n"
        "client._do, client._engine.prepare = noting, preparing\n"
        "assert 'pkpo_core' not in sys.modules\n"
        "client.transform([[1.0, 0.0]], 1)\n"
        "assert did[:3] == ['Ask', 'prepare', 'Pause'], did\n"
        "assert did[-1] == 'Compute', did\n"
        "client.close()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_program_that_ends_waits_for_no_more_than_one_kernel(tmp_path: Path) -> None:
    script = "from pkpo_client.local_engine import LocalEngine\nLocalEngine().prepare()\n"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=environment)
    assert len(list(tmp_path.rglob("*.nbc"))) < len(compilation._kernels)


def test_where_no_thread_is_to_be_had_the_first_work_loads_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(thread: threading.Thread) -> None:
        started.append(thread.name)
        if len(started) == 1:
            raise RuntimeError("can't start new thread")

    engine = LocalEngine()
    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(3):
        engine.prepare()
    assert started == ["pkpo-local-kernels"] * 2


def test_a_stream_goes_on_whenever_the_service_comes_back(
    flavour: Any, silent_port: Any, local: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Also in the middle of batches whose time was up while there was nobody: that time was not the service's."""
    given = [ROWS * (i + 1) for i in range(6)]

    async def found_on_an_event_loop() -> list[Any]:
        async with AsyncClient(silent_port.address, fallback="local", timeout=1.0) as client:
            async for _ in client.stream([ROWS], 4):
                silent_port.shut()
            stream = client.stream(given, 4, in_flight=3)
            first = await stream.__anext__()
            silent_port.open()
            while "is back after" not in caplog.text:
                await client.estimate(ROWS, 2)
                await asyncio.sleep(0.01)
            return [first, *[result async for result in stream]]

    def found() -> list[Any]:
        with Client(silent_port.address, fallback="local", timeout=1.0) as client:
            for _ in client.stream([ROWS], 4):
                silent_port.shut()
            stream = client.stream(given, 4, in_flight=3)
            first = next(stream)
            silent_port.open()
            poll(lambda: client.estimate(ROWS, 2) and "is back after" in caplog.text, "return to the service")
            return [first, *stream]

    silent_port.open()
    results = asyncio.run(asyncio.wait_for(found_on_an_event_loop(), 60)) if flavour.asynchronous else found()
    for result, rows in zip(results, given, strict=True):
        np.testing.assert_array_equal(result.advantages, local.transform(rows, 4))
    assert ["cannot be reached" in each for each in said(caplog)] == [True, False]


def test_no_thread_is_left_of_an_outage(threads_as_before: Any) -> None:
    with threads_as_before(), Client("127.0.0.1:9", fallback="local", timeout=0.2) as client:
        client.transform(ROWS, 4)
