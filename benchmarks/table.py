"""Tables: of the bars and what was measured against them, and of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measurement import Ratio


@dataclass(frozen=True)
class Bar:
    """What must be true.

    Attributes:
        what: is measured.
        floor: or peer that it is measured against.
        limit: of the ratio.
        faster: whether the floor must take at least `limit` times as long, rather than ours at most.
    """

    what: str
    floor: str
    limit: float
    faster: bool = False


@dataclass(frozen=True)
class Result:
    """What was measured against a bar.

    Attributes:
        bar: what must be true.
        ratio: None where it could not be measured.
        remark: why it could not, or what else was seen.
    """

    bar: Bar
    ratio: Ratio | None
    remark: str = ""

    @property
    def passes(self) -> bool:
        """Whether the bar is met."""
        if self.ratio is None:
            return False
        return self.ratio.median >= self.bar.limit if self.bar.faster else self.ratio.median <= self.bar.limit

    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        bar = f">= {self.bar.limit:g}x faster" if self.bar.faster else f"<= {self.bar.limit:g}"
        if self.ratio is None:
            return self.bar.what, self.bar.floor, bar, f"not measured: {self.remark}", ""
        ratio = self.ratio
        digits = 0 if ratio.median >= 20 else 2
        measured = f"{ratio.median:.{digits}f}"
        if ratio.low < ratio.high:
            measured += f" ({ratio.low:.{digits}f} to {ratio.high:.{digits}f})"
        remark = "; ".join(filter(None, (ratio.remark, self.remark)))
        verdict = "pass" if self.passes else "short"
        return self.bar.what, self.bar.floor, bar, measured + (f"; {remark}" if remark else ""), verdict


BAR_HEADER = ("what", "floor or peer", "bar", "measured: median (quartiles)", "")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, aligned so that it can be read as it is."""
    cells = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def microseconds(value: float) -> str:
    """Seconds, as microseconds to three digits."""
    value *= 1e6
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
