"""Numbers as the dashboard shows them, by Grafana's names of units."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SHORT = ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K"))
_BYTES = ((2.0**40, " TiB"), (2.0**30, " GiB"), (2.0**20, " MiB"), (2.0**10, " KiB"))
_SECONDS = (
    (604800.0, " weeks"),
    (86400.0, " days"),
    (3600.0, " hours"),
    (60.0, " min"),
    (1.0, " s"),
    (1e-3, " ms"),
    (1e-6, " µs"),
)


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit.

    Args:
        value: in the unit's base.
        unit: none, short, reqps, percentunit, s or bytes.
        decimals: after the point; by default three digits tell.
    """
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{_digits(100 * value, decimals)}%"
    if unit == "s":
        return _scaled(value, _SECONDS, decimals)
    if unit == "bytes":
        return _scaled(value, _BYTES, decimals) if abs(value) >= 1024 else f"{_digits(value, decimals)} B"
    text = _scaled(value, _SHORT, decimals) if unit != "none" else _digits(value, decimals)
    return f"{text} req/s" if unit == "reqps" else text


def _scaled(value: float, scales: Sequence[tuple[float, str]], decimals: int | None) -> str:
    for scale, suffix in scales:
        if abs(value) >= scale:
            return f"{_digits(value / scale, decimals)}{suffix}"
    # Nothing is too small for seconds; what is left of the others has no suffix.
    return f"{_digits(value, decimals)}{' s' if scales is _SECONDS else ''}"


def _digits(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{float(text):.6f}".rstrip("0").rstrip(".") if "e" in text else text
