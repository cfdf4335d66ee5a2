"""Arguments of the client, likely and unlikely: answered alike in this process and over the wire, or refused alike."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fuzz.campaign import MOST_FINDINGS, Report
from fuzz.mutator import NUMBERS, REWARDS
from pkpo_client import LocalClient, PkpoError, codec, driving, operations
from pkpo_client.errors import InvalidArgument, Violation
from pkpo_client.options import K_POLICIES, SCALES, VARIANTS, Defaults
from pkpo_client.results import Limits as ToldLimits
from pkpo_client.results import TransformResult
from pkpo_client.work import EstimateBatch, ServerLimits, Work
from pkpo_server import metrics
from pkpo_server.codec import Limits
from pkpo_server.exchange import ESTIMATE, TRANSFORM, Request
from pkpo_server.refusal import InvalidRequest

# So small that most batches travel in parts.
TOLD = ToldLimits(max_message_bytes=2**16, max_rewards=48, max_group_size=48, max_groups=3, max_estimate_k=16)
LIMITS = Limits(max_message_bytes=2**16, max_rewards=48, max_group_size=48, max_groups=3, max_estimate_k=16)

# One run of Hypothesis.
BLOCK = 2000

Arguments = dict[str, Any]

_NUMBERS = st.one_of(st.sampled_from(REWARDS), st.floats(width=64), st.integers(-3, 3))
_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from(NUMBERS),
    st.sampled_from((-1, 10**30, 10**5000, -(10**5000), 1.5, math.nan, math.inf, 1j, object, len, range(3), {}, set())),
    st.lists(st.one_of(_NUMBERS, st.none(), st.text(max_size=1)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
)


@st.composite
def calls(draw: Callable[[Any], Any]) -> Arguments:
    """The arguments of transform_detailed, all of them likely but for one or two."""
    groups, n = draw(st.integers(0, 6)), draw(st.integers(0, 7))
    flat = draw(st.booleans())
    shape = (groups * n,) if flat else (groups, n)
    dtype = draw(st.sampled_from(("f8", "f8", "f4", "f2", "i8", "u1", "?")))
    usual = st.sampled_from((0.0, 1.0, 0.25, -2.0))
    values = draw(st.lists(draw(st.sampled_from((usual, usual, _NUMBERS))), min_size=groups * n, max_size=groups * n))
    with np.errstate(all="ignore"):
        rewards: Any = np.array(values, dtype=np.float64).astype(dtype).reshape(shape)
    found: Arguments = {
        "rewards": draw(st.sampled_from((rewards, rewards, rewards.tolist()))),
        "k": draw(st.one_of(st.integers(1, 4), st.integers(0, 9), st.lists(st.integers(0, 9), max_size=4), st.none())),
        "variant": draw(st.sampled_from((*VARIANTS, None))),
        "scale": draw(st.sampled_from((*SCALES, None))),
        "k_policy": draw(st.sampled_from((*K_POLICIES, "clamp"))),
        "estimate_k": draw(st.one_of(st.just(()), st.lists(st.integers(0, 9), max_size=4))),
        "seed": draw(st.sampled_from((0, 1, 2**64 - 1))),
        "run_id": draw(st.sampled_from((None, "", "run"))),
    }
    if flat:
        found["group_ids"] = draw(st.lists(st.integers(-2, 4), min_size=groups * n, max_size=groups * n))
    if draw(st.booleans()):
        found["mask"] = draw(arrays.arrays(draw(st.sampled_from(("?", "i4"))), shape, elements=st.integers(0, 1)))
    for name in draw(st.lists(st.sampled_from([*found, "timeout", "group_ids", "mask"]), max_size=2)):
        found[name] = draw(_JUNK)
    return found


def disagreement(arguments: Arguments) -> str:
    """How the two ways of computing differ, or break a promise; empty where they do not."""
    here, over_the_wire = (_attempt(asked, arguments) for asked in (_locally, _over_the_wire))
    if isinstance(here, str) or isinstance(over_the_wire, str):
        return "" if here == over_the_wire else f"here: {here}; over the wire: {over_the_wire}"
    for name in ("advantages", "group_statuses"):
        one, other = (np.asarray(getattr(result, name)) for result in (here, over_the_wire))
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            return f"{name} differ: {one!r}, {other!r}"
    if repr(here.estimates) != repr(over_the_wire.estimates) or here.group_ids != over_the_wire.group_ids:
        return f"estimates differ: {here.estimates}, {over_the_wire.estimates}"
    advantages = np.asarray(here.advantages)
    if advantages.shape != np.shape(arguments["rewards"]):
        return f"advantages of shape {advantages.shape} for rewards of shape {np.shape(arguments['rewards'])}"
    return "" if np.isfinite(advantages).all() else f"advantages that are no numbers: {advantages}"


def run(start: int, inputs: int, seconds: float = math.inf) -> Report:
    """A run of so many arguments; a finding is the simplest that shows it."""
    report, started = Report(), time.monotonic()

    def tried(arguments: Arguments) -> None:
        report.inputs += 1
        found = disagreement(arguments)
        assert not found, found

    for block in range(-(-inputs // BLOCK)):
        if report.seconds > seconds or len(report.findings) >= MOST_FINDINGS:
            break
        examples = settings(
            max_examples=min(BLOCK, inputs - block * BLOCK),
            database=None,
            deadline=None,
            suppress_health_check=[*HealthCheck],
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                seed(start + block)(examples(given(calls())(tried)))()
        except Exception as error:
            report.findings.append("".join(traceback.format_exception(error))[-3000:])
        report.seconds = time.monotonic() - started
    report.codes["answered or refused alike"] = report.inputs
    return report


def _attempt(asked: Callable[[Arguments], TransformResult[Any]], arguments: Arguments) -> TransformResult[Any] | str:
    """The result, or what is raised in its place; that only PkpoError is, is a promise."""
    try:
        return asked(arguments)
    except PkpoError as error:
        # Of several offenders, which are named depends on how the batch travels.
        return type(error).__name__


def _locally(arguments: Arguments) -> TransformResult[Any]:
    return LocalClient().transform_detailed(**arguments)


def _over_the_wire(arguments: Arguments) -> TransformResult[Any]:
    return driving.run(operations.transform_detailed(Defaults(timeout=math.inf), **arguments), _answered)


def _answered(work: Work) -> Any:
    """What a service with LIMITS answers, by the client's codec and the server's, without a connection between."""
    if isinstance(work, ServerLimits):
        return TOLD
    travels = codec.method(work)
    kind = ESTIMATE if isinstance(work, EstimateBatch) else TRANSFORM
    request = Request(metrics.NO_VARIANT)
    try:
        answer = kind.encode(kind.read(travels.request(work), LIMITS, request).run(lambda: None), request)
    except InvalidRequest as refusal:
        raise InvalidArgument.of(*(Violation(v.field, v.description) for v in refusal.violations)) from refusal
    return travels.answer(work, travels.response.FromString(answer))
