"""What a Prometheus answers to the dashboard's queries, asked as Grafana would."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Series(NamedTuple):
    """One line of an answer.

    Attributes:
        name: what the legend calls it.
        labels: of Prometheus.
        times, values: in seconds, and where there is a value.
    """

    name: str
    labels: Mapping[str, str]
    times: list[float]
    values: list[float]


@dataclass(frozen=True)
class Source:
    """A Prometheus, and what is chosen above the dashboard.

    Args:
        url: of the Prometheus.
        minutes: that are shown, up to now.
        scrape_seconds: how often it scrapes.
        chosen: the values of the dashboard's variables.
        points: in a graph, at most.
    """

    url: str
    minutes: float
    scrape_seconds: float
    chosen: Mapping[str, str]
    points: int = 180

    def answer(self, target: Mapping[str, Any], scoped: Mapping[str, str]) -> list[Series]:
        """The series of a query; `scoped` are variables of one panel alone, as where it is repeated."""
        chosen = {**self.chosen, **scoped}
        least = _seconds(_filled(target.get("interval") or f"{self.scrape_seconds}s", chosen))
        step = max(math.ceil(self.minutes * 60 / self.points), least)
        chosen |= {"__rate_interval": f"{max(step + least, 4 * least):.0f}s", "__range": f"{self.minutes * 60:.0f}s"}
        expr, now = _filled(target["expr"], chosen), time.time()
        if target["instant"]:
            found = self._asked("query", query=expr, time=now)
        else:
            found = self._asked("query_range", query=expr, start=now - self.minutes * 60, end=now, step=step)
        return [_series(target, each) for each in found]

    def label_values(self, query: str) -> list[str]:
        """What a variable has to offer whose query is `label_values(metric, label)`."""
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert match is not None, query
        found = self._asked("query", query=f"count by ({match[2]}) ({_filled(match[1], self.chosen)})")
        return sorted(each["metric"][match[2]] for each in found if match[2] in each["metric"])

    def _asked(self, path: str, **parameters: object) -> list[dict[str, Any]]:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result


def _filled(text: str, chosen: Mapping[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda match: chosen[match[1]], text)


def _seconds(duration: str) -> float:
    return float(duration[:-1]) * {"s": 1, "m": 60}[duration[-1]]


def _series(target: Mapping[str, Any], found: Mapping[str, Any]) -> Series:
    labels = found["metric"]
    name = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target.get("legendFormat", "")).strip()
    points = found["values"] if "values" in found else [found["value"]]
    return Series(name, labels, [float(when) for when, _ in points], [float(value) for _, value in points])
