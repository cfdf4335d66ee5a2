"""The tables of docs/operations.md and docs/metrics.md, from the definitions themselves.

Rewritten by `python -m pkpo_server.documentation docs/operations.md docs/metrics.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pkpo_server import certificates, curves, metrics, workers
from pkpo_server.computation import INLINE_VISITS
from pkpo_server.logs import REFUSAL_LINES_PER_SECOND
from pkpo_server.prometheus import Definition
from pkpo_server.settings import SETTINGS, Setting, flag, variable


def settings_table() -> str:
    """Every setting: its flag, variable, default, range and meaning."""
    return _table(("Flag", "Environment", "Default", "Range", "Meaning"), _settings_rows())


def metrics_table() -> str:
    """Every metric of our own: its name, type, unit, labels and meaning."""
    definitions = (*metrics.DEFINITIONS, *workers.DEFINITIONS)
    return _table(("Metric", "Type", "Unit", "Labels", "Meaning"), map(_metric_row, definitions))


def label_values() -> str:
    """The values of the labels that have a fixed set of them."""
    rows = (
        ("`method`", ", ".join(metrics.METHODS)),
        ("`code`", ", ".join(metrics.CODES)),
        ("`stage`", ", ".join(metrics.STAGES)),
        ("`k`", ", ".join(map(str, curves.CURVE_K))),
        ("`sign`", ", ".join(metrics.SIGNS)),
        ("`certificate`", ", ".join((certificates.SERVER, certificates.CLIENT_CA))),
        ("`kind`", ", ".join(metrics.SECRETS)),
        ("`reason`", ", ".join(f"`{reason}`" for reason in (*metrics.REASONS, metrics.OTHER_REASON))),
    )
    return _table(("Label", "Values"), rows)


def constants_table() -> str:
    """What is fixed, and may be good to know."""
    rows = (
        (
            "Rewards (times passes over them) up to which a batch is computed at once, not in a thread",
            f"{INLINE_VISITS}",
        ),
        ("Rewards of a run that are kept for its pass@k curve until they are summed", f"{curves.MOST_REWARDS}"),
        (
            "Lines about requests refused for one reason in a second, before they are only counted",
            f"{REFUSAL_LINES_PER_SECOND}",
        ),
    )
    return _table(("What", "Value"), rows)


PAGES = {
    "operations.md": {"settings": settings_table, "constants": constants_table},
    "metrics.md": {"metrics": metrics_table, "labels": label_values},
}


def with_tables(page: str, text: str) -> str:
    """The text of a page of that name, with what stands between its markers replaced by the tables of now.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in PAGES[page].items():
        start, end = f"<!-- {name}: generated -->\n", f"<!-- {name}: end -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page has no {start.strip()} ... {end}")
        text = f"{before}{start}{table()}{end}{after}"
    return text


def _settings_rows() -> Iterator[tuple[str, ...]]:
    for name, setting in SETTINGS.items():
        on_off = f", `--no-{flag(name)[2:]}`" if setting.kind is bool else ""
        yield f"`{flag(name)}`{on_off}", f"`{variable(name)}`", _default(setting), _range(setting), setting.description


def _default(setting: Setting) -> str:
    if setting.default is None:
        return "none"
    if isinstance(setting.default, bool):
        return str(setting.default).lower()
    return f"`{setting.default}`" + (f" {setting.unit}" if setting.unit else "")


def _range(setting: Setting) -> str:
    if setting.kind in (int, float):
        return f"{setting.least} to {setting.greatest}"
    if setting.kind is bool:
        return "true, false"
    return ", ".join(setting.choices) or setting.requirement


def _metric_row(definition: Definition) -> tuple[str, ...]:
    labels = ", ".join(f"`{label}`" for label in definition.labels) or "none"
    kind = definition.type.__name__.lower()
    return f"`{definition.name}`", kind, definition.unit or "none", labels, definition.description


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(with_tables(page.name, page.read_text()))
