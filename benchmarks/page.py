"""Pages in which tables stand between markers: <!-- NAME --> ... <!-- end of NAME -->."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The page with these tables in place of what stood there, and where they were measured.

    Raises:
        ValueError: a table has no place in the page.
    """
    for name, table in {**tables, "machine": machine()}.items():
        text = with_table(text, name, table)
    return text


def with_table(text: str, name: str, table: str) -> str:
    """The page with this table in place of what stood there.

    Raises:
        ValueError: it has no place in the page.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must have {begin} and {end} once")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def machine() -> str:
    """Where and with what the figures were measured."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "grpcio", "protobuf"))
    cores = f"{len(os.sched_getaffinity(0))} cores of {model[1] if model else platform.machine()}"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{date.today():%Y-%m-%d}: {cores}, {system}, {packages}."
