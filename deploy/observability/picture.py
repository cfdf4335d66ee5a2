"""A picture of the dashboard as a Prometheus fills it, for who has no Grafana at hand.

python -m deploy.observability.picture http://localhost:9090 dashboard.png [--minutes 60]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import Image

from deploy.observability.dashboard import FILE
from deploy.observability.drawing import FAINT, Box, Page, draw
from deploy.observability.source import Source

CELL_WIDTH, CELL_HEIGHT, GAP, TOP = 62.0, 32.0, 6.0, 44.0
PANELS_ABREAST = 4
COLOURS = 256


class Placed(NamedTuple):
    """A panel where it is drawn, in cells, and the variables it alone has."""

    panel: Mapping[str, Any]
    x: float
    y: float
    width: float
    scoped: Mapping[str, str]


def placed(panels: list[dict[str, Any]], runs: list[str]) -> Iterator[Placed]:
    """The panels from the top; one that is repeated, for every run, pushes down what is below it."""
    pushed = 0
    for panel in panels:
        place = panel["gridPos"]
        if panel.get("repeat") != "run":
            yield Placed(panel, place["x"], place["y"] + pushed, place["w"], {})
            continue
        abreast = min(len(runs), PANELS_ABREAST)
        for number, run in enumerate(runs):
            down, across = divmod(number, abreast)
            width = 24 / abreast
            yield Placed(panel, across * width, place["y"] + pushed + down * place["h"], width, {"run": run})
        pushed += place["h"] * (-(-len(runs) // abreast) - 1)


def chosen(source: Source, variables: list[dict[str, Any]], given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The value of every variable: what is given, or what the dashboard begins with."""
    for variable in variables:
        name = variable["name"]
        if variable["type"] == "query":
            yield name, given.get(name, ".*")
        elif variable["type"] == "custom":
            yield name, given.get(name, variable["current"]["value"])


def picture(source: Source, dashboard: Mapping[str, Any], file: str) -> tuple[int, list[str]]:
    """Draws the dashboard into a file; returns how many panels, and the titles of those with nothing to show."""
    queries = {variable["name"]: variable["query"] for variable in dashboard["templating"]["list"]}
    jobs = source.label_values(queries["job"])
    source = replace(source, chosen={**source.chosen, "job": "|".join(jobs)})
    runs = source.label_values(queries["run"])
    source = replace(source, chosen={**source.chosen, "run": "|".join(runs)})
    everything = list(placed(dashboard["panels"], runs))
    rows = max(each.y + each.panel["gridPos"]["h"] for each in everything)
    page = Page(24 * CELL_WIDTH + GAP, rows * CELL_HEIGHT + TOP + GAP)
    page.text(14, 14, dashboard["title"], fontsize=14, fontweight="bold")
    said = [f"{name} {value}" for name, value in source.chosen.items() if name in {"job", "k", "run_step"}]
    page.text(page.width - 14, 16, "   ".join([f"last {source.minutes:.3g} minutes", *said]), ha="right", color=FAINT)
    empty, drawn = [], 0
    for panel, x, y, width, scoped in everything:
        height = panel["gridPos"]["h"] * CELL_HEIGHT - GAP
        box = Box(x * CELL_WIDTH + GAP, TOP + y * CELL_HEIGHT, width * CELL_WIDTH - GAP, height)
        if panel["type"] == "row":
            page.text(box.left + 2, box.top + 6, f"⌄  {panel['title']}", fontsize=11, fontweight="bold")
            continue
        title = panel["title"]
        for name, value in {**source.chosen, **scoped}.items():
            title = title.replace(f"${name}", value)
        answers = [source.answer(target, scoped) for target in panel["targets"]]
        drawn += 1
        if not draw(page, box, panel, title, answers):
            empty.append(title)
    page.save(file)
    # A tenth of the bytes, and nobody sees it: there are few colours.
    with Image.open(file) as whole:
        whole.convert("RGB").quantize(COLOURS, kmeans=4, dither=Image.Dither.NONE).save(file, optimize=True)
    return drawn, empty


def main() -> None:
    """Draws what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m deploy.observability.picture", description="Draw the dashboard.")
    parser.add_argument("url", help="of the Prometheus")
    parser.add_argument("file", help="the PNG to write")
    parser.add_argument("--minutes", type=float, default=60, help="shown, up to now")
    parser.add_argument("--scrape-seconds", type=float, default=1, help="how often the Prometheus scrapes")
    parser.add_argument("--namespace", default=".*", help="as a regular expression")
    parser.add_argument("--run-step", default="1m", help="least distance of the runs' points")
    parser.add_argument("--k", default="4", help="of pass@k over time")
    options = parser.parse_args()
    dashboard = json.loads(FILE.read_text())
    given = {"namespace": options.namespace, "k": options.k, "run_step": options.run_step}
    source = Source(options.url.rstrip("/"), options.minutes, options.scrape_seconds, {})
    source = replace(source, chosen=dict(chosen(source, dashboard["templating"]["list"], given)))
    drawn, empty = picture(source, dashboard, options.file)
    print(f"{options.file}: {drawn} panels")
    for title in empty:
        print(f"{title}: nothing to show")


if __name__ == "__main__":
    main()
