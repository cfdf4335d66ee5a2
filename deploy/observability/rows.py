"""What is on the dashboard: the first row for who is paged, the second for who trains, the others for who looks why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from deploy.observability import panels
from deploy.observability.panels import RUN_STEP, SEQUENCE, Panel, over_run, over_time
from deploy.observability.queries import (
    AVAILABLE,
    FAILED,
    IN_TIME,
    IN_TIME_SECONDS,
    OF_RUNS,
    RUN,
    budget_left,
    current_k,
    failed_ratio,
    in_time_ratio,
    increase,
    max_at_k,
    quantile,
    rate,
    ratio,
    series,
    share_of_groups,
    stage_seconds,
    total,
    with_whole_names,
)

# Names that cover both a cluster, whose scrapes know pods, and a Prometheus that is given addresses.
NAMED = 'run!~"none|other"'
SERVER, SERVER_NAME = "pod, instance", "{{pod}} {{instance}}"
RUN_NAME = "{{run}} {{namespace}} {{job}}"
DAY_SECONDS = 24 * 60 * 60
CURVE_K = (1, 2, 4, 8, 16, 32, 64)
OF_THE_CURVE = {f"k = {k}": colour for k, colour in zip(CURVE_K, SEQUENCE, strict=True)}


class Row(NamedTuple):
    """A heading and what is below it."""

    title: str
    panels: Iterable[Panel]


def rows() -> list[Row]:
    """All of them, from the top."""
    return [
        Row("At a glance", [*at_a_glance(), how_to_read()]),
        Row("Training runs", training_runs()),
        Row("Each run", [each_run()]),
        Row("Throughput", throughput()),
        Row("Latency", latency()),
        Row("Saturation", saturation()),
        Row("Refusals", refusals()),
        Row("Fleet", fleet()),
    ]


def at_a_glance() -> list[Panel]:
    """Whether all is well."""
    info = series("pkpo_build_info")
    return [
        panels.number(
            "Servers",
            "Servers that are scraped, and the workers in them that take calls. Below what was asked for: see Fleet.",
            over_time(f"count({info})", "servers", "A"),
            over_time(total(f"{series('pkpo_workers')} or on (namespace, job, instance) {info}"), "workers", "B"),
            unit="none",
            steps=((None, "red"), (1, "green")),
        ),
        panels.number(
            "Training runs",
            "Runs, by their run_id, that had groups of rewards transformed within the last steps. Those without one,"
            " and those that came after a server's max_run_ids, are not among them.",
            over_run(f"count({total(rate('pkpo_groups_total', NAMED), RUN)} > 0) or vector(0)", "runs"),
            unit="none",
        ),
        panels.number(
            "Requests per second",
            "Unary calls, and messages on streams, that were answered, with a result or without.",
            over_time(total(rate("pkpo_requests_total")), "requests"),
            unit="reqps",
        ),
        panels.number(
            "Rewards per second",
            "Rewards answered with advantages or estimates: the work done.",
            over_time(total(rate("pkpo_rewards_total")), "rewards"),
            unit="short",
        ),
        panels.number(
            "Failed requests",
            "Share of requests that failed through our fault: with INTERNAL, UNAVAILABLE, RESOURCE_EXHAUSTED or"
            f" DEADLINE_EXCEEDED. Clients try most of them again. The objective allows {1 - AVAILABLE:.1%}.",
            over_time(failed_ratio(), "failed"),
            unit="percentunit",
            decimals=2,
            steps=((None, "green"), (1 - AVAILABLE, "orange"), (14.4 * (1 - AVAILABLE), "red")),
            otherwise="no requests",
        ),
        panels.number(
            "99th percentile",
            "Of the time from a request's arrival in the process to its answer, over all methods. The network, and"
            f" the client's own time, come on top. The objective is {IN_TIME_SECONDS:g} s.",
            over_time(quantile(0.99, "pkpo_request_seconds"), "p99"),
            unit="s",
            steps=((None, "green"), (IN_TIME_SECONDS / 2, "orange"), (IN_TIME_SECONDS, "red")),
            otherwise="no requests",
        ),
        panels.number(
            "Error budget left",
            f"Of the {1 - AVAILABLE:.1%} of requests that may fail, what is not used up yet in the time that the"
            " dashboard shows. Choose 30 days to see the objective's own window. Below 0 it is overspent.",
            over_time(budget_left(failed_ratio("$__range"), AVAILABLE), "left").instant(),
            unit="percentunit",
            steps=((None, "red"), (0, "orange"), (0.5, "green")),
            otherwise="no requests",
        ),
        panels.number(
            "Latency budget left",
            f"Of the {1 - IN_TIME:.0%} of requests that may take longer than {IN_TIME_SECONDS:g} s, what is not used up"
            " yet in the time that the dashboard shows.",
            over_time(budget_left(f"1 - {in_time_ratio('$__range')}", IN_TIME), "left").instant(),
            unit="percentunit",
            steps=((None, "red"), (0, "orange"), (0.5, "green")),
            otherwise="no requests",
        ),
    ]


def how_to_read() -> Panel:
    """Where to go from here."""
    return panels.note(
        "How to read this",
        "Where to look first, and which pages tell more.",
        "**Paged?** Each alert has a section in `docs/alerts.md`. *Refusals* is what callers are told, *Saturation*"
        " whether there are too few servers. **Training?** *Training runs* compares runs at the *k* chosen above, *Each"
        " run* has the whole curve of each. Set *run step* to a quarter of the time between two training steps, or"
        " more. All metrics: `docs/metrics.md`.",
        3,
    )


def training_runs() -> list[Panel]:
    """How the runs are doing, side by side."""
    return [
        panels.columns(
            "Runs now",
            "Each run over its last steps, with its namespace and job: several may have runs of one name. One with few"
            " groups that carry a signal is learning from those alone.",
            {
                "pass@1": with_whole_names(max_at_k(RUN, 'k="1"')),
                "pass@4": with_whole_names(max_at_k(RUN, 'k="4"')),
                "pass@16": with_whole_names(max_at_k(RUN, 'k="16"')),
                "k": with_whole_names(current_k(RUN)),
                "without signal": with_whole_names(share_of_groups(RUN, "pkpo_zero_signal_groups_total")),
                "groups/s": with_whole_names(total(rate("pkpo_groups_total", OF_RUNS), RUN)),
                "rewards/s": with_whole_names(total(rate("pkpo_rewards_total", OF_RUNS), RUN)),
            },
            labels={"run": "run"},
            units={"without signal": "percentunit", "groups/s": "short", "rewards/s": "short"},
            width=12,
            height=8,
            sort="rewards/s",
            step=RUN_STEP,
        ),
        panels.curve(
            "pass@k over k, now",
            "The curve of each run over its last steps: the unbiased estimate of max@k, which for rewards of 0 and 1"
            " is pass@k. A run has points up to the size of its groups.",
            with_whole_names(max_at_k(f"{RUN}, k"), "run, k"),
            x="k",
            name="run",
            unit="none",
            width=12,
        ),
        panels.of_runs(
            panels.lines(
                "pass@$k",
                "The unbiased estimate of max@k at the k chosen above, which for rewards of 0 and 1 is pass@k. Only"
                " groups of at least k rewards have one.",
                over_run(max_at_k(RUN, 'k="$k"'), RUN_NAME),
                unit="none",
                bounds=(None, None),
                calculations=("min", "max", "lastNotNull"),
            )
        ),
        panels.of_runs(
            panels.lines(
                "Groups without signal",
                "Share of groups whose rewards are all equal or whose advantages are all 0: too easy, too hard, or a k"
                " that is too large.",
                over_run(share_of_groups(RUN, "pkpo_zero_signal_groups_total"), RUN_NAME),
                unit="percentunit",
                bounds=(0, 1),
            )
        ),
        panels.of_runs(
            panels.lines(
                "k",
                "Mean k of the groups of the last steps; 0 where the variant uses none. It moves where the trainer has"
                " a schedule for k, or small groups lower it.",
                over_run(f"{current_k(RUN)}\nor 0 * ({total(rate('pkpo_groups_total', OF_RUNS), RUN)} > 0)", RUN_NAME),
                unit="none",
                calculations=("lastNotNull",),
            )
        ),
        panels.of_runs(
            panels.lines(
                "Rewards per second by run",
                "Which run the work is for.",
                over_run(total(rate("pkpo_rewards_total", OF_RUNS), RUN), RUN_NAME),
                unit="short",
                stacked=True,
            )
        ),
        panels.of_runs(
            panels.lines(
                "Groups per second by run",
                "Prompts that are trained on, where a group is a prompt's samples.",
                over_run(total(rate("pkpo_groups_total", OF_RUNS), RUN), RUN_NAME),
                unit="short",
                stacked=True,
            )
        ),
        panels.of_runs(
            panels.lines(
                "Groups with k lowered, or too small",
                "Share of groups that were too small for the k asked for, or for any. It ought to be 0 where every"
                " prompt has all its samples.",
                over_run(share_of_groups(RUN, "pkpo_clamped_groups_total", "pkpo_too_small_groups_total"), RUN_NAME),
                unit="percentunit",
                bounds=(0, None),
            )
        ),
    ]


def each_run() -> Panel:
    """A panel for every run chosen."""
    panel = panels.lines(
        "$run",
        "The run's pass@k over time, one line for each k. Lines that close up: more samples help less, and the policy"
        " loses diversity. Of runs of one name it is their mean: choose a job above.",
        over_run(max_at_k("k"), "k = {{k}}"),
        unit="none",
        bounds=(None, None),
        calculations=("lastNotNull",),
    )
    return (
        panels.legend_beside(panels.of_runs(panels.coloured(panel, OF_THE_CURVE))).repeat("run").repeat_direction("h")
    )


def throughput() -> list[Panel]:
    """What is asked for."""
    return [
        panels.lines(
            "Requests by method",
            "Requests answered, with a result or without; for TransformStream each message.",
            over_time(total(rate("pkpo_requests_total"), "method"), "{{method}}"),
            unit="reqps",
            stacked=True,
            width=6,
        ),
        panels.lines(
            "Rewards by variant",
            "Rewards per second; `none` are those of Estimate.",
            over_time(f"{total(rate('pkpo_rewards_total'), 'variant')} > 0", "{{variant}}"),
            unit="short",
            stacked=True,
            width=6,
        ),
        panels.lines(
            "Groups by variant",
            "Groups of rewards per second; `none` are those of Estimate.",
            over_time(f"{total(rate('pkpo_groups_total'), 'variant')} > 0", "{{variant}}"),
            unit="short",
            stacked=True,
            width=6,
        ),
        panels.density(
            "Rewards in a request",
            "How large the batches are. Many small ones cost more than few large ones: each request has a price of its"
            " own.",
            total(increase("pkpo_batch_rewards_bucket"), "le"),
            unit="short",
            scheme="Purples",
            width=6,
        ),
    ]


def latency() -> list[Panel]:
    """How long it takes, and where."""
    return [
        panels.lines(
            "Time to an answer",
            "Median and 99th percentile by method, read off buckets whose bounds are a factor of 2 to 2.5 apart. The"
            " dashed line is the objective.",
            over_time(quantile(0.5, "pkpo_request_seconds", "method"), "{{method}} median", "A"),
            over_time(quantile(0.99, "pkpo_request_seconds", "method"), "{{method}} 99th", "B"),
            unit="s",
            logarithmic=True,
            limit=IN_TIME_SECONDS,
            width=6,
        ),
        panels.coloured(
            panels.lines(
                "Where the time goes",
                "Mean of a request that was answered with a result: reading its message, waiting for a thread,"
                " computing, writing the answer. Waiting grows first when there are too few servers.",
                over_time(stage_seconds(), "{{stage}}"),
                unit="s",
                stacked=True,
                width=6,
            ),
            {"read": "blue", "wait": "orange", "compute": "green", "write": "purple"},
        ),
        panels.density(
            "Requests by time to an answer",
            "All methods. Two bands are two kinds of request, large and small, say; one that rises is a queue.",
            total(increase("pkpo_request_seconds_bucket"), "le"),
            unit="s",
            scheme="Oranges",
            width=6,
        ),
        panels.lines(
            "Answered in time",
            f"Share of requests that took at most {IN_TIME_SECONDS:g} s. The objective is {IN_TIME:.0%}, the dashed"
            " line.",
            over_time(in_time_ratio(), "in time"),
            unit="percentunit",
            bounds=(None, 1),
            likely_least=0.98,
            limit=IN_TIME,
            width=6,
            calculations=("min", "mean", "lastNotNull"),
        ),
    ]


def saturation() -> list[Panel]:
    """How much room there is."""
    fullest = "max(" + ratio(series("pkpo_open_calls"), series("pkpo_open_calls_limit")) + ")"
    return [
        panels.dashed(
            panels.lines(
                "Open calls against their limit",
                "Calls and streams open at once in all servers, and how many would be taken. Beyond the limit of a"
                " worker, calls are refused as `overloaded`.",
                over_time(total(series("pkpo_open_calls")), "open calls", "A"),
                over_time(total(series("pkpo_open_streams")), "of them streams", "B"),
                over_time(total(series("pkpo_open_calls_limit")), "limit", "C"),
                unit="short",
                width=6,
            ),
            "limit",
        ),
        panels.lines(
            "Fullest server",
            "Open calls over their limit, in the server where that is highest. Far above the others: the load is not"
            " spread.",
            over_time(fullest, "fullest"),
            unit="percentunit",
            bounds=(0, 1),
            limit=0.8,
            width=6,
            calculations=("max", "lastNotNull"),
        ),
        panels.dashed(
            panels.lines(
                "Computing threads",
                "Requests that are computed in a thread or wait for one, and the threads there are. Small requests"
                " need none. Above the dashed line, they wait.",
                over_time(total(series("pkpo_in_flight"), "method"), "{{method}}", "A"),
                over_time(total(series("pkpo_threads")), "threads", "B"),
                unit="short",
                width=6,
            ),
            "threads",
        ),
        panels.dashed(
            panels.lines(
                "Held messages against their limit",
                "Size of the messages whose answers wait for a thread or are computed, in all servers. Beyond the limit"
                " of a worker, big batches are refused as `memory`; as `queue` where they would wait long for their"
                " turn.",
                over_time(total(series("pkpo_held_bytes")), "held", "A"),
                over_time(total(series("pkpo_held_bytes_limit")), "limit", "B"),
                unit="bytes",
                width=6,
            ),
            "limit",
        ),
        panels.lines(
            "Processors",
            "Processor time of each server, in processors. At its limit, it is throttled: add servers.",
            over_time(total(rate("process_cpu_seconds_total"), SERVER), SERVER_NAME),
            unit="short",
            width=6,
        ),
        panels.lines(
            "Memory",
            "Resident memory of each server. A batch being computed takes about five times the bytes of its rewards.",
            over_time(total(series("process_resident_memory_bytes"), SERVER), SERVER_NAME),
            unit="bytes",
            width=6,
        ),
        panels.lines(
            "Open files",
            "File descriptors of each server: a connection is one.",
            over_time(total(series("process_open_fds"), SERVER), SERVER_NAME),
            unit="short",
            width=6,
        ),
        panels.dashed(
            panels.lines(
                "Runs with series of their own",
                "Summed over workers, and how many may have them. Runs beyond the limit of a worker are counted as"
                " `other` until one of theirs has been idle for long.",
                over_time(total(series("pkpo_runs")), "runs", "A"),
                over_time(total(series("pkpo_runs_limit")), "limit", "B"),
                unit="none",
                width=6,
            ),
            "limit",
        ),
    ]


def refusals() -> list[Panel]:
    """What callers are told instead of a result."""
    return [
        panels.bars_over_time(
            panels.lines(
                "Refusals by cause",
                "By the first field at fault, or by why the request was not looked at. A field: the caller's mistake."
                " `overloaded`, `memory`, `queue`, `starting`, `draining`, `deadline`, `internal`: ours.",
                over_time(f"{total(rate('pkpo_refused_total'), 'reason')} > 0", "{{reason}}"),
                unit="reqps",
                stacked=True,
                width=10,
            )
        ),
        panels.columns(
            "Refusals in the time shown",
            "How many by each cause.",
            {"requests": f"round({total(increase('pkpo_refused_total', window='$__range'), 'reason')}) > 0"},
            labels={"reason": "cause"},
            units={"requests": "short"},
            width=5,
            height=8,
            sort="requests",
        ),
        panels.coloured(
            panels.lines(
                "Failed through our fault, by code",
                "UNAVAILABLE: starting or draining. RESOURCE_EXHAUSTED: too many calls. DEADLINE_EXCEEDED: the caller"
                " gave up. INTERNAL: a bug; the log has the request id.",
                over_time(total(rate("pkpo_requests_total", FAILED), "code"), "{{code}}"),
                unit="reqps",
                width=9,
            ),
            {"INTERNAL": "red", "UNAVAILABLE": "orange", "RESOURCE_EXHAUSTED": "yellow", "DEADLINE_EXCEEDED": "purple"},
        ),
    ]


def fleet() -> list[Panel]:
    """What runs."""
    versions = ("version", "python", "numba", "numpy", "grpcio")
    restarts = (
        f"{increase('pkpo_worker_restarts_total')}"
        f"\n  or on (namespace, job, instance) changes({series('process_start_time_seconds')}[$__rate_interval])"
    )
    return [
        panels.columns(
            "Versions",
            "What the servers run. More than one line lasts only as long as an upgrade.",
            {"servers": f"count by ({', '.join(versions)}) ({series('pkpo_build_info')})"},
            labels={name: name for name in versions},
            units={},
            width=8,
            height=8,
            sort="servers",
        ),
        panels.states(
            "Servers up",
            "Whether each server could be scraped. One that ends is a pod that went; one that is down is there, but"
            " does not answer.",
            over_time(f"max by ({SERVER}) ({series('up')})", SERVER_NAME),
            {"0": ("down", "red"), "1": ("up", "green")},
            6,
        ),
        panels.bars_over_time(
            panels.lines(
                "Restarts",
                "Workers that died and were replaced; of a server without several workers, starts of its process."
                " Their connections fail with UNAVAILABLE.",
                over_time(f"round({total(restarts, SERVER)})", SERVER_NAME),
                unit="none",
                width=5,
                calculations=("max", "lastNotNull"),
            )
        ),
        panels.number(
            "Certificates end in",
            "The time left of the server's certificate, and of those that sign the clients' certificates; of each the"
            " first that ends. A renewed one counts as soon as its files are there.",
            over_time(
                f"min by (certificate) ({series('pkpo_certificate_expiry_timestamp_seconds')} - time())",
                "{{certificate}}",
            ),
            unit="s",
            steps=((None, "red"), (3 * DAY_SECONDS, "orange"), (14 * DAY_SECONDS, "green")),
            otherwise="no TLS",
            width=5,
            height=8,
        ),
    ]
