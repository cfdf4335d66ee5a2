"""What is counted: names, labels and meaning, from which the documented table comes, and the counting."""

from __future__ import annotations

import asyncio
import platform
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import Any, NamedTuple

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pkpo import __version__
from pkpo_core import Variant
from pkpo_server.codec import Tally
from pkpo_server.curves import Curves
from pkpo_server.prometheus import Definition
from pkpo_server.run_files import RUN_LABEL
from pkpo_server.runs import NO_RUN, Runs

TRANSFORM, TRANSFORM_STREAM, ESTIMATE, GET_SERVER_INFO = "Transform", "TransformStream", "Estimate", "GetServerInfo"
METHODS = (TRANSFORM, TRANSFORM_STREAM, ESTIMATE, GET_SERVER_INFO)
# What is answered meanwhile is counted together.
COUNTING_SECONDS = 0.05
# Runs that end about the same time are let go together, which takes as long as one.
LETTING_GO_SECONDS = 1.0
NO_VARIANT, UNKNOWN_VARIANT = "none", "unknown"
OTHER_REASON = "other"
STATUS_CODES = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INTERNAL,
)
CODES = tuple(code.name for code in STATUS_CODES)
REASONS = (
    "message",
    "request",
    "groups",
    "groups.rewards",
    "groups.shape",
    "groups.group_size",
    "groups.group_sizes",
    "variant",
    "k",
    "scale",
    "k_policy",
    "estimate_k",
    "run_id",
    "overloaded",
    "memory",
    "queue",
    "starting",
    "draining",
    "deadline",
    "cancelled",
    "unauthenticated",
    "permission",
    "internal",
)
READ, WAIT, COMPUTE, WRITE = STAGES = ("read", "wait", "compute", "write")
TOKENS, CERTIFICATE = SECRETS = ("tokens", "certificate")
POSITIVE, NEGATIVE = SIGNS = ("positive", "negative")
# A small batch takes about 0.1 ms and the largest some seconds; 30 s is the client's default deadline. Steps of 2 to
# 2.5 keep a quantile read off them within that factor.
SECONDS_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Batches range over six powers of ten, from one prompt to the default limits; a factor of 4 tells them apart.
REWARDS_BUCKETS = tuple(4.0**i for i in range(1, 13))
GROUPS_BUCKETS = tuple(4.0**i for i in range(11))


REQUESTS = Definition(
    Counter,
    "pkpo_requests_total",
    "requests",
    "Requests answered: unary calls, and for TransformStream each message. Variant is `none` where the method has none,"
    " `unknown` where the request names none that exists.",
    ("method", "variant", "code"),
)
REFUSED = Definition(
    Counter,
    "pkpo_refused_total",
    "requests",
    "Requests not answered with a result, by the first field at fault, or by why none was looked at.",
    ("reason",),
)
GROUPS = Definition(Counter, "pkpo_groups_total", "groups", "Groups of rewards answered.", ("variant", RUN_LABEL))
REWARDS = Definition(Counter, "pkpo_rewards_total", "rewards", "Rewards answered.", ("variant", RUN_LABEL))
ZERO_SIGNAL = Definition(
    Counter,
    "pkpo_zero_signal_groups_total",
    "groups",
    "Groups whose rewards are all equal or whose advantages are all 0: the run learns nothing from them.",
    ("variant", RUN_LABEL),
)
CLAMPED = Definition(
    Counter,
    "pkpo_clamped_groups_total",
    "groups",
    "Groups whose k was lowered to the largest legal one.",
    ("variant", RUN_LABEL),
)
TOO_SMALL = Definition(
    Counter,
    "pkpo_too_small_groups_total",
    "groups",
    "Groups too small for any k, answered with zeros.",
    ("variant", RUN_LABEL),
)
OF_TRANSFORMS = (ZERO_SIGNAL, CLAMPED, TOO_SMALL)
MAX_AT_K = Definition(
    Counter,
    "pkpo_max_at_k_sum_total",
    "rewards' own",
    "Sum over groups of the unbiased estimate of max@k, which for rewards of 0 and 1 is pass@k. A counter cannot fall,"
    " so what is below 0 is summed apart, as a magnitude.",
    (RUN_LABEL, "k", "sign"),
)
MAX_AT_K_GROUPS = Definition(
    Counter,
    "pkpo_max_at_k_groups_total",
    "groups",
    "Groups in that sum: those of at least k rewards. Where there are many some are drawn, and each counts for all that"
    " it was drawn from.",
    (RUN_LABEL, "k"),
)
SUM_OF_K = Definition(
    Counter, "pkpo_k_sum_total", "samples", "Sum over groups of the k they were transformed with.", (RUN_LABEL,)
)
K_GROUPS = Definition(
    Counter, "pkpo_k_groups_total", "groups", "Groups in that sum: those whose variant uses k.", (RUN_LABEL,)
)
REQUEST_SECONDS = Definition(
    Histogram,
    "pkpo_request_seconds",
    "seconds",
    "From a request's arrival in the process to its answer, without the network.",
    ("method",),
    SECONDS_BUCKETS,
)
KERNEL_SECONDS = Definition(
    Counter,
    "pkpo_kernel_seconds_total",
    "seconds",
    "Time spent computing, without parsing and writing messages.",
    ("variant",),
)
STAGE_SECONDS = Definition(
    Counter,
    "pkpo_stage_seconds_total",
    "seconds",
    "Where the time of requests answered with a result went: to `read` the message, to `wait` for a thread, to"
    " `compute`, to `write` the answer's bytes.",
    ("method", "stage"),
)
BATCH_REWARDS = Definition(
    Histogram, "pkpo_batch_rewards", "rewards", "Rewards in a request answered.", (), REWARDS_BUCKETS
)
BATCH_GROUPS = Definition(Histogram, "pkpo_batch_groups", "groups", "Groups in a request answered.", (), GROUPS_BUCKETS)
IN_FLIGHT = Definition(
    Gauge,
    "pkpo_in_flight",
    "requests",
    "Requests being answered in threads; smaller ones are answered at once.",
    ("method",),
)
THREADS = Definition(Gauge, "pkpo_threads", "threads", "Threads that compute big batches.")
OPEN_CALLS = Definition(Gauge, "pkpo_open_calls", "calls", "Calls and streams open, as of up to 50 ms ago.")
OPEN_CALLS_LIMIT = Definition(Gauge, "pkpo_open_calls_limit", "calls", "Calls and streams that are taken at most.")
WAITING = Definition(Gauge, "pkpo_waiting", "requests", "Requests that wait for a thread, as of up to 50 ms ago.")
HELD_BYTES = Definition(
    Gauge,
    "pkpo_held_bytes",
    "bytes",
    "Size of messages that wait, are computed or whose answers were not taken, or of those answers, likewise.",
)
HELD_BYTES_LIMIT = Definition(Gauge, "pkpo_held_bytes_limit", "bytes", "How much of them is taken at most.")
OPEN_STREAMS = Definition(Gauge, "pkpo_open_streams", "streams", "Streams open.")
RUNS = Definition(
    Gauge, "pkpo_runs", "runs", "Runs that have series of their own; one that several workers serve counts in each."
)
RUNS_LIMIT = Definition(
    Gauge, "pkpo_runs_limit", "runs", "Runs that have them at most; those that come later share `other`."
)
CERTIFICATE_EXPIRY = Definition(
    Gauge,
    "pkpo_certificate_expiry_timestamp_seconds",
    "Unix seconds",
    "When the server's certificate expires, and of those that sign the clients' the first; where there is TLS.",
    ("certificate",),
    joined="livemin",
)
SECRETS_UNUSABLE = Definition(
    Gauge,
    "pkpo_secrets_unusable",
    "",
    "1 while the files of tokens, or of the certificate, cannot be used, so that the former count, and while there is"
    " no token in any file, so that nobody is let in; else 0. Where they are asked for.",
    ("kind",),
    joined="livemax",
)
BUILD_INFO = Definition(
    Gauge,
    "pkpo_build_info",
    "",
    "Always 1; what runs.",
    ("version", "python", "numba", "numpy", "grpcio"),
    joined="livemax",
)
DEFINITIONS = (
    REQUESTS,
    REFUSED,
    GROUPS,
    REWARDS,
    ZERO_SIGNAL,
    CLAMPED,
    TOO_SMALL,
    MAX_AT_K,
    MAX_AT_K_GROUPS,
    SUM_OF_K,
    K_GROUPS,
    REQUEST_SECONDS,
    STAGE_SECONDS,
    KERNEL_SECONDS,
    BATCH_REWARDS,
    BATCH_GROUPS,
    IN_FLIGHT,
    THREADS,
    OPEN_CALLS,
    OPEN_CALLS_LIMIT,
    WAITING,
    HELD_BYTES,
    HELD_BYTES_LIMIT,
    OPEN_STREAMS,
    RUNS,
    RUNS_LIMIT,
    CERTIFICATE_EXPIRY,
    SECRETS_UNUSABLE,
    BUILD_INFO,
)


@dataclass(frozen=True, slots=True)
class _VariantSeries:
    """What is counted of one variant in one training run."""

    groups: Counter
    rewards: Counter
    of_transforms: tuple[Counter, ...]


@dataclass(frozen=True, slots=True)
class _PointSeries:
    """What is counted of one k of a run's curve."""

    groups: Counter
    positive: Counter
    negative: Counter


class _RunSeries:
    """What is counted of one training run. Series are there from when they are first asked for, until all are removed.

    Args:
        run: how it is called.
        built: the metrics.
    """

    def __init__(self, run: str, built: Mapping[Definition, Any]) -> None:
        self.run = run
        self._built = built
        self._made: set[tuple[Any, tuple[str, ...]]] = set()
        self._variants: dict[str, _VariantSeries] = {}
        self._points: dict[int, _PointSeries] = {}
        self._k: tuple[Counter, Counter] | None = None

    def variant(self, variant: str) -> _VariantSeries:
        """Those of one variant."""
        series = self._variants.get(variant)
        if series is None:
            definitions = (GROUPS, REWARDS) if variant == NO_VARIANT else (GROUPS, REWARDS, *OF_TRANSFORMS)
            groups, rewards, *of_transforms = (self._series(each, variant, self.run) for each in definitions)
            series = self._variants[variant] = _VariantSeries(groups, rewards, tuple(of_transforms))
        return series

    def k(self) -> tuple[Counter, Counter]:
        """The sum of k, and the groups in it."""
        if self._k is None:
            self._k = self._series(SUM_OF_K, self.run), self._series(K_GROUPS, self.run)
        return self._k

    def point(self, k: int) -> _PointSeries:
        """Those of one k of the curve."""
        series = self._points.get(k)
        if series is None:
            sums = (self._series(MAX_AT_K, self.run, str(k), sign) for sign in SIGNS)
            series = self._points[k] = _PointSeries(self._series(MAX_AT_K_GROUPS, self.run, str(k)), *sums)
        return series

    def remove(self) -> None:
        """Removes all."""
        for metric, labels in self._made:
            metric.remove(*labels)

    def _series(self, definition: Definition, *labels: str) -> Counter:
        metric = self._built[definition]
        self._made.add((metric, labels))
        series: Counter = metric.labels(*labels)
        return series


class Stages(NamedTuple):
    """The seconds that parts of a request took."""

    read: float
    compute: float
    write: float


class Answered(NamedTuple):
    """A request that was answered with a result."""

    method: str
    variant: str
    run_id: str
    tally: Tally
    stages: Stages
    seconds: float


class _BeforeReading(Collector):
    """Does something whenever a registry is read, and has no metrics of its own."""

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done

    def collect(self) -> tuple[Metric, ...]:
        self._done()
        return ()


@dataclass(frozen=True, slots=True)
class Levels:
    """What goes up and down.

    Attributes:
        open_calls: how many calls are open.
        waiting: how many requests wait for a thread.
        held_bytes: the size of those, of what is computed and of what has answers that were not taken yet; or of the
            answers, where that is more.
    """

    open_calls: int
    waiting: int
    held_bytes: int


_AT_REST = Levels(0, 0, 0)


class Metrics:
    """The counters of one process. Every series that can be foreseen exists from the start, at zero.

    Series are looked up once and kept: the library's own look-up takes longer than counting. What was answered is put
    down and counted soon after, many at once, or when the registry is read: one at a time, between two requests, takes
    three times as long.

    Args:
        registry: where they are registered.
        runs: those that get series of their own.
        levels: what goes up and down.
    """

    def __init__(
        self, registry: CollectorRegistry, runs: Runs, levels: Callable[[], Levels] = lambda: _AT_REST
    ) -> None:
        self._uncounted: deque[tuple[Answered, _RunSeries]] = deque()
        self._curves = Curves()
        self._runs = runs
        self._of_runs: dict[str, _RunSeries] = {}
        self._levels = levels
        self._counting_soon = False
        # Registered first, it is read first. Curves stay for the event loop, which they belong to.
        registry.register(_BeforeReading(self._count_answered))
        self._built = {definition: definition.build(registry) for definition in DEFINITIONS}
        variants = [variant.name for variant in Variant]
        variants_of = {
            TRANSFORM: [*variants, UNKNOWN_VARIANT],
            TRANSFORM_STREAM: [*variants, UNKNOWN_VARIANT],
            ESTIMATE: [NO_VARIANT],
            GET_SERVER_INFO: [NO_VARIANT],
        }
        self._in_flight: dict[str, Gauge] = {method: self._series(IN_FLIGHT, method) for method in METHODS}
        self._seconds: dict[str, Histogram] = {method: self._series(REQUEST_SECONDS, method) for method in METHODS}
        self._requests: dict[tuple[str, str, grpc.StatusCode], Counter] = {
            (method, variant, code): self._series(REQUESTS, method, variant, code.name)
            for method in METHODS
            for variant in variants_of[method]
            for code in STATUS_CODES
        }
        self._refused: dict[str, Counter] = {
            reason: self._series(REFUSED, reason) for reason in (*REASONS, OTHER_REASON)
        }
        self._stage_seconds: dict[str, tuple[Counter, ...]] = {
            method: tuple(self._series(STAGE_SECONDS, method, stage) for stage in STAGES)
            for method in (TRANSFORM, TRANSFORM_STREAM, ESTIMATE)
        }
        self._kernel_seconds: dict[str, Counter] = {
            variant: self._series(KERNEL_SECONDS, variant) for variant in (*variants, NO_VARIANT)
        }
        of_none = self._of_runs[NO_RUN] = _RunSeries(NO_RUN, self._built)
        of_none.k()
        for variant in (*variants, NO_VARIANT):
            of_none.variant(variant)
        self._batch_rewards: Histogram = self._built[BATCH_REWARDS]
        self._batch_groups: Histogram = self._built[BATCH_GROUPS]
        self._open_calls_now: Gauge = self._built[OPEN_CALLS]
        self._waiting_now: Gauge = self._built[WAITING]
        self._held_bytes_now: Gauge = self._built[HELD_BYTES]
        self.open_streams: Gauge = self._built[OPEN_STREAMS]
        self._runs_now: Gauge = self._built[RUNS]
        self._watching_runs = False
        self._built[RUNS_LIMIT].set(runs.slots)
        what_runs = (__version__, platform.python_version(), *map(installed, ("numba", "numpy", "grpcio")))
        self._series(BUILD_INFO, *what_runs).set(1)

    def in_flight(self, method: str) -> Gauge:
        """The requests of one call that are being answered, but for those answered at once."""
        return self._in_flight[method]

    def capacity(self, calls: int, message_bytes: int, threads: int) -> None:
        """How many calls are taken at once and how much of their messages, and how many threads compute."""
        self._built[OPEN_CALLS_LIMIT].set(calls)
        self._built[HELD_BYTES_LIMIT].set(message_bytes)
        self._built[THREADS].set(threads)

    def watch_runs(self) -> None:
        """From now on, series of runs are removed once these are idle. To be called on the event loop."""
        self._runs_now.set(len(self._runs))
        seconds = self._runs.seconds_left()
        if seconds is not None and not self._watching_runs:
            self._watching_runs = True
            asyncio.get_running_loop().call_later(seconds + LETTING_GO_SECONDS, self._let_go)

    def certificates_expire(self, expiry: Mapping[str, float]) -> None:
        """When the certificates in use expire, in Unix seconds, by what they are."""
        for certificate, seconds in expiry.items():
            self._series(CERTIFICATE_EXPIRY, certificate).set(seconds)

    def secrets_unusable(self, kind: str, unusable: bool) -> None:
        """Whether secrets of a kind cannot be used as their files are now: TOKENS or CERTIFICATE."""
        self._series(SECRETS_UNUSABLE, kind).set(unusable)

    def finished(self, method: str, variant: str, code: grpc.StatusCode, seconds: float) -> None:
        """A request was answered, with a result or without."""
        self._requests[method, variant, code].inc()
        self._seconds[method].observe(seconds)

    def refused_unread(self, method: str, code: grpc.StatusCode) -> None:
        """A request was refused before it was looked at, which takes no time worth telling of."""
        self._requests[method, undecoded_variant(method), code].inc()

    def refused(self, reason: str) -> None:
        """It was not answered with a result."""
        self._refused[counted_reason(reason)].inc()

    def answered(self, answered: Answered) -> None:
        """It was answered with a result. To be called on the event loop."""
        run = self._run(answered.run_id)
        self._uncounted.append((answered, run))
        transformed, answered.tally.transformed = answered.tally.transformed, None
        self.count_soon()
        if transformed is not None:
            try:
                self._curves.keep(run.run, transformed)
            except Exception as error:
                # The answer is there, and leaves whether it is counted or not.
                context = {"message": "rewards were not counted", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def count_soon(self) -> None:
        """Something changed that is read off now and then. To be called on the event loop."""
        if not self._counting_soon:
            self._counting_soon = True
            asyncio.get_running_loop().call_later(COUNTING_SECONDS, self._count_now)

    def _count_now(self) -> None:
        self._counting_soon = False
        try:
            self._count_answered()
        finally:
            try:
                if self._curves:
                    self._count_curve()
            finally:
                if self._uncounted or self._curves:
                    self.count_soon()

    def count(self) -> None:
        """Counts all that was answered meanwhile. To be called on the event loop."""
        self._count_answered()
        while self._curves:
            self._count_curve()

    def _count_answered(self) -> None:
        # By any thread.
        while self._uncounted:
            try:
                answered, run = self._uncounted.popleft()
            except IndexError:
                break  # another thread was faster
            self._count(answered, run)
        levels = self._levels()
        self._open_calls_now.set(levels.open_calls)
        self._waiting_now.set(levels.waiting)
        self._held_bytes_now.set(levels.held_bytes)

    def _count_curve(self) -> None:
        name, points = self._curves.summed()
        run = self._of_runs.get(name)
        if run is None:
            return  # it was let go
        for point in points:
            series = run.point(point.k)
            series.groups.inc(point.groups)
            series.positive.inc(point.positive)
            series.negative.inc(point.negative)

    def _count(self, answered: Answered, run: _RunSeries) -> None:
        variant, tally = answered.variant, answered.tally
        self.finished(answered.method, variant, grpc.StatusCode.OK, answered.seconds)
        series = run.variant(variant)
        series.groups.inc(tally.groups)
        series.rewards.inc(tally.rewards)
        for counter, groups in zip(
            series.of_transforms, (tally.zero_signal, tally.clamped, tally.too_small), strict=False
        ):
            if groups:
                counter.inc(groups)
        sum_of_k, k_groups = run.k()
        if tally.groups_with_k:
            sum_of_k.inc(tally.sum_of_k)
            k_groups.inc(tally.groups_with_k)
        read, compute, write = answered.stages
        wait = max(0.0, answered.seconds - read - compute - write)
        for counter, seconds in zip(self._stage_seconds[answered.method], (read, wait, compute, write), strict=True):
            counter.inc(seconds)
        self._kernel_seconds[variant].inc(compute)
        self._batch_rewards.observe(tally.rewards)
        self._batch_groups.observe(tally.groups)

    def _run(self, run_id: str) -> _RunSeries:
        name = self._runs.name(run_id)
        run = self._of_runs.get(name)
        if run is None:
            run = self._of_runs[name] = _RunSeries(name, self._built)
            self.watch_runs()
        return run

    def _let_go(self) -> None:
        self._watching_runs = False
        try:
            for name in self._runs.let_go():
                run = self._of_runs.pop(name, None)
                if run is not None:
                    run.remove()
        finally:
            self.watch_runs()

    def _series(self, definition: Definition, *labels: str) -> Any:
        return self._built[definition].labels(*labels)


def counted_reason(reason: str) -> str:
    """The reason a refusal is filed under, of a small set."""
    return reason if reason in REASONS else OTHER_REASON


def undecoded_variant(method: str) -> str:
    """The variant a request is filed under before, or for want of, one that it names."""
    return UNKNOWN_VARIANT if method in (TRANSFORM, TRANSFORM_STREAM) else NO_VARIANT
