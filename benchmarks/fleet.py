"""What a fleet needs for so many training runs: processors, pods, bandwidth, connections, metric series.

From what one worker was measured to cost, and from a simulation of calls that wait, held against calls that did wait.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.costs import Calls, Connections, Step, calls_in_a_row, calls_when_due, connections, series
from benchmarks.measurement import Effort
from benchmarks.processes import pkpo_server
from benchmarks.queues import ATTEMPTS, Queues, Times, poisson, simulate
from benchmarks.table import markdown, microseconds
from pkpo_server.settings import Settings


@dataclass(frozen=True)
class Run:
    """A training run, as servers see it.

    Attributes:
        name: for the tables.
        step: what it asks for.
        seconds: from one step to the next.
    """

    name: str
    step: Step
    seconds: float


RUNS = (Run("ordinary", Step(512, 16), 30.0), Run("large", Step(1024, 16), 10.0))
NUMBERS = (10, 1_000, 100_000)
# Calls a second, over those of a worker without rest. They cost more where there are fewer, so it is busier than that;
# about as busy as below at the one in the middle.
LOADS = (0.2, 0.5, 0.8)

# What a pod of one worker is given. Up to the first, calls hardly wait, and a pod less does no harm.
MOST_BUSY = 0.6
MOST_CONNECTION_BYTES = 2**29
MOST_BITS_A_SECOND = 1e9
# How often a client comes anew to each pod, and so how soon it notices others.
CONNECTION_AGE_SECONDS = 300.0
# Steps of runs that were started by one command may come at the same time.
BURST_SECONDS = 1.0
MOST_OPEN = Settings().max_concurrent_rpcs
MOST_RUN_IDS = Settings().max_run_ids
SIMULATED_CALLS = 100_000
# By what factor the simulation may miss a percentile that was measured, either way. The fleets are far less busy than
# the most that is compared, and need to know that calls wait for milliseconds, not for seconds.
MOST_MISSED = {50: 2.0, 99: 4.0}


@dataclass(frozen=True)
class Costs:
    """What one worker was measured to cost.

    Attributes:
        call: its seconds for a step without rest between calls, by the name of the run.
        working: its seconds for an ordinary step at the loads above, over those without rest.
        alone: (calls,) seconds of ordinary steps that each find a worker at rest, and what it knew out of its caches.
        in_a_row: (calls,) seconds of such that follow upon each other.
        connections: what they cost.
        pod_series: metric series of a pod without runs.
        run_series: that each run adds.
    """

    call: dict[str, float]
    working: tuple[float, ...]
    alone: Times
    in_a_row: Times
    connections: Connections
    pod_series: int
    run_series: int

    def of(self, run: Run, load: int = 1) -> float:
        """A worker's seconds for a step of a run, at one of the loads: where it is busy as it should be."""
        return self.call[run.name] * self.working[load]

    def services(self, seconds: float, number: int, rng: np.random.Generator) -> Times:
        """So many calls of `seconds` on average, which differ as calls were seen to."""
        return seconds * rng.choice(self.in_a_row / self.in_a_row.mean(), number)


def report(effort: Effort) -> str:
    """Tables: the costs, the simulation against what was measured, the limits of one pod, fleets."""
    rng = np.random.default_rng(0)
    ordinary, *_ = RUNS
    with pkpo_server() as server:
        call = {run.name: calls_when_due(server, run.step, np.zeros(effort.of(900, 5))).processor for run in RUNS}
        alone = calls_when_due(server, ordinary.step, np.arange(effort.of(400, 20)) / 40).times
        in_a_row = calls_in_a_row(server, ordinary.step, effort.of(2000, 20))
        loaded: list[Calls] = []
        for load in LOADS:
            rate = load / call[ordinary.name]
            due = poisson(rate, effort.of(int(15 * rate), 20), rng)
            loaded.append(calls_when_due(server, ordinary.step, due))
    working = tuple(calls.processor / call[ordinary.name] for calls in loaded)
    costs = Costs(call, working, alone, in_a_row, connections(effort.of(500, 5)), *series())
    return "\n\n".join(
        [_costs(costs), _compared(costs, loaded, effort, rng), _limits(costs), _fleets(costs, effort, rng)]
    )


def _costs(costs: Costs) -> str:
    rows = [
        *(
            (f"a call of {run.step.prompts} x {run.step.samples}, {how}", f"{microseconds(seconds)} us of a processor")
            for run in RUNS
            for how, seconds in (
                ("no rest between calls", costs.call[run.name]),
                (f"{LOADS[1]:.0%} of those a second", costs.of(run)),
            )
        ),
        ("a connection", f"{costs.connections.bytes / 2**10:.0f} KiB"),
        ("to take a connection and answer a small call", f"{microseconds(costs.connections.processor)} us"),
        ("a worker without connections", f"{costs.connections.none_bytes / 2**20:.0f} MiB"),
        ("metric series of a pod, without runs", f"{costs.pod_series}"),
        ("and of each run", f"{costs.run_series}"),
    ]
    return "One worker:\n\n" + markdown(("what", "measured"), rows)


def _compared(costs: Costs, loaded: list[Calls], effort: Effort, rng: np.random.Generator) -> str:
    ordinary, *_ = RUNS
    rows: list[tuple[str, ...]] = []
    ratios: dict[int, list[float]] = {percentile: [] for percentile in MOST_MISSED}
    for load, calls in enumerate(loaded):
        rate = LOADS[load] / costs.call[ordinary.name]
        seconds = costs.of(ordinary, load)
        waited = _waited(costs, seconds, rate, Queues(1), effort, rng)
        number = len(waited)
        besides = np.where(waited > 0, rng.choice(costs.in_a_row, number), rng.choice(costs.alone, number))
        simulated = waited + besides
        cells: list[str] = []
        for percentile in MOST_MISSED:
            was, said = _typical(calls.times, percentile), float(np.percentile(simulated, percentile))
            ratios[percentile].append(round(said / was, 2))
            cells += [microseconds(was), microseconds(said), f"{ratios[percentile][-1]:.2f}"]
        rows.append((f"{rate:.0f}", microseconds(seconds), f"{rate * seconds:.0%}", *cells))
    header = (
        "calls/s",
        "processor, us a call",
        "busy",
        "p50 measured, us",
        "simulated",
        "ratio",
        "p99 measured, us",
        "simulated",
        "ratio",
    )
    return "\n\n".join(
        [
            "Calls of ordinary steps to one worker, each when it was due, and the same simulated:",
            markdown(header, rows),
            verdict(ratios),
        ]
    )


def verdict(ratios: Mapping[int, Sequence[float]]) -> str:
    """What to think of the simulation: whether it missed any percentile by more than `MOST_MISSED`.

    Args:
        ratios: simulated over measured, at each load, by percentile.
    """
    told = []
    for percentile, most in MOST_MISSED.items():
        farthest = max(ratios[percentile], key=lambda ratio: max(ratio, 1 / ratio) if ratio > 0 else math.inf)
        missed = not 1 / most <= farthest <= most
        told.append(
            f"p{percentile} {'**is not**' if missed else 'is'} within a factor of {most:g} of what was measured"
            f" (farthest: {farthest:.2f})"
        )
    return f"The simulation's {', and its '.join(told)}."


def _typical(times: Times, percentile: float) -> float:
    """Of the fifths of the calls, the one in the middle: a machine that is busy elsewhere for a second spoils one."""
    return float(np.median([np.percentile(fifth, percentile) for fifth in np.array_split(times, 5)]))


def _waited(
    costs: Costs, seconds: float, rate: float, queues: Queues, effort: Effort, rng: np.random.Generator
) -> Times:
    number = effort.of(SIMULATED_CALLS, 100)
    return simulate(poisson(rate, number, rng), costs.services(seconds, number, rng), queues, rng).waited


def _limits(costs: Costs) -> str:
    """By how many runs each limit of one pod is reached, for each kind of run."""

    def reached(run: Run) -> dict[str, float]:
        return {
            "runs with metric series of their own (`max_run_ids`)": MOST_RUN_IDS,
            "steps at one moment (`max_concurrent_rpcs`)": MOST_OPEN,
            f"memory of connections: {MOST_CONNECTION_BYTES // 2**20} MiB": (
                MOST_CONNECTION_BYTES / costs.connections.bytes
            ),
            f"connections that come anew every {CONNECTION_AGE_SECONDS:.0f} s: a tenth of the processor": (
                0.1 * CONNECTION_AGE_SECONDS / costs.connections.processor
            ),
            f"calls: {MOST_BUSY:.0%} of the processor": MOST_BUSY * run.seconds / costs.of(run),
            f"bandwidth: {MOST_BITS_A_SECOND / 1e9:.0f} Gbit/s each way": (
                MOST_BITS_A_SECOND * run.seconds / 8 / run.step.message_bytes
            ),
        }

    of_runs = [reached(run) for run in RUNS]
    order = sorted(of_runs[0], key=lambda limit: of_runs[0][limit])
    rows = [(limit, *(f"{_rounded(limits[limit]):,}" for limits in of_runs)) for limit in order]
    header = ("limit of one pod with one worker", *(f"{run.name} runs" for run in RUNS))
    return "How many runs reach which limit:\n\n" + markdown(header, rows)


@dataclass(frozen=True)
class _Fleet:
    """Pods of one worker for so many runs of a kind.

    Attributes:
        run: the kind.
        number: how many.
        pods: how many, one of which may be gone; None where no number is enough.
        busy: the share of its time that each works.
    """

    run: Run
    number: int
    pods: int | None
    busy: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.number / self.run.seconds


def _fleet(costs: Costs, run: Run, number: int, connected: bool) -> _Fleet:
    """The smallest fleet whose pods are busy for at most `MOST_BUSY` of their time after one has gone.

    Args:
        connected: whether every run is connected to every pod, as by the client's round-robin, and not to proxies.
    """
    reconnecting = number / CONNECTION_AGE_SECONDS * costs.connections.processor if connected else 0.0
    calling = number / run.seconds * costs.of(run)
    network = number / run.seconds * 8 * run.step.message_bytes / MOST_BITS_A_SECOND
    if reconnecting >= MOST_BUSY or (connected and number * costs.connections.bytes > MOST_CONNECTION_BYTES):
        return _Fleet(run, number, None, math.nan)
    pods = 1 + max(1, math.ceil(calling / (MOST_BUSY - reconnecting)), math.ceil(network))
    return _Fleet(run, number, pods, calling / pods + reconnecting)


def _fleets(costs: Costs, effort: Effort, rng: np.random.Generator) -> str:
    header = ["", *(f"{number:,} {run.name}" for run in RUNS for number in NUMBERS)]
    columns = [dict(_column(costs, run, number, effort, rng)) for run in RUNS for number in NUMBERS]
    rows = [(what, *(column[what] for column in columns)) for what in columns[0]]
    return f"Fleets of pods with one worker, at most {MOST_BUSY:.0%} busy with one pod gone:\n\n" + markdown(
        header, rows
    )


def _column(costs: Costs, run: Run, number: int, effort: Effort, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    connected, behind = (_fleet(costs, run, number, each) for each in (True, False))
    fleet = behind if connected.pods is None else connected
    assert fleet.pods is not None
    yield "calls a second", f"{fleet.rate:,.1f}"
    yield "rewards a second", f"{_rounded(fleet.rate * run.step.prompts * run.step.samples):,}"
    yield "each way, Mbit/s", f"{fleet.rate * run.step.message_bytes * 8 / 1e6:,.1f}"
    yield "processors busy with calls", f"{fleet.rate * costs.of(run):.3g}"
    yield "pods, every client connected to each", "too many connections" if connected.pods is None else _pods(connected)
    yield "connections of a pod", f"{number:,}"
    yield "their memory, MiB", f"{number * costs.connections.bytes / 2**20:,.1f}"
    yield "taken anew by a pod, a second", f"{number / CONNECTION_AGE_SECONDS:,.1f}"
    yield "pods, behind proxies", _pods(behind)
    left = Queues(fleet.pods - 1, most_open=MOST_OPEN)
    waited = _waited(costs, costs.of(run), fleet.rate, left, effort, rng)
    yield "wait with a pod gone, p99, ms (simulated)", _milliseconds(waited)
    steps = effort.of(number, min(number, 100))
    all_at_once = rng.uniform(0.0, BURST_SECONDS, steps)
    burst = simulate(
        all_at_once, costs.services(costs.call[run.name], steps, rng), Queues(fleet.pods, most_open=MOST_OPEN), rng
    )
    yield "all step in one second: wait, p99, ms (simulated)", _milliseconds(burst.waited)
    yield f"and refused {ATTEMPTS} times (simulated)", f"{burst.failed:.0%}"
    of_runs = min(number, MOST_RUN_IDS + 1)
    yield "metric series", f"{_rounded(fleet.pods * (costs.pod_series + of_runs * costs.run_series)):,}"
    of_all = fleet.pods * (costs.pod_series + number * costs.run_series)
    yield "with `max_run_ids` for all", f"{_rounded(of_all):,}"


def _pods(fleet: _Fleet) -> str:
    return f"{fleet.pods}, each {fleet.busy:.1%} busy"


def _milliseconds(times: Times) -> str:
    return f"{float(np.nanpercentile(times, 99)) * 1e3:,.3g}"


def _rounded(value: float) -> int:
    """To three digits."""
    return int(float(f"{value:.3g}"))
