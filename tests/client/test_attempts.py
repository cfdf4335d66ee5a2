"""A call that failed is made again where that may help, and for as long as it may take."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest

from live_server import poll
from pkpo_client import (
    AsyncClient,
    Cancelled,
    Client,
    ClientClosed,
    LocalClient,
    Overloaded,
    ServerError,
    Unavailable,
    attempts,
)

ROWS = np.random.default_rng(11).random((4, 8))
MANY = 6 * attempts.ATTEMPTS
NEVER_AGAIN = "-1"


def refusal(code: grpc.StatusCode, pushback: str | None = None, by: str | None = None) -> Any:
    """A fault that refuses a call: asking to be asked again or not, and saying who refuses or not."""
    metadata = [("grpc-retry-pushback-ms", pushback)] if pushback is not None else []
    metadata += [("pkpo-server-version", by)] if by is not None else []

    def refuse(context: Any) -> None:
        context.set_trailing_metadata(metadata)
        context.abort(code, "for a reason")

    return refuse


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that follow each other sooner."""
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.002)
    monkeypatch.setattr(attempts, "_LONGEST_PAUSE", 0.01)


@pytest.mark.usefixtures("briefly")
def test_a_service_that_is_unavailable_for_now_is_asked_until_it_answers(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    """Such as one that compiles its kernels."""
    for method, work in (("Transform", "transform"), ("Estimate", "estimate"), ("GetServerInfo", "server_info")):
        proxy.faults[method] = deque([refusal(grpc.StatusCode.UNAVAILABLE)] * MANY)
        flavour.call(proxy.address, work, *() if work == "server_info" else (ROWS, 4))
        # Beside the call there are others that learn what the service takes.
        assert proxy.calls[method] > MANY
    np.testing.assert_array_equal(flavour.call(proxy.address, "transform", ROWS, 4), local.transform(ROWS, 4))


@pytest.mark.usefixtures("briefly")
def test_who_can_compute_here_asks_no_longer_than_a_moment(
    flavour: Any, proxy: Any, local: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pkpo_client")
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.UNAVAILABLE)] * MANY)
    found = flavour.call(proxy.address, "transform", ROWS, 4, of_client={"fallback": "local"})
    np.testing.assert_array_equal(found, local.transform(ROWS, 4))
    assert proxy.calls["Transform"] == attempts.ATTEMPTS
    assert "cannot be reached" in caplog.text


def test_the_time_of_a_call_bounds_its_attempts(flavour: Any, proxy: Any) -> None:
    """And its error says why the service was away, and for how long, not that the last attempt came to nothing."""
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.UNAVAILABLE)] * MANY)
    with pytest.raises(Unavailable, match=r"unavailable for [01]\.\d s, .*for a reason.*fallback='local'"):
        flavour.call(proxy.address, "transform", ROWS, 4, timeout=1.0)
    assert 2 <= proxy.calls["Transform"] < attempts.ATTEMPTS


@pytest.mark.usefixtures("briefly")
def test_a_busy_service_is_asked_until_it_has_time_if_it_says_when(
    flavour: Any, proxy: Any, local: LocalClient
) -> None:
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="3")] * MANY)
    np.testing.assert_array_equal(flavour.call(proxy.address, "transform", ROWS, 4), local.transform(ROWS, 4))
    assert proxy.calls["Transform"] == MANY + 1
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.RESOURCE_EXHAUSTED)] * MANY)
    with pytest.raises(Overloaded):
        flavour.call(proxy.address, "transform", ROWS, 4)
    assert proxy.calls["Transform"] == MANY + 1 + attempts.ATTEMPTS


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
@pytest.mark.parametrize("pushback", [NEVER_AGAIN, "soon", "60000"], ids=["never", "no number", "too late"])
def test_what_the_service_says_of_coming_back_is_heeded(
    flavour: Any, proxy: Any, code: grpc.StatusCode, pushback: str
) -> None:
    proxy.faults["Transform"] = deque([refusal(code, pushback)])
    with pytest.raises((Unavailable, Overloaded), match="for a reason"):
        flavour.call(proxy.address, "transform", ROWS, 4)
    assert proxy.calls["Transform"] == 1


@pytest.mark.usefixtures("briefly")
def test_attempts_of_each_kind_are_counted_apart(flavour: Any, proxy: Any, local: LocalClient) -> None:
    codes = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
    times = (MANY, attempts.ATTEMPTS - 1, attempts.ATTEMPTS - 1)
    proxy.faults["Transform"] = deque(
        refusal(code) for code, many in zip(codes, times, strict=True) for _ in range(many)
    )
    np.testing.assert_array_equal(flavour.call(proxy.address, "transform", ROWS, 4), local.transform(ROWS, 4))


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("times", [0, 2, attempts.ATTEMPTS], ids=["at once", "after a while", "never"])
def test_a_call_keeps_nothing_of_its_batch_once_it_is_over(flavour: Any, proxy: Any, times: int) -> None:
    """However large that was; without the cyclic collector, which comes late where little is allocated."""
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.CANCELLED)] * times)

    def kept() -> Any:
        rows = ROWS.copy()
        with Client(proxy.address) as client, suppress(Cancelled):
            client.transform(rows, 4)
        return weakref.ref(rows)

    async def kept_on_an_event_loop() -> Any:
        rows = ROWS.copy()
        async with AsyncClient(proxy.address) as client:
            with suppress(Cancelled):
                await client.transform(rows, 4)
        return weakref.ref(rows)

    gc.collect()
    gc.disable()
    try:
        assert (asyncio.run(kept_on_an_event_loop()) if flavour.asynchronous else kept())() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_a_call_that_broke_off_is_made_again_some_times(flavour: Any, proxy: Any, code: grpc.StatusCode) -> None:
    """A proxy resets a call whose server died, and gRPC calls that a fault. But it may be the call's own doing."""
    proxy.faults["Transform"] = deque([refusal(code)] * MANY)
    with pytest.raises((Cancelled, ServerError)):
        flavour.call(proxy.address, "transform", ROWS, 4)
    assert proxy.calls["Transform"] == attempts.ATTEMPTS


def test_a_fault_that_the_service_admits_is_not_asked_for_again(flavour: Any, proxy: Any) -> None:
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.INTERNAL, by="0.1.0")])
    with pytest.raises(ServerError, match="for a reason"):
        flavour.call(proxy.address, "transform", ROWS, 4)
    assert proxy.calls["Transform"] == 1


def test_pauses_grow_up_to_a_bound_and_are_no_shorter_than_the_service_asks() -> None:
    failures = attempts.Failures()
    pauses = [failures.add(None) for _ in range(2000)]  # some of an hour
    assert all(later > former for former, later in itertools.pairwise(pauses[:4]))
    assert 1.6 <= min(pauses[4:]) < max(pauses[4:]) <= 2.4
    assert attempts.Failures().add(Overloaded("busy", 5.0)) == 5.0
    assert failures.add(Overloaded("busy", 0.01)) >= 1.6


def test_an_attempt_that_had_no_time_says_less_than_the_refusal_before_it() -> None:
    failures = attempts.Failures()
    assert failures.reason(0.0) is None
    busy = Overloaded("busy", 5.0)
    failures.add(busy)
    failures.add(None)
    assert failures.reason(0.2) is busy
    assert failures.reason(0.4) is None


def test_closing_ends_the_pause_between_two_attempts(proxy: Any) -> None:
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.UNAVAILABLE, pushback="20000")])
    client = Client(proxy.address)
    raised: list[BaseException] = []

    def call() -> None:
        try:
            client.transform(ROWS, 4)
        except BaseException as error:
            raised.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    poll(lambda: proxy.calls["Transform"], "first attempt")
    client.close()
    calling.join(10)
    assert [type(error) for error in raised] == [ClientClosed]


def test_closing_ends_the_pause_between_two_attempts_on_an_event_loop(proxy: Any) -> None:
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.UNAVAILABLE, pushback="20000")])

    async def main() -> None:
        client = AsyncClient(proxy.address)
        task = asyncio.ensure_future(client.transform(ROWS, 4))
        while not proxy.calls["Transform"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # until the refusal is there
        await client.close()
        with pytest.raises(ClientClosed):
            await asyncio.wait_for(task, 10)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_task_may_be_cancelled_between_two_attempts(proxy: Any) -> None:
    proxy.faults["Transform"] = deque([refusal(grpc.StatusCode.UNAVAILABLE, pushback="20000")])

    async def main() -> None:
        async with AsyncClient(proxy.address) as client:
            task = asyncio.ensure_future(client.transform(ROWS, 4))
            while not proxy.calls["Transform"]:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(main(), 60))
