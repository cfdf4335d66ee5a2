"""Tables of figures, and the CSV files they are kept in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

Cell = str | int | float | None
Row = dict[str, Cell]
Table = list[Row]
Tables = dict[str, Table]


def write_csv(path: Path, table: Table) -> None:
    """Writes a table with a header, numbers to six digits, so that a rounding of the last bit changes nothing."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table[0])
        writer.writerows([_text(cell) for cell in row.values()] for row in table)


def read_csv(path: Path) -> Table:
    """The table that `write_csv` wrote."""
    with path.open(newline="") as file:
        return [{name: _cell(text) for name, text in row.items()} for row in csv.DictReader(file)]


def column(table: Table, name: str) -> list[float]:
    """The numbers of a column."""
    return [float(row[name]) for row in table]  # type: ignore[arg-type]


def where(table: Table, **values: Cell) -> Table:
    """The rows that have these values."""
    return [row for row in table if all(row[name] == value for name, value in values.items())]


def distinct(table: Table, name: str) -> Sequence[Cell]:
    """The values of a column, in the order of their first appearance."""
    return list(dict.fromkeys(row[name] for row in table))


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def _cell(text: str) -> Cell:
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
