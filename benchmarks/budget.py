"""Where the time of a request goes: its stages, each measured by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import structlog
from prometheus_client import CollectorRegistry

from benchmarks import echo
from benchmarks.in_process import K, arrays
from benchmarks.measurement import Call, Effort, in_turns, typical_seconds
from benchmarks.processes import echo_server, pkpo_server
from benchmarks.served import request_of
from benchmarks.table import markdown, microseconds
from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import Client, codec
from pkpo_client.arrays import taken
from pkpo_client.channel import Endpoint
from pkpo_client.grouping import grouped
from pkpo_client.work import Batch
from pkpo_core import Variant
from pkpo_server import metrics
from pkpo_server.codec import Limits, Tally
from pkpo_server.computation import Patience
from pkpo_server.exchange import TRANSFORM, Request
from pkpo_server.metrics import Answered, Metrics, Stages
from pkpo_server.runs import Runs
from pkpo_server.settings import Settings

SHAPES = ((1, 16), (1024, 16))


def report(effort: Effort) -> str:
    """A table of stages, in microseconds."""
    columns = [_stages(groups, n, effort) for groups, n in SHAPES]
    rows = [(stage, *(microseconds(column[stage]) for column in columns)) for stage in columns[0]]
    return markdown(("stage, us", *(f"{groups} x {n}" for groups, n in SHAPES)), rows)


def _stages(groups: int, n: int, effort: Effort) -> dict[str, float]:
    times = effort.of(400, 5)

    def of(call: Call) -> float:
        return typical_seconds([call], times)

    batch = arrays(groups, n)[0]
    raw = request_of(batch)
    settings = Settings()
    limits = Limits(
        settings.max_message_bytes,
        settings.max_rewards,
        settings.max_group_size,
        settings.max_groups,
        settings.max_estimate_k,
    )
    request = Request(metrics.NO_VARIANT)
    work = TRANSFORM.read(raw, limits, request)
    answer = work.run(Patience(None))
    written = TRANSFORM.encode(answer, request)
    sent = Batch(
        timeout=30.0,
        rewards=batch.reshape(-1),
        group_sizes=n,
        number_of_groups=groups,
        variant=Variant.SLOO_MINUS_ONE.value,
        scale="sum",
        k_policy="strict",
        k=K,
        estimate_k=(),
        seed=0,
        run_id="",
        first_group=0,
    )
    stages = {
        "client: rewards as groups": of(lambda: grouped(taken(batch).values)),
        "client: request written": of(partial(codec.transform_request, sent)),
    }
    with ExitStack() as stack:
        echoing = stack.enter_context(echo_server(echo.OURS))
        channel = stack.enter_context(Endpoint(echoing.address).channel())
        unary: Any = channel.unary_unary(echo.UNARY)
        served = stack.enter_context(pkpo_server())
        client = stack.enter_context(Client(served.address))
        ours, echoed = partial(client.transform, batch, K), partial(unary, raw, timeout=30.0)
        both = in_turns([ours], [echoed], effort.of(20, 2), effort.of(40, 2))
        whole, wire = both.ours, both.floor
    stages |= {
        "gRPC and the network, both ways (an echo)": wire,
        "server: request parsed and checked": of(lambda: TRANSFORM.read(raw, limits, Request(metrics.NO_VARIANT))),
        "server: the transform and the answer's parts": of(partial(work.run, Patience(None))),
        "server: answer written": of(partial(TRANSFORM.encode, answer, request)),
        "server: counted": asyncio.run(
            _counting(of, Metrics(CollectorRegistry(), Runs(8, 3600.0, structlog.get_logger())), answer.tally)
        ),
        "client: answer parsed": of(partial(pb.TransformResponse.FromString, written)),
        "client: advantages taken": of(partial(codec.advantages, sent, pb.TransformResponse.FromString(written))),
    }
    rest = max(0.0, whole - float(np.sum(list(stages.values()))))
    return {**stages, "the rest: calls, metadata, caches gone cold": rest, "the whole request": whole}


async def _counting(of: Callable[[Call], float], counted: Metrics, tally: Tally) -> float:
    groups, variant, stages = tally.transformed, Variant.SLOO_MINUS_ONE.name, Stages(1e-5, 1e-4, 1e-5)

    def count() -> None:
        # The curve is summed now and then, for many answers at once.
        counted.answered(Answered(metrics.TRANSFORM, variant, "", replace(tally, transformed=groups), stages, 1e-3))
        counted._count_answered()

    return of(count)
