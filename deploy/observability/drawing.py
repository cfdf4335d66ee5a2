"""Panels drawn by matplotlib, much as Grafana draws them in the dark."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from deploy.observability.source import Series
from deploy.observability.units import shown

PAGE, PANEL, GRID, TEXT, FAINT, LINK = "#0b0c0f", "#181b1f", "#2a2d33", "#d8d9da", "#8e8f94", "#6e9fff"
PALETTE = ("#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9", "#37872D", "#C15C17", "#705DA0")
NAMED = {"green": "#73BF69", "orange": "#FF9830", "red": "#F2495C", "blue": "#5794F2", "yellow": "#FADE2A",
         "purple": "#B877D9", "transparent": "none"}  # fmt: skip
SCHEMES = {
    "Oranges": LinearSegmentedColormap.from_list("oranges", [PANEL, "#8a3a06", "#f2780a", "#ffe2b8"]),
    "Purples": LinearSegmentedColormap.from_list("purples", [PANEL, "#4a2a78", "#9a6fd1", "#ece0ff"]),
}
TITLE, LINE, MARGIN = 30, 16, 10
MOST_LEGEND_LINES = 7
CALCULATIONS = {"lastNotNull": "last", "mean": "mean", "max": "max", "min": "min"}


class Box(NamedTuple):
    """A place on the page, in pixels from its upper left corner."""

    left: float
    top: float
    width: float
    height: float


class Page:
    """A page to draw on.

    Args:
        width, height: in pixels.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor=PAGE)

    def axes(self, box: Box) -> Axes:
        """Axes over a place, without decoration."""
        left, bottom = box.left / self.width, 1 - (box.top + box.height) / self.height
        made = self.figure.add_axes((left, bottom, box.width / self.width, box.height / self.height))
        made.set_facecolor("none")
        for spine in made.spines.values():
            spine.set_visible(False)
        made.tick_params(colors=FAINT, labelsize=8, length=0)
        return made

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Words with their upper left corner, or what `style` says of it, at a place."""
        style = {"color": TEXT, "fontsize": 9, "va": "top", **style}
        self.figure.text(left / self.width, 1 - top / self.height, text.replace("$", r"\$"), **style)

    def frame(self, box: Box) -> None:
        """The ground of a panel."""
        corner = (box.left / self.width, 1 - (box.top + box.height) / self.height)
        size = (box.width / self.width, box.height / self.height)
        self.figure.add_artist(
            FancyBboxPatch(
                corner, *size, boxstyle="square,pad=0", facecolor=PANEL, edgecolor=GRID, linewidth=0.6, zorder=-1
            )
        )

    def save(self, file: str) -> None:
        """Writes it."""
        self.figure.savefig(file, facecolor=PAGE)


def draw(page: Page, box: Box, panel: Mapping[str, Any], title: str, answers: Sequence[Sequence[Series]]) -> bool:
    """Draws a panel, and says whether there was anything to show."""
    page.frame(box)
    if title:
        page.text(box.left + MARGIN, box.top + 9, title, fontsize=10)
    if panel["type"] == "text":
        _text(page, box, panel)
        return True
    if not any(answers):
        page.text(box.left + box.width / 2, box.top + box.height / 2, "nothing to show", ha="center", color=FAINT)
        return False
    {"stat": _stat, "timeseries": _timeseries, "heatmap": _heatmap, "barchart": _barchart, "table": _table,
     "state-timeline": _states}[panel["type"]](page, box, panel, answers)  # fmt: skip
    return True


def _text(page: Page, box: Box, panel: Mapping[str, Any]) -> None:
    words = re.sub(r"\*\*|[*`]", "", panel["options"]["content"])
    for number, line in enumerate(textwrap.wrap(words, int(box.width / 6.9))):
        page.text(box.left + MARGIN, box.top + 32 + 17 * number, line, color=FAINT)


def _stat(page: Page, box: Box, panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    found = [series for answer in answers for series in answer]
    for number, series in enumerate(found):
        width = box.width / len(found)
        left = box.left + number * width
        colour = _step(defaults["thresholds"]["steps"], series.values[-1])
        if len(found) == 1 and len(series.values) > 1:
            course = page.axes(Box(left + 1, box.top + box.height * 0.62, width - 2, box.height * 0.38 - 1))
            course.axis("off")
            course.plot(series.times, series.values, color=colour, linewidth=1)
            course.fill_between(series.times, series.values, min(0, *series.values), color=colour, alpha=0.18, lw=0)
            course.margins(0, 0.08)
        value = shown(series.values[-1], defaults["unit"], defaults.get("decimals"))
        middle = {"ha": "center", "va": "center"}
        page.text(left + width / 2, box.top + box.height * 0.52, value, color=colour, fontsize=21, **middle)
        if len(found) > 1:
            page.text(left + width / 2, box.top + box.height * 0.8, series.name, **middle)


def _step(steps: Sequence[Mapping[str, Any]], value: float) -> str:
    reached = [step["color"] for step in steps if step.get("value") is None or value >= step["value"]]
    colour: str = reached[-1]
    return NAMED.get(colour, colour)


def _timeseries(page: Page, box: Box, panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> None:
    defaults, custom = panel["fieldConfig"]["defaults"], panel["fieldConfig"]["defaults"]["custom"]
    found = [series for answer in answers for series in answer]
    styles = [_style(panel, series.name, number) for number, series in enumerate(found)]
    place = _beside_legend(page, box, panel, found, [style["color"] for style in styles])
    margin = 80 if defaults["unit"] == "reqps" else 58
    axes = page.axes(Box(place.left + margin, place.top, place.width - margin - 12, place.height - 24))
    bars, stacked = custom.get("drawStyle") == "bars", custom.get("stacking", {}).get("mode") == "normal"
    bottom: dict[float, float] = {}
    for series, style in zip(found, styles, strict=True):
        lower = [bottom.get(when, 0.0) if stacked else 0.0 for when in series.times]
        upper = [low + value for low, value in zip(lower, series.values, strict=True)]
        bottom |= dict(zip(series.times, upper, strict=True))
        if bars:
            steps = [later - earlier for earlier, later in zip(series.times, series.times[1:], strict=False)]
            axes.bar(series.times, series.values, width=min(steps, default=1.0), bottom=lower, color=style["color"])
            continue
        axes.plot(series.times, upper, linewidth=1.4, solid_joinstyle="round", **style)
        if stacked:
            axes.fill_between(series.times, lower, upper, color=style["color"], alpha=0.35, linewidth=0)
    if custom.get("scaleDistribution", {}).get("type") == "log":
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
    else:
        _bound(axes, defaults, custom)
    _time_axis(axes)
    _value_axis(axes, defaults["unit"])
    limits = [step["value"] for step in defaults.get("thresholds", {}).get("steps", []) if step.get("value")]
    for limit in limits:
        if axes.get_ylim()[0] <= limit <= axes.get_ylim()[1]:
            axes.axhline(limit, color=NAMED["red"], linewidth=1, linestyle=(0, (5, 4)))


def _bound(axes: Axes, defaults: Mapping[str, Any], custom: Mapping[str, Any]) -> None:
    low, high = axes.get_ylim()
    if "axisSoftMin" in custom:
        low = min(axes.dataLim.y0, custom["axisSoftMin"])
    low, high = defaults.get("min", low), defaults.get("max", high)
    axes.set_ylim(low, high if high > low else low + 1)


def _style(panel: Mapping[str, Any], name: str, number: int) -> dict[str, Any]:
    style: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)]}
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == name:
            for each in override["properties"]:
                if each["id"] == "color":
                    fixed = each["value"]["fixedColor"]
                    style["color"] = NAMED.get(fixed, fixed)
                elif each["id"] == "custom.lineStyle":
                    style["linestyle"] = (0, (5, 4))
    return style


def _beside_legend(
    page: Page, box: Box, panel: Mapping[str, Any], found: Sequence[Series], colours: Sequence[str]
) -> Box:
    """Draws the legend of a panel, and says which place it leaves."""
    legend = panel["options"]["legend"]
    place = Box(box.left, box.top + TITLE + 4, box.width, box.height - TITLE - 8)
    lines = list(zip(found, colours, strict=True))
    if legend.get("sortDesc"):
        lines.sort(key=lambda line: -line[0].values[-1])
    lines = lines[:MOST_LEGEND_LINES]
    if not legend["calcs"]:
        left = place.left + MARGIN
        for series, colour in lines:
            page.text(left, place.top + place.height - LINE + 4, "▬", color=colour, fontsize=8)
            page.text(left + 16, place.top + place.height - LINE + 4, series.name, fontsize=8)
            left += 34 + 5.6 * len(series.name)
        return place._replace(height=place.height - LINE)
    height = LINE * (len(lines) + 1)
    if legend["placement"] == "right":
        width = legend["width"]
        beside = Box(place.left + place.width - width, place.top, width, height)
        _legend_table(page, beside, panel, lines)
        return place._replace(width=place.width - width)
    _legend_table(page, Box(place.left, place.top + place.height - height, place.width, height), panel, lines)
    return place._replace(height=place.height - height)


def _legend_table(page: Page, box: Box, panel: Mapping[str, Any], lines: Sequence[tuple[Series, str]]) -> None:
    calculations, unit = panel["options"]["legend"]["calcs"], panel["fieldConfig"]["defaults"]["unit"]
    column = 78 if unit == "reqps" else 62
    ends = [box.left + box.width - MARGIN - column * place for place in reversed(range(len(calculations)))]
    for end, calculation in zip(ends, calculations, strict=True):
        page.text(end, box.top, CALCULATIONS[calculation], ha="right", color=LINK, fontsize=8)
    for number, (series, colour) in enumerate(lines, start=1):
        top = box.top + LINE * number
        page.text(box.left + MARGIN, top, "▬", color=colour, fontsize=8)
        room = int((ends[0] - box.left - MARGIN - 56) / 5.4)
        page.text(box.left + MARGIN + 16, top, _cut(series.name, room), fontsize=8)
        for end, calculation in zip(ends, calculations, strict=True):
            page.text(end, top, shown(_calculated(calculation, series.values), unit), ha="right", fontsize=8)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(room, 2) - 1]}…"


def _calculated(calculation: str, values: Sequence[float]) -> float:
    if calculation == "mean":
        return sum(values) / len(values)
    return {"lastNotNull": lambda: values[-1], "max": lambda: max(values), "min": lambda: min(values)}[calculation]()


def _time_axis(axes: Axes) -> None:
    axes.margins(x=0)
    low, high = axes.get_xlim()
    ticks = MaxNLocator(max(2, int(axes.bbox.width / 90))).tick_values(low, high)
    # One at the edge would be written over the panel beside.
    axes.set_xticks([tick for tick in ticks if 0.04 < (tick - low) / (high - low) < 0.92])
    form = "%H:%M:%S" if high - low < 300 else "%H:%M"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda when, _: datetime.fromtimestamp(when).strftime(form)))
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _value_axis(axes: Axes, unit: str) -> None:
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))


def _heatmap(page: Page, box: Box, panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> None:
    buckets = sorted(answers[0], key=lambda series: float(series.labels["le"]))
    times = sorted({when for series in buckets for when in series.times})
    cumulative = [dict(zip(series.times, series.values, strict=True)) for series in buckets]
    counts = [
        [max(0.0, here.get(when, 0) - (below.get(when, 0) if below else 0)) for when in times]
        for below, here in zip([None, *cumulative], cumulative, strict=False)
    ]
    filled = [number for number, row in enumerate(counts) if any(row)]
    low, high = max(0, filled[0] - 1), min(len(counts) - 1, filled[-1] + 1)
    axes = page.axes(Box(box.left + 58, box.top + TITLE + 4, box.width - 70, box.height - TITLE - 34))
    norm: Normalize = PowerNorm(0.5, vmin=0, vmax=max(max(row) for row in counts))
    edges = [*times, times[-1] + (times[-1] - times[0]) / max(1, len(times) - 1)]
    options = panel["options"]
    axes.pcolormesh(
        edges,
        range(low, high + 2),
        counts[low : high + 1],
        norm=norm,
        cmap=SCHEMES[options["color"]["scheme"]],
    )
    _time_axis(axes)
    axes.grid(False)
    shown_edges = range(low, high + 1, max(1, (high - low) // 5))
    unit = options["yAxis"]["unit"]
    axes.set_yticks([edge + 1 for edge in shown_edges])
    bounds = [float(buckets[edge].labels["le"]) for edge in shown_edges]
    axes.set_yticklabels(["inf" if math.isinf(bound) else shown(bound, unit) for bound in bounds])


def _barchart(page: Page, box: Box, panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> None:
    x, name = panel["options"]["xField"].split("\\")
    values = {(series.labels[name], int(series.labels[x])): series.values[-1] for series in answers[0]}
    names, places = sorted({run for run, _ in values}), sorted({k for _, k in values})
    colours = [PALETTE[number % len(PALETTE)] for number in range(len(names))]
    place = _beside_legend(page, box, panel, [Series(each, {}, [], []) for each in names], colours)
    axes = page.axes(Box(place.left + 48, place.top, place.width - 60, place.height - 26))
    width = 0.8 / len(names)
    for number, (each, colour) in enumerate(zip(names, colours, strict=True)):
        points = [(place, values[each, k]) for place, k in enumerate(places) if (each, k) in values]
        lefts = [place + (number - (len(names) - 1) / 2) * width for place, _ in points]
        axes.bar(lefts, [value for _, value in points], width=width * 0.92, color=colour, alpha=0.9)
    axes.set_xticks(range(len(places)))
    axes.set_xticklabels([f"k = {k}" for k in places])
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _value_axis(axes, panel["fieldConfig"]["defaults"]["unit"])


def _table(page: Page, box: Box, panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> None:
    organize = next(each for each in panel["transformations"] if each["id"] == "organize")["options"]
    renamed, order = organize["renameByName"], organize["indexByName"]
    rows: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for target, answer in zip(panel["targets"], answers, strict=True):
        column = f"Value #{target['refId']}" if len(answers) > 1 else "Value"
        for series in answer:
            key = tuple(sorted(series.labels.items()))
            rows.setdefault(key, dict(series.labels))[column] = series.values[-1]
    columns = sorted((name for name in order if name in renamed), key=order.__getitem__)
    units = {each["matcher"]["options"]: each["properties"][0]["value"] for each in panel["fieldConfig"]["overrides"]}
    (sort,) = panel["options"]["sortBy"]
    sorted_by = next(name for name in columns if renamed[name] == sort["displayName"])
    lines = sorted(rows.values(), key=lambda row: row.get(sorted_by, -math.inf), reverse=sort["desc"])
    cells = {
        name: [renamed[name], *(_cell(row.get(name, ""), units.get(renamed[name], "none")) for row in lines)]
        for name in columns
    }
    shares = [2 + max(map(len, cells[name])) for name in columns]
    left = box.left + MARGIN
    for name, share in zip(columns, shares, strict=True):
        heading, *below = cells[name]
        page.text(left, box.top + TITLE + 6, heading, color=LINK)
        for number, cell in enumerate(below[: int((box.height - TITLE - 30) / 22)]):
            page.text(left, box.top + TITLE + 30 + 22 * number, cell)
        left += (box.width - 2 * MARGIN) * share / sum(shares)


def _cell(value: Any, unit: str) -> str:
    return value if isinstance(value, str) else shown(value, unit)


def _states(page: Page, box: Box, panel: Mapping[str, Any], answers: Sequence[Sequence[Series]]) -> None:
    meanings = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    states = [Series(each["text"], {}, [], []) for each in meanings.values()]
    place = _beside_legend(page, box, panel, states, [NAMED[each["color"]] for each in meanings.values()])
    axes = page.axes(Box(place.left + 150, place.top, place.width - 162, place.height - 24))
    found = answers[0]
    for number, series in enumerate(reversed(found)):
        step = (series.times[-1] - series.times[0]) / max(1, len(series.times) - 1) or 1.0
        for value, meaning in meanings.items():
            there = [f"{each:g}" == value for each in series.values]
            axes.fill_between(
                [edge for when in series.times for edge in (when, when + step)],
                number - 0.36,
                number + 0.36,
                where=[each for each in there for _ in (0, 1)],
                color=NAMED[meaning["color"]],
                alpha=0.8,
                linewidth=0,
            )
    axes.set_yticks(range(len(found)))
    axes.set_yticklabels([_cut(series.name, 26) for series in reversed(found)])
    axes.set_ylim(-0.6, max(len(found) - 0.4, 2))
    _time_axis(axes)
