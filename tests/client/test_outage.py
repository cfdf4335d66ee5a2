"""`fallback="local"`: an outage does not stop training, is said once, and ends by itself."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from live_server import poll
from pkpo_client import AsyncClient, Client, DeadlineExceeded, LocalClient, Unavailable, Unreachable, outage
from pkpo_client.outage import Outage

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
                    client._outage.begin(0.0)
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
    with pytest.raises(DeadlineExceeded, match=r"did not answer within 1\.\d s") as caught:
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


def test_a_service_that_says_no_is_not_probed_at_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Outage("there:1")
    assert not here.may_probe()
    here.begin(0.0)
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
    here.begin(0.0)
    assert here.may_probe()


def test_no_thread_is_left_of_an_outage(threads_as_before: Any) -> None:
    with threads_as_before(), Client("127.0.0.1:9", fallback="local", timeout=0.2) as client:
        client.transform(ROWS, 4)
