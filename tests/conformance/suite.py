"""The suite as it is handed on: one file."""

from __future__ import annotations

from pathlib import Path

from conformance.conformance_pb2 import Suite

PATH = Path(__file__).with_name("suite.binpb")


def committed() -> Suite:
    """What the file holds."""
    return Suite.FromString(PATH.read_bytes())
