"""The suite, made from tests/reference.py and tests/vectors, which nothing else of the kit needs."""

from __future__ import annotations

from collections import Counter

from conformance.answers import answers
from conformance.conformance_pb2 import Suite
from conformance.encodings import encodings
from conformance.refusals import refusals
from conformance.streams import streams


def generated() -> bytes:
    """The suite as its file holds it: the same bytes every time."""
    suite = Suite(cases=[*answers(), *refusals(), *encodings(), *streams()])
    (_, most), *_ = Counter(case.name for case in suite.cases).most_common(1)
    assert most == 1, "a name is used twice"
    return suite.SerializeToString(deterministic=True)
