"""The Grafana dashboard, written where the chart and compose look for it.

python -m deploy.observability.dashboard [FILE]
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from deploy.observability.panels import SOURCE
from deploy.observability.queries import CHOSEN, JOBS
from deploy.observability.rows import CURVE_K, rows

FILE = Path(__file__).parents[1] / "helm" / "pkpo" / "files" / "dashboard.json"


class Firing(dashboard.AnnotationQuery):  # type: ignore[misc, unused-ignore]
    """Marks on every graph, of the times our alerts fired; with the fields that the library's class does not know."""

    def to_json(self) -> dict[str, object]:
        """As Grafana reads it."""
        return {**super().to_json(), "titleFormat": "{{alertname}}", "tagKeys": "severity,namespace,job,run"}


def built() -> dashboard.Dashboard:
    """The dashboard."""
    whole = (
        board.Dashboard("pkpo")
        .uid("pkpo")
        .description("The reward transform service: how it is doing, and how the runs that train through it are doing.")
        .tags(["pkpo"])
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .readonly()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(board.DatasourceVariable("datasource").label("data source").type("prometheus"))
        .with_variable(_of_label("namespace", "pkpo_build_info").all_value(".*"))
        .with_variable(_of_label("job", 'pkpo_build_info{namespace=~"$namespace"}'))
        .with_variable(_of_label("instance", f"pkpo_build_info{{{JOBS}}}").label("server").all_value(".*"))
        .with_variable(_of_label("run", f"pkpo_max_at_k_groups_total{{{CHOSEN}}}"))
        .with_variable(_one_of("k", "of pass@k over time", [str(k) for k in CURVE_K], "4"))
        .with_variable(_one_of("run_step", "Least distance of points of runs", ["15s", "1m", "5m", "15m"], "1m"))
    )
    numbers = itertools.count(1)
    for row in rows():
        whole.with_row(board.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            whole.with_panel(panel.id(next(numbers)))
    finished = whole.build()
    alerts = f'ALERTS{{{JOBS}, alertname=~"Pkpo.+", alertstate="firing"}}'
    finished.annotations.list_val = [Firing("Alerts", SOURCE, icon_color="red", expr=alerts)]
    return finished


def _of_label(label: str, metric: str) -> board.QueryVariable:
    """A choice among the values a label has; all of them at first."""
    return (
        board.QueryVariable(label)
        .label(label)
        .datasource(SOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _one_of(name: str, description: str, values: Sequence[str], first: str) -> board.CustomVariable:
    """A choice of one among values written here."""
    return (
        board.CustomVariable(name)
        .label(name.replace("_", " "))
        .description(description)
        .values(",".join(values))
        .options([dashboard.VariableOption(value == first, value, value) for value in values])
        .current(dashboard.VariableOption(True, first, first))
    )


def main() -> None:
    """Writes it."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    file.write_text(json.dumps(built(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
