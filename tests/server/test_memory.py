"""A worker that has computed big batches is no larger than one that has not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from live_server import LiveServer, poll
from pkpo_client import Client

MIB = 2**20
# What a process grows by for other reasons: threads, connections, weights.
SLACK = 40 * MIB


def resident(server: LiveServer) -> float:
    return server.metrics()["process_resident_memory_bytes"]


def test_what_big_batches_leave_behind_is_given_back() -> None:
    rewards = np.random.default_rng(0).normal(size=(2**17, 16))
    with LiveServer() as server:

        def ask(_: int) -> Any:
            with Client(server.address, timeout=120) as pkpo:
                return pkpo.transform(rewards, k=4)

        ask(0)
        before = resident(server)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, range(12)))
        poll(lambda: resident(server) < before + SLACK, "memory given back")
