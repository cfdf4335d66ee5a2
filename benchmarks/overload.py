"""More calls than a server can answer: what becomes of those that it takes, of the others, and of a second tenant's."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import OPTIONS, Callers, Calls, Due, Kept, Tenant, Watched, callers
from benchmarks.measurement import Effort, Ratio
from benchmarks.processes import Running, pkpo_server
from benchmarks.queues import poisson
from benchmarks.served import TRANSFORM
from benchmarks.table import BAR_HEADER, Bar, Result, markdown
from pkpo.v1 import reward_transform_pb2 as pb


@dataclass(frozen=True)
class Batch:
    """What a call asks for.

    Attributes:
        groups: how many.
        n: samples of each.
        k: of the advantages.
        estimate_k: of the estimates.
        variant: of the advantages.
    """

    groups: int
    n: int
    k: int = 8
    estimate_k: tuple[int, ...] = (1, 2, 4, 8, 16)
    variant: pb.Variant.ValueType = pb.VARIANT_SLOO_MINUS_ONE

    def __str__(self) -> str:
        asked = f"{self.groups} x {self.n}, {pb.Variant.Name(self.variant).removeprefix('VARIANT_')}, k = {self.k}"
        return asked + (f", {len(self.estimate_k)} estimates" if self.estimate_k else "")

    def message(self, double: bool = False) -> bytes:
        """The request, of float32 rewards or of float64 ones."""
        rewards = np.random.default_rng(0).standard_normal(self.groups * self.n, np.float32).tolist()
        groups = pb.RewardGroups(group_size=self.n)
        (groups.f64 if double else groups.f32).values.extend(rewards)
        request = pb.TransformRequest(
            groups=groups, variant=self.variant, k=[self.k], estimate_k=self.estimate_k, seed=1
        )
        return request.SerializeToString()


# What training runs ask for, and how often: mostly steps of 256 to 2048 prompts with 16 samples, some of larger groups,
# and some of the one variant that takes long.
MIX = (
    (Batch(256, 16), 0.20),
    (Batch(1024, 16), 0.20),
    (Batch(2048, 16), 0.20),
    (Batch(512, 64), 0.10),
    (Batch(64, 1024, estimate_k=(1, 16, 256)), 0.10),
    (Batch(256, 64, 32, (), pb.VARIANT_PASSK_BOOTSTRAP), 0.20),
)
SMALLEST = Batch(1, 16, estimate_k=())

CONNECTIONS = 16
# The client's own.
TIMEOUT_SECONDS = 30.0
# Enough for the server never to wait for the next call; few enough for it to take them all.
SATURATING = 8
NORMAL, FLOOD, AFTER, STEADY = 0.8, 3.0, 0.5, 0.1
# A server is back to normal with the first half second of which this share of the calls take no longer than usual.
RECOVERY_SECONDS, RECOVERED_SHARE = 0.5, 0.95
SMALL_AT_ONCE = (16, 256, 2048)
SMALL_CONNECTIONS = 64
RUN_IDS = 1000
# A server on localhost is at both of this machine's addresses, which are peers of their own.
HOST, OTHER_HOST = "127.0.0.1", "::1"
# 2^22 rewards, which as float64 are 32 MiB. With k = 512 of 1024 they are some fifteen seconds of work. A server that
# has seen smaller batches alone is sure of a quarter of that.
LONGEST = Batch(4096, 1024, 512, (), pb.VARIANT_PASSK_BOOTSTRAP)
DEADLINE_SECONDS = 2.0


@dataclass(frozen=True)
class Window:
    """Some of the time in which calls were made.

    Attributes:
        seen: all that was seen then.
        begin, end: seconds from its start.
    """

    seen: Watched
    begin: float
    end: float

    @property
    def calls(self) -> Calls:
        """Those that were due."""
        return self.seen.calls.between(self.begin, self.end)

    def used(self, name: str) -> float:
        """Seconds of a processor, by the name of the series."""
        return self.seen.used(getattr(self.seen, name), self.begin, self.end)

    def fifths(self) -> list[Window]:
        """Its five parts."""
        return [Window(self.seen, *edges) for edges in pairwise(np.linspace(self.begin, self.end, 6).tolist())]


@dataclass(frozen=True)
class Stage:
    """A time with one kind of load.

    Attributes:
        name: of the load.
        seconds: how long it lasted.
        calls: that were due, a second.
        answered, refused: of them, a second.
        unanswered: how many were neither, by gRPC's status.
        wrong: how many answers were others than at rest.
        of_kinds: the share answered, of each kind of the mix; NaN where there was none.
        p99_of_kinds: seconds of those answered, of each kind of the mix; NaN where there was none.
        p50, p99: seconds of those answered.
        refusal_p50, refusal_p99: of those refused.
        p99_of_fifths: p99 in each fifth of the time.
        busy: the share of a processor that the server used.
        loop: the share of that which its event loop used.
        resident_of_fifths: the most bytes that the server held in each fifth.
        caller: the share of a processor that the caller used.
        stolen: the share of a processor that the host of a virtual machine kept for itself.
        late_p99: seconds from when a call was due until it was made.
    """

    name: str
    seconds: float
    calls: float
    answered: float
    refused: float
    unanswered: dict[str, int]
    wrong: int
    of_kinds: tuple[float, ...]
    p99_of_kinds: tuple[float, ...]
    p50: float
    p99: float
    refusal_p50: float
    refusal_p99: float
    p99_of_fifths: tuple[float, ...]
    busy: float
    loop: float
    resident_of_fifths: tuple[float, ...]
    caller: float
    stolen: float
    late_p99: float

    @classmethod
    def of(cls, name: str, *windows: Window, tenant: int | None = None) -> Stage:
        """The calls, or one tenant's, that were due in these times."""
        calls = Calls.of_all([window.calls for window in windows])
        if tenant is not None:
            calls = calls.of(tenant)
        answered, refused = calls.answered, calls.refused
        seconds = sum(window.end - window.begin for window in windows)
        fifths = list(zip(*(window.fifths() for window in windows), strict=True))

        def used(name: str) -> float:
            return sum(window.used(name) for window in windows)

        def p99(parts: Sequence[Window]) -> float:
            due = Calls.of_all([part.calls for part in parts]).answered
            return (due if tenant is None else due.of(tenant)).percentile(99)

        return cls(
            name,
            seconds,
            len(calls) / seconds,
            len(answered) / seconds,
            len(refused) / seconds,
            calls.unanswered.codes(),
            int(answered.wrong.sum()),
            tuple(
                _share(int((answered.kind == kind).sum()), int((calls.kind == kind).sum())) for kind in range(len(MIX))
            ),
            tuple(answered.where(answered.kind == kind).percentile(99) for kind in range(len(MIX))),
            answered.percentile(50),
            answered.percentile(99),
            refused.percentile(50),
            refused.percentile(99),
            tuple(p99(parts) for parts in fifths),
            used("processor") / seconds,
            _share(used("loop"), used("processor")) if used("processor") else 0.0,
            tuple(max(part.seen.largest(part.begin, part.end) for part in parts) for parts in fifths),
            used("caller") / seconds,
            used("stolen") / seconds,
            float(np.percentile(calls.late, 99)) if len(calls) else float("nan"),
        )


@dataclass(frozen=True)
class Tenancy:
    """One tenant beside another's flood.

    Attributes:
        name: by what they can be told apart.
        alone: the tenant's calls without the flood.
        beside: and with it.
        flood: the other's.
        bound: whether the one must not suffer.
    """

    name: str
    alone: Stage
    beside: Stage
    flood: Stage
    bound: bool


@dataclass(frozen=True)
class Long:
    """A call whose work does not fit its deadline.

    Attributes:
        seconds: until it ended.
        code: gRPC's status.
        processor: seconds of the server.
    """

    seconds: float
    code: str
    processor: float


@dataclass(frozen=True)
class Figures:
    """All that was measured.

    Attributes:
        costs: seconds of the server for a call of each kind of the mix.
        capacity: no rest between calls, before the flood and after it.
        normal: before the flood and after it, each time with regard to the capacity just measured.
        flood, after: the load of the flood, and that to which it falls.
        recovered: seconds from the end of the flood until calls took no longer than usual; infinite where they never
            did.
        tenancies: two tenants.
        small: calls of the smallest batch.
        long: a call whose work does not fit its deadline.
    """

    costs: tuple[float, ...]
    capacity: tuple[Stage, Stage]
    normal: Stage
    flood: Stage
    after: Stage
    recovered: float
    tenancies: tuple[Tenancy, ...]
    small: tuple[Stage, ...]
    long: Long


def report(effort: Effort) -> str:
    """Tables: the bars, the stages, two tenants, the smallest calls."""
    return tables(figures(effort), effort)


def figures(effort: Effort) -> Figures:
    """Measures everything, with the server on one processor and its callers on another."""
    server_on, *others = sorted(os.sched_getaffinity(0))
    with (
        _pinned(server_on),
        pkpo_server("--threads", "1", "--host", "localhost") as server,
        _pinned(others[0] if others else server_on),
        callers() as calling,
    ):
        return _Measurement(server, calling, effort).figures()


class _Measurement:
    def __init__(self, server: Running, calling: Callers, effort: Effort) -> None:
        self._server = server
        self._calling = calling
        self._effort = effort
        self._rng = np.random.default_rng(0)
        self._messages = [batch.message() for batch, _ in MIX]

    def figures(self) -> Figures:
        costs = tuple(self._cost(kind) for kind in range(len(MIX)))
        before = self._at_capacity("before")
        first, flood, falling = self._loads(before.answered, (NORMAL, 15), (FLOOD, 60), (AFTER, 5))
        # A machine that others share may be another one by now, and what is usual another time.
        after = self._at_capacity("after")
        (last,) = self._loads(after.answered, (NORMAL, 15))
        normal = Stage.of(f"{NORMAL:.0%} of capacity", first, last)
        return Figures(
            costs,
            (before, after),
            normal,
            Stage.of(f"{FLOOD:.0%} of capacity", flood),
            Stage.of(f"{AFTER:.0%} of capacity", falling),
            recovery(falling.seen.calls, falling.begin, falling.end, normal.p99),
            tuple(self._tenancies(after.answered)),
            tuple(self._small()),
            self._long(),
        )

    def _loads(self, rate: float, *loads: tuple[float, float]) -> list[Window]:
        """Shares of a rate, one after the other, each for so many seconds of every minute asked for."""
        edges = np.cumsum([0.0, *(self._effort.minutes * seconds for _, seconds in loads)]).tolist()
        times = list(pairwise(edges))
        loops = [self._poisson(load * rate, *time) for (load, _), time in zip(loads, times, strict=True)]
        seen = self._watched([self._tenant()], merged(loops))
        return [Window(seen, *time) for time in times]

    def _cost(self, kind: int) -> float:
        """Seconds of the server for a call of one kind, without rest between calls."""
        seconds = self._effort.of(2, 0) or 0.3
        loop = Kept(SATURATING, seconds, np.full(1, kind), heeding=True)
        alone = Stage.of("", Window(self._watched([self._tenant()], loop), 0.0, seconds))
        return _share(alone.busy, alone.answered)

    def _at_capacity(self, name: str) -> Stage:
        warm, seconds = self._effort.of(2, 0), self._effort.of(10, 1)
        loop = Kept(SATURATING, warm + seconds, self._kinds(10_000), heeding=True)
        seen = self._watched([self._tenant()], loop)
        return Stage.of(f"no rest between calls, {name}", Window(seen, warm, warm + seconds))

    def _tenancies(self, rate: float) -> Iterator[Tenancy]:
        seconds = self._effort.minutes * 10
        by_run = ("run id", self._tenant("flood"), self._tenant("steady"), True)
        by_peer = ("peer", self._tenant(), self._tenant(host=OTHER_HOST), True)
        invented = self._tenant(*map(str, range(RUN_IDS)))
        tenancies = [by_run, by_peer, (f"one run id beside {RUN_IDS}", invented, self._tenant("steady"), False)]
        if not _is_local(OTHER_HOST):
            tenancies.remove(by_peer)
        for name, other, one, bound in tenancies[: self._effort.of(len(tenancies), 1)]:
            own = self._poisson(STEADY * rate, 0.0, seconds, 1)
            both = merged([self._poisson(FLOOD * rate, 0.0, seconds), own])
            alone, beside = (Window(self._watched([other, one], loop), 0.0, seconds) for loop in (own, both))
            yield Tenancy(
                name,
                Stage.of(f"{STEADY:.0%} of capacity", alone, tenant=1),
                Stage.of(f"{STEADY:.0%} of capacity", beside, tenant=1),
                Stage.of(f"{FLOOD:.0%} of capacity", beside, tenant=0),
                bound,
            )

    def _small(self) -> Iterator[Stage]:
        tenant = replace(self._tenant(), connections=self._effort.of(SMALL_CONNECTIONS))
        seconds, message = self._effort.of(5, 1), [SMALLEST.message()]
        loads = [(heeding, at_once) for heeding in (True, False) for at_once in SMALL_AT_ONCE]
        for heeding, at_once in loads[: self._effort.of(len(loads), 1)]:
            loop = Kept(at_once, seconds, np.zeros(1, np.int64), heeding)
            seen = self._calling.watched(self._server, TRANSFORM, [tenant], message, loop, TIMEOUT_SECONDS)
            again = "when told to" if heeding else "at once"
            yield Stage.of(f"{at_once} at once, refused ones again {again}", Window(seen, 0.0, seconds))

    def _long(self) -> Long:
        request = LONGEST.message(double=True)
        with grpc.insecure_channel(self._tenant().target, options=OPTIONS) as channel:
            grpc.channel_ready_future(channel).result(TIMEOUT_SECONDS)
            used, started = self._server.cpu_seconds(), time.perf_counter()
            method: Any = channel.unary_unary(TRANSFORM)
            code = method.future(request, timeout=DEADLINE_SECONDS).code().name
            seconds = time.perf_counter() - started
        time.sleep(RECOVERY_SECONDS)
        return Long(seconds, code, self._server.cpu_seconds() - used)

    def _watched(self, tenants: Sequence[Tenant], loop: Due | Kept) -> Watched:
        return self._calling.watched(self._server, TRANSFORM, tenants, self._messages, loop, TIMEOUT_SECONDS)

    def _tenant(self, *run_ids: str, host: str = HOST) -> Tenant:
        target = f"ipv6:[{host}]" if ":" in host else f"ipv4:{host}"
        return Tenant(f"{target}:{self._server.address.rpartition(':')[2]}", CONNECTIONS, run_ids or ("",))

    def _poisson(self, rate: float, begin: float, end: float, tenant: int = 0) -> Due:
        due = poisson(rate, round(rate * (end - begin) * 1.5) + 100, self._rng)
        due = begin + due[due < end - begin]
        return Due(due, self._kinds(len(due)), np.full(len(due), tenant))

    def _kinds(self, calls: int) -> NDArray[np.int64]:
        return self._rng.choice(len(MIX), calls, p=[share for _, share in MIX])


def recovery(calls: Calls, begin: float, end: float, usual: float) -> float:
    """Seconds until the first half second of which nearly all calls were answered in no more than the usual time.

    Args:
        calls: what became of them.
        begin: when the flood ended.
        end: of the stage after it.
        usual: seconds.
    """
    well = calls.answered
    for since in np.arange(0.0, end - begin - RECOVERY_SECONDS, RECOVERY_SECONDS / 10).tolist():
        window = begin + since, begin + since + RECOVERY_SECONDS
        due, soon = len(calls.between(*window)), int((well.between(*window).times <= usual).sum())
        if due and soon >= RECOVERED_SHARE * due:
            return float(since)
    return float("inf")


def merged(loops: Sequence[Due]) -> Due:
    """Several open loops as one."""
    seconds, kind, tenant = (np.concatenate([getattr(loop, field.name) for loop in loops]) for field in fields(Due))
    order = np.argsort(seconds, kind="stable")
    return Due(seconds[order], kind[order], tenant[order])


def _is_local(host: str) -> bool:
    with suppress(OSError), socket.create_server((host, 0), family=socket.AF_INET6):
        return True
    return False


@contextmanager
def _pinned(processor: int) -> Iterator[None]:
    """What is started meanwhile runs on this processor alone, and so does this thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def bars(seen: Figures) -> Iterator[Result]:
    """What must be true."""
    usual = f"p99 at {NORMAL:.0%} of capacity"
    flood = seen.flood
    yield Result(
        Bar(f"accepted at {FLOOD:g} times capacity for {flood.seconds / 60:.1f} minutes: p99", usual, 2.0),
        _against(flood.p99, seen.normal.p99, flood.p99_of_fifths),
        f"{flood.p99 * 1e3:.0f} ms of {seen.normal.p99 * 1e3:.0f}",
    )
    # A flood's answers are of another mix than it asked for: small batches are computed at once, not refused.
    of_kinds = [beside / alone for beside, alone in zip(flood.p99_of_kinds, seen.normal.p99_of_kinds, strict=True)]
    slowest = int(np.nanargmax(of_kinds))
    yield Result(
        Bar("and of the kind that it slows most", f"its {usual}", 2.0),
        _one(of_kinds[slowest]),
        f"{MIX[slowest][0]}: {flood.p99_of_kinds[slowest] * 1e3:.0f} ms of"
        f" {seen.normal.p99_of_kinds[slowest] * 1e3:.0f}",
    )
    yield Result(
        Bar(f"refused at {FLOOD:g} times capacity: p99", usual, 1.0),
        _against(flood.refusal_p99, seen.normal.p99, (flood.refusal_p99,)),
        f"{flood.refusal_p99 * 1e3:.1f} ms",
    )
    yield Result(
        Bar("calls that the callers themselves made late: p99", usual, 0.2),
        _against(flood.late_p99, seen.normal.p99, (flood.late_p99,)),
        f"{flood.late_p99 * 1e3:.1f} ms; the callers' processor {flood.caller:.0%} busy",
    )
    yield Result(
        Bar("what the host of this virtual machine kept for itself meanwhile", "a processor", 0.01), _one(flood.stolen)
    )
    stages = (*seen.capacity, seen.normal, flood, seen.after, *seen.small)
    stages += tuple(stage for each in seen.tenancies for stage in (each.alone, each.beside, each.flood))
    calls = round(sum(stage.calls * stage.seconds for stage in stages))
    unanswered, wrong = sum(sum(stage.unanswered.values()) for stage in stages), sum(stage.wrong for stage in stages)
    for what, number in (("without an answer", unanswered), ("with a wrong one", wrong)):
        yield Result(Bar(f"calls {what}, in everything below", "none", 0.0), _one(number, f"of {calls:,}"))
    later = flood.resident_of_fifths
    yield Result(
        Bar("memory of the server in the flood's last fifth", "in its first", 1.05),
        _against(later[-1], later[0], later[1:]),
        f"{later[-1] / 2**20:.0f} MiB of {later[0] / 2**20:.0f};"
        f" {max(seen.normal.resident_of_fifths) / 2**20:.0f} at {NORMAL:.0%}",
    )
    yield Result(
        Bar(f"the flood falls to {AFTER:.0%}: until calls take no longer than usual", "1 s", 1.0),
        _one(seen.recovered),
    )
    for each in (tenancy for tenancy in seen.tenancies if tenancy.bound):
        beside = each.beside
        yield Result(
            Bar(f"a tenant of {STEADY:.0%} beside one of {FLOOD:.0%}, told apart by {each.name}: p99", usual, 2.0),
            _against(beside.p99, seen.normal.p99, beside.p99_of_fifths),
            f"{beside.p99 * 1e3:.0f} ms, alone {each.alone.p99 * 1e3:.0f}",
        )
        share = 1 - _share(beside.answered, beside.calls)
        yield Result(Bar("and its calls that are not answered", "all", 0.01), _one(share))
    until_refused = seen.long.seconds if seen.long.code == grpc.StatusCode.RESOURCE_EXHAUSTED.name else float("inf")
    yield Result(
        Bar(f"refused, since its work does not fit its {DEADLINE_SECONDS:g} s", f"{DEADLINE_SECONDS:g} s", 0.1),
        _one(until_refused / DEADLINE_SECONDS),
        f"{seen.long.code} after {seen.long.seconds * 1e3:.0f} ms, {seen.long.processor * 1e3:.0f} of the server's",
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _work(stage: Stage, costs: Sequence[float]) -> float:
    """Seconds of the server that its answers take without a flood, a second."""
    kinds = zip(stage.of_kinds, MIX, costs, strict=True)
    return sum(answered * share * stage.calls * cost for answered, (_, share), cost in kinds)


def _one(figure: float, remark: str = "") -> Ratio:
    return Ratio(figure, figure, figure, figure, 1.0, remark)


def _against(ours: float, floor: float, parts: Sequence[float]) -> Ratio:
    low, high = np.percentile(np.array(parts) / floor, [25, 75]).tolist()
    return Ratio(ours / floor, low, high, ours, floor)


def tables(seen: Figures, effort: Effort) -> str:
    """What was measured, as it stands in the documentation."""
    results = [(*result.cells()[:-1], "tried" if effort.quick else result.cells()[-1]) for result in bars(seen)]
    answered = seen.capacity[0]
    mean, later = answered.busy / answered.answered, seen.capacity[1].answered
    capacity = (
        f"Capacity: {answered.answered:.0f} calls of the mix a second, {mean * 1e3:.2f} ms of the server each; after"
        f" the flood {later:.0f}, of which it was {seen.flood.calls / later:.1f} times as many. A call of the callers'"
        f" process takes it"
        f" {seen.flood.caller / seen.flood.calls * 1e6:.0f} us of its own processor, so it could make"
        f" {seen.flood.calls / seen.flood.caller:.0f} a second."
    )
    kinds = [
        (
            str(batch),
            f"{share:.0%}",
            f"{cost * 1e3:.2f}",
            *(f"{stage.of_kinds[kind]:.0%}" for stage in (seen.normal, seen.flood)),
            *(f"{stage.p99_of_kinds[kind] * 1e3:.3g}" for stage in (seen.normal, seen.flood)),
        )
        for kind, ((batch, share), cost) in enumerate(zip(MIX, seen.costs, strict=True))
    ]
    memory = ", ".join(f"{resident / 2**20:.0f}" for resident in seen.flood.resident_of_fifths)
    work = _work(seen.flood, seen.costs) / _work(answered, seen.costs)
    rows = [_row(stage) for stage in (*seen.capacity, seen.normal, seen.flood, seen.after)]
    tenants = [
        _row(replace(stage, name=f"{each.name}: {name}"))
        for each in seen.tenancies
        for name, stage in (
            ("the one alone", each.alone),
            ("the one beside the flood", each.beside),
            ("the flood", each.flood),
        )
    ]
    return "\n\n".join(
        [
            markdown((*BAR_HEADER[:3], "measured (quartiles of its fifths)", ""), results),
            capacity,
            markdown(HEADER, rows),
            f"Memory of the server in fifths of the flood: {memory} MiB.",
            f"At {FLOOD:g} times capacity it answers {work:.0%} of the work that it does at capacity. The mix:",
            markdown(
                (
                    *("batch", "share", "server, ms", f"answered at {NORMAL:.0%}", f"at {FLOOD:.0%}"),
                    *(f"p99 at {NORMAL:.0%}, ms", f"at {FLOOD:.0%}"),
                ),
                kinds,
            ),
            "Two tenants:",
            markdown(HEADER, tenants),
            f"The smallest calls, of {SMALLEST.groups} x {SMALLEST.n}:",
            markdown(HEADER, [_row(stage) for stage in seen.small]),
        ]
    )


HEADER = (
    "load",
    "calls/s",
    "answered/s",
    "refused/s",
    "neither",
    "answered: p50, ms",
    "p99, ms",
    "refused: p50, ms",
    "p99, ms",
    "memory, MiB",
    "server busy",
    "of that its event loop",
    "caller busy",
    "host took",
    "calls late, p99, ms",
)


def _row(stage: Stage) -> tuple[str, ...]:
    return (
        stage.name,
        f"{stage.calls:.0f}",
        f"{stage.answered:.0f}",
        f"{stage.refused:.0f}",
        ", ".join(f"{number} {code}" for code, number in stage.unanswered.items()) or "0",
        *(
            "" if np.isnan(seconds) else f"{seconds * 1e3:.3g}"
            for seconds in (stage.p50, stage.p99, stage.refusal_p50, stage.refusal_p99)
        ),
        f"{max(stage.resident_of_fifths) / 2**20:.0f}",
        f"{stage.busy:.0%}",
        f"{stage.loop:.0%}",
        f"{stage.caller:.0%}",
        f"{stage.stolen:.1%}",
        f"{stage.late_p99 * 1e3:.2g}",
    )
