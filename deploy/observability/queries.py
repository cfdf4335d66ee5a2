"""What the dashboard asks Prometheus, in the pieces that several panels share."""

from __future__ import annotations

# The variables that every query is narrowed by; no query knows the name of a job.
JOBS = 'namespace=~"$namespace", job=~"$job"'
CHOSEN = f'{JOBS}, instance=~"$instance"'
OF_RUNS = 'run=~"$run"'
# What tells one run from another: people give the same name to runs of different jobs.
RUN = "run, namespace, job"
# Grafana's: at least four scrapes, and no less than there is between two points of a graph.
WINDOW = "$__rate_interval"

# Of the objectives that the alerts defend: docs/alerts.md.
FAILED = 'code=~"INTERNAL|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED"'
AVAILABLE = 0.999
IN_TIME = 0.99
IN_TIME_SECONDS = 0.25


def series(metric: str, *matchers: str) -> str:
    """A metric of the servers chosen."""
    return f"{metric}{{{', '.join((CHOSEN, *matchers))}}}"


def rate(metric: str, *matchers: str, window: str = WINDOW) -> str:
    """What a counter gains in a second."""
    return f"rate({series(metric, *matchers)}[{window}])"


def increase(metric: str, *matchers: str, window: str = WINDOW) -> str:
    """What a counter gains in a window."""
    return f"increase({series(metric, *matchers)}[{window}])"


def total(of: str, by: str = "") -> str:
    """A sum over servers and everything else but the labels named."""
    return f"sum by ({by}) ({of})" if by else f"sum({of})"


def with_whole_names(of_runs: str, by: str = "run") -> str:
    """The same by fewer labels, where the name of a run says its namespace and job too: for tables."""
    return total(f'label_join({of_runs}, "run", " ", "run", "namespace", "job")', by)


def ratio(part: str, whole: str) -> str:
    """A quotient that is absent, rather than no number, where there was nothing to divide by."""
    return f"{part}\n/ ({whole} > 0)"


def quantile(q: float, metric: str, by: str = "") -> str:
    """A quantile of a histogram; absent where nothing was observed, by the comparison that no number passes."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {total(rate(f'{metric}_bucket'), labels)}) >= 0"


def max_at_k(by: str, *matchers: str) -> str:
    """Mean max@k of the groups of a window. Parts below 0 are counted apart, as magnitudes; a run may lack either."""
    sums = "\n  or ".join(
        sign + rate("pkpo_max_at_k_sum_total", OF_RUNS, *matchers, f'sign="{name}"')
        for sign, name in (("", "positive"), ("-", "negative"))
    )
    return ratio(total(sums, by), total(rate("pkpo_max_at_k_groups_total", OF_RUNS, *matchers), by))


def current_k(by: str) -> str:
    """Mean k that the groups of a window were transformed with."""
    return ratio(total(rate("pkpo_k_sum_total", OF_RUNS), by), total(rate("pkpo_k_groups_total", OF_RUNS), by))


def share_of_groups(by: str, *metrics: str) -> str:
    """Share of the groups transformed that counters of groups counted."""
    counted = " + ".join(total(rate(metric, OF_RUNS), by) for metric in metrics)
    transformed = total(rate("pkpo_groups_total", OF_RUNS, 'variant!="none"'), by)
    return ratio(f"({counted})" if len(metrics) > 1 else counted, transformed)


def stage_seconds() -> str:
    """Mean seconds by stage of the requests that were answered with a result."""
    answered = total(rate("pkpo_requests_total", 'code="OK"', 'method!="GetServerInfo"'))
    return f"{total(rate('pkpo_stage_seconds_total'), 'stage')}\n/ on () group_left () ({answered} > 0)"


def failed_ratio(window: str = WINDOW) -> str:
    """Share of requests that were not answered through our fault."""
    return ratio(
        total(rate("pkpo_requests_total", FAILED, window=window)),
        total(rate("pkpo_requests_total", 'code!="UNAUTHENTICATED"', window=window)),
    )


def in_time_ratio(window: str = WINDOW) -> str:
    """Share of requests that took no longer than the objective allows."""
    in_time = total(rate("pkpo_request_seconds_bucket", f'le="{IN_TIME_SECONDS}"', window=window))
    return ratio(in_time, total(rate("pkpo_request_seconds_count", window=window)))


def budget_left(bad_ratio: str, objective: float) -> str:
    """How much of the share that may be bad is not yet used: 1 at first, below 0 when overspent."""
    return f"1 - ({bad_ratio}) / {1 - objective:g}"
