"""The kinds of panel there are, so that all of one kind look and behave alike. None is made without a description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import barchart, heatmap, stat, statetimeline, table, text, timeseries
from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.builders import prometheus as query
from grafana_foundation_sdk.models import common, dashboard, prometheus
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.text import TextMode

Panel = stat.Panel | timeseries.Panel | heatmap.Panel | barchart.Panel | table.Panel | statetimeline.Panel | text.Panel
Kind = TypeVar(
    "Kind", stat.Panel, timeseries.Panel, heatmap.Panel, barchart.Panel, table.Panel, statetimeline.Panel, text.Panel
)
Overridden = TypeVar("Overridden", timeseries.Panel, table.Panel)

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
# Runs call once a training step, which may take minutes: with this least distance of points, a rate looks back four
# of them, and a line is drawn through steps up to half an hour apart.
RUN_STEP = "$run_step"
RUN_GAP_MILLISECONDS = 30 * 60 * 1000
# From few samples to many, for the values of k.
SEQUENCE = ("#5794F2", "#7B6CF0", "#A352CC", "#C7459B", "#E0526A", "#F2784B", "#FADE2A")

Steps = Sequence[tuple[float | None, str]]


def over_time(expr: str, legend: str, ref: str = "A") -> query.Dataquery:
    """A query whose answer is a graph."""
    return _query(expr, ref).range().legend_format(legend)


def over_run(expr: str, legend: str) -> query.Dataquery:
    """The same, of what happens once a training step."""
    return over_time(expr, legend).interval(RUN_STEP)


def now(expr: str, ref: str = "A") -> query.Dataquery:
    """A query whose answer is a table of the last values."""
    return _query(expr, ref).instant().format(prometheus.PromQueryFormat.TABLE)


def _query(expr: str, ref: str) -> query.Dataquery:
    return query.Dataquery().expr(expr).ref_id(ref).datasource(SOURCE).editor_mode(prometheus.QueryEditorMode.CODE)


def number(
    title: str,
    description: str,
    *queries: query.Dataquery,
    unit: str,
    decimals: int | None = None,
    steps: Steps = ((None, "blue"),),
    otherwise: str = "none",
    width: int = 3,
    height: int = 4,
) -> stat.Panel:
    """The last value, large, over its recent course.

    Args:
        title, description, queries: what is shown, and what it says.
        unit: Grafana's name of it.
        decimals: shown; as many as are telling, by default.
        steps: from which value on which colour.
        otherwise: what is shown where there is no value.
        width, height: in columns and rows of the dashboard, which has 24 columns.
    """
    panel = _dressed(stat.Panel(), title, description, queries, width, height).unit(unit).no_value(otherwise)
    if decimals is not None:
        panel.decimals(decimals)
    return (
        panel.thresholds(_thresholds(steps))
        .color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .graph_mode(common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def lines(
    title: str,
    description: str,
    *queries: query.Dataquery,
    unit: str,
    width: int = 8,
    height: int = 8,
    stacked: bool = False,
    logarithmic: bool = False,
    bounds: tuple[float | None, float | None] = (0, None),
    likely_least: float | None = None,
    limit: float | None = None,
    calculations: Sequence[str] = ("mean", "lastNotNull"),
) -> timeseries.Panel:
    """Values over time, with a table of the series for a legend.

    Args:
        title, description, queries: what is shown, and what it says.
        unit: Grafana's name of it.
        width, height: in columns and rows of the dashboard.
        stacked: whether the series add up to something.
        logarithmic: whether values range over powers of ten.
        bounds: of the axis; None where the values say.
        likely_least: what the axis begins with where no value is less.
        limit: where a dashed line is drawn.
        calculations: the columns of the legend.
    """
    panel = (
        _dressed(timeseries.Panel(), title, description, queries, width, height)
        .unit(unit)
        .color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
        .line_width(1.5)
        .fill_opacity(35 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(_legend(calculations))
        .tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if logarithmic:
        panel.scale_distribution(build.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10))
    elif bounds[0] is not None:
        panel.min(bounds[0])
    if bounds[1] is not None:
        panel.max(bounds[1])
    if likely_least is not None:
        panel.axis_soft_min(likely_least)
    if limit is not None:
        panel.thresholds(_thresholds(((None, "transparent"), (limit, "red"))))
        panel.thresholds_style(build.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED))
    return panel


def of_runs(panel: timeseries.Panel) -> timeseries.Panel:
    """The same, drawn through the time between two training steps."""
    return panel.span_nulls(RUN_GAP_MILLISECONDS)


def bars_over_time(panel: timeseries.Panel) -> timeseries.Panel:
    """The same, as bars: for what is rare and comes in bursts."""
    return panel.draw_style(common.GraphDrawStyle.BARS).fill_opacity(80).line_width(0)


def legend_beside(panel: timeseries.Panel) -> timeseries.Panel:
    """The same, for more lines than there is room for below."""
    return panel.legend(_legend(("lastNotNull",)).placement(common.LegendPlacement.RIGHT).width(120))


def coloured(panel: Overridden, colours: Mapping[str, str]) -> Overridden:
    """The same, with a fixed colour for each series named."""
    for name, colour in colours.items():
        value = {"mode": "fixed", "fixedColor": colour}
        panel.override_by_name(name, [dashboard.DynamicConfigValue("color", value)])
    return panel


def dashed(panel: timeseries.Panel, name: str) -> timeseries.Panel:
    """The same, with one series for a dashed line: a bound, not a measurement."""
    style = {"fill": "dash", "dash": [10, 10]}
    return panel.override_by_name(
        name,
        [
            dashboard.DynamicConfigValue("custom.lineStyle", style),
            dashboard.DynamicConfigValue("custom.fillOpacity", 0),
            dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "red"}),
        ],
    )


def density(title: str, description: str, buckets: str, *, unit: str, scheme: str, width: int = 8) -> heatmap.Panel:
    """How a histogram's observations lay, over time."""
    shown = over_time(buckets, "{{le}}").format(prometheus.PromQueryFormat.HEATMAP)
    return (
        _dressed(heatmap.Panel(), title, description, [shown], width, 8)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme(scheme).steps(64).exponent(0.5))
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(1)
    )


def curve(title: str, description: str, values: str, *, x: str, name: str, unit: str, width: int) -> barchart.Panel:
    """The last values over a label that is a number, one colour for each value of another label."""
    return (
        _dressed(barchart.Panel(), title, description, [now(values).interval(RUN_STEP)], width, 8)
        .transformations(
            [
                _transformation("convertFieldType", conversions=[{"targetField": x, "destinationType": "number"}]),
                _transformation("sortBy", sort=[{"field": name}]),
                _transformation("sortBy", sort=[{"field": x}]),
                _transformation(
                    "groupingToMatrix", columnField=name, rowField=x, valueField="Value", emptyValue="null"
                ),
            ]
        )
        .x_field(f"{x}\\{name}")
        .unit(unit)
        .color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC))
        .fill_opacity(85)
        .line_width(0)
        .group_width(0.8)
        .bar_radius(0.05)
        .show_value(common.VisibilityMode.NEVER)
        .legend(_legend(()))
        .tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.NONE))
    )


def columns(
    title: str,
    description: str,
    values: Mapping[str, str],
    *,
    labels: Mapping[str, str],
    units: Mapping[str, str],
    width: int,
    height: int,
    sort: str,
    step: str = "",
) -> table.Panel:
    """The last values side by side.

    Args:
        title, description: what is shown, and what it says.
        values: the query of each column.
        labels: what the columns of labels are called; others are left out.
        units: of the columns that have one.
        width, height: in columns and rows of the dashboard.
        sort: the column by which the table is sorted, descending.
        step: the least of the queries, where a rate must look back further.
    """
    refs = {chr(ord("A") + i): name for i, name in enumerate(values)}
    queries = [now(expr, ref).interval(step) for ref, expr in zip(refs, values.values(), strict=True)]
    called = {f"Value #{ref}" if len(refs) > 1 else "Value": name for ref, name in refs.items()}
    order = {name: i for i, name in enumerate((*labels, *called))}
    panel = _dressed(table.Panel(), title, description, queries, width, height).transformations(
        [
            _transformation("merge"),
            _transformation(
                "organize", excludeByName={"Time": True}, indexByName=order, renameByName={**labels, **called}
            ),
        ]
    )
    for name, unit in units.items():
        panel.override_by_name(name, [dashboard.DynamicConfigValue("unit", unit)])
    return panel.sort_by([build.TableSortByFieldState().display_name(sort).desc(True)]).cell_height(
        common.TableCellHeight.SM
    )


def states(
    title: str, description: str, shown: query.Dataquery, meanings: Mapping[str, tuple[str, str]], width: int
) -> statetimeline.Panel:
    """Which of some named states each series was in, over time."""
    results = {
        value: dashboard.ValueMappingResult(text=called, color=colour) for value, (called, colour) in meanings.items()
    }
    return (
        _dressed(statetimeline.Panel(), title, description, [shown], width, 8)
        .mappings([dashboard.ValueMap(options=results)])
        .color_scheme(board.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .show_value(common.VisibilityMode.NEVER)
        .row_height(0.8)
        .line_width(0)
        .fill_opacity(80)
        .legend(_legend(()))
    )


def note(title: str, description: str, markdown: str, height: int) -> text.Panel:
    """Words."""
    return _dressed(text.Panel(), title, description, (), 24, height).mode(TextMode.MARKDOWN).content(markdown)


def _dressed(
    panel: Kind, title: str, description: str, queries: Iterable[query.Dataquery], width: int, height: int
) -> Kind:
    return (
        panel.title(title).description(description).datasource(SOURCE).targets(list(queries)).span(width).height(height)
    )


def _thresholds(steps: Steps) -> board.ThresholdsConfig:
    return (
        board.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value, colour) for value, colour in steps])
    )


def _legend(calculations: Sequence[str]) -> build.VizLegendOptions:
    legend = build.VizLegendOptions().show_legend(True).placement(common.LegendPlacement.BOTTOM)
    if not calculations:
        return legend.display_mode(common.LegendDisplayMode.LIST)
    # Sorted as the lines lie above each other; k sorted by name would be 1, 16, 2.
    legend.display_mode(common.LegendDisplayMode.TABLE).calcs(list(calculations))
    return legend.sort_by("Last *").sort_desc(True)


def _transformation(name: str, **options: object) -> dashboard.DataTransformerConfig:
    return dashboard.DataTransformerConfig(id_val=name, options=options)
