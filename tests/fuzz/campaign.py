"""A run of the fuzzer against the server's calls in this process: inputs in, findings out.

An input that makes the server behave as none did before is kept, and later ones are made from it too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import json
import resource
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from prometheus_client.parser import text_string_to_metric_families

from conformance import suite
from conformance.conformance_pb2 import Case
from fuzz import messages
from fuzz.mutator import Mutator
from fuzz.properties import Behaviour, behaviour, differences
from fuzz.service import ESTIMATE, INFO, STREAM, TRANSFORM, Outcome, Service
from pkpo.v1 import reward_transform_pb2 as pb

REQUESTS = {
    TRANSFORM: pb.TransformRequest.DESCRIPTOR,
    STREAM: pb.TransformStreamRequest.DESCRIPTOR,
    ESTIMATE: pb.EstimateRequest.DESCRIPTOR,
    INFO: pb.GetServerInfoRequest.DESCRIPTOR,
}
# One input that takes so long ends the process, with where it was.
HANGING_SECONDS = 60
MOST_FINDINGS = 20
LARGEST_SEED = 2**11

Call = tuple[str, Sequence[bytes]]


@dataclass
class Report:
    """What a run did.

    Attributes:
        inputs: calls made.
        codes: how they ended.
        exact: of how many the numbers were compared with exact arithmetic.
        behaviours: how many different ones were seen.
        findings: what must not be, each with its input.
        seconds: it took.
    """

    inputs: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    exact: int = 0
    behaviours: int = 0
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        """It, in words."""
        codes = ", ".join(f"{number:,} {code}" for code, number in self.codes.most_common())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        yield f"{self.inputs:,} inputs in {self.seconds:.0f} s: {codes}"
        if self.behaviours:
            yield f"{self.exact:,} answers equal exact arithmetic's, {self.behaviours:,} behaviours, {peak} MiB at most"
        yield f"{len(self.findings)} findings"
        yield from self.findings


class Campaign:
    """One run.

    Args:
        rng: everything is drawn from it.
        exact_share: of how many answers, where they can be, the numbers are compared with exact arithmetic.
        folder: for the inputs of findings; None keeps none.
    """

    def __init__(self, rng: Random, exact_share: float = 1 / 8, folder: Path | None = None) -> None:
        self.report = Report()
        self._rng = rng
        self._exact_share = exact_share
        self._folder = folder
        self._service = Service()
        self._behaviours: set[Behaviour] = set()
        self._canary: tuple[str, list[bytes]] = (TRANSFORM, [_canary().SerializeToString()])
        self._answer: bytes | None = None

    async def wire(self, enough: Callable[[Report], bool]) -> None:
        """Changed messages of the conformance suite, and those that showed something new."""
        calls = [call for call in map(call_of, suite.committed().cases) if sum(map(len, call[1])) <= LARGEST_SEED]
        seeds = [(REQUESTS[method], raw) for method, raws in calls for raw in raws[:4]]
        mutator, rng = Mutator(self._rng, seeds), self._rng
        for call in calls:
            await self._try(*call)
        while not enough(self.report):
            method, raws = rng.choice(calls)
            changed = list(raws[:6])
            which = rng.randrange(len(changed)) if changed else 0
            changed[which : which + 1] = [mutator.changed(REQUESTS[method], changed[which] if changed else b"")]
            if rng.random() < 0.01:
                method = rng.choice([*REQUESTS])
            if await self._try(method, changed) and sum(map(len, changed)) <= LARGEST_SEED:
                calls.append((method, changed))

    async def fields(self, enough: Callable[[Report], bool]) -> None:
        """Valid messages of odd values."""
        while not enough(self.report):
            await self._try(*messages.call(self._rng))

    async def replay(self, calls: Sequence[Call]) -> None:
        """Calls as they are given."""
        for call in calls:
            await self._try(*call)

    async def _try(self, method: str, raws: Sequence[bytes]) -> bool:
        """Makes one call; whether it showed something new."""
        report = self.report
        if report.inputs % 256 == 0:
            await self._look_after()
        report.inputs += 1
        try:
            outcome = await self._service.call(method, raws)
            found = [*differences(method, raws, outcome, self._service.limits, self._compared)]
            shown = behaviour(method, raws, outcome) if not found else ()
        except Exception as error:
            # An answer that is no message, say.
            outcome, found, shown = Outcome(), [f"cannot be judged: {error!r}"], ()
        report.codes[outcome.code.name] += 1
        if found:
            self._keep(method, raws, found)
        new = shown not in self._behaviours
        self._behaviours.add(shown)
        report.behaviours = len(self._behaviours)
        return new

    def _compared(self) -> bool:
        exact = self._rng.random() < self._exact_share
        self.report.exact += exact
        return exact

    async def _look_after(self) -> None:
        """The server still answers, and can be scraped."""
        faulthandler.dump_traceback_later(HANGING_SECONDS, exit=True)
        await asyncio.sleep(0)
        method, raws = self._canary
        outcome = await self._service.call(method, raws)
        answer = outcome.answers[0] if outcome.answers else None
        self._answer = self._answer or answer
        if answer is None or answer != self._answer:
            self._keep(method, raws, ["no longer answers as at the start"])
        if self.report.inputs % (256 * 64) == 0:
            # Text that cannot be parsed raises, and so does a name that comes twice.
            assert [*text_string_to_metric_families(self._service.metrics())]

    def _keep(self, method: str, raws: Sequence[bytes], found: Sequence[str]) -> None:
        told = json.dumps({"method": method, "messages": [raw.hex() for raw in raws], "found": found}, indent=1)
        name = hashlib.sha256(repr((method, raws)).encode()).hexdigest()[:12]
        self.report.findings.append(f"{name}: {method}: {'; '.join(found)[:2000]}")
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{name}.json").write_text(told)

    def close(self) -> None:
        """Ends what it started."""
        faulthandler.cancel_dump_traceback_later()
        self._service.close()


def run(
    kind: str,
    seed: int,
    inputs: int,
    seconds: float = float("inf"),
    folder: Path | None = None,
    exact_share: float = 1 / 8,
) -> Report:
    """A run.

    Args:
        kind: "wire" or "fields".
        seed: of all that is drawn.
        inputs, seconds: after which it ends; too many findings end it as well.
        folder: for the inputs of findings; None keeps none.
        exact_share: as of Campaign.
    """

    started = time.monotonic()

    def enough(report: Report) -> bool:
        report.seconds = time.monotonic() - started
        return report.inputs >= inputs or report.seconds >= seconds or len(report.findings) >= MOST_FINDINGS

    return _run(lambda campaign: getattr(campaign, kind)(enough), Random(seed), exact_share, folder)


def replayed(calls: Sequence[Call]) -> Report:
    """A run of given calls, all of them compared with exact arithmetic."""
    return _run(lambda campaign: campaign.replay(calls), Random(0), 1.0, None)


def _run(inputs: Callable[[Campaign], Awaitable[None]], rng: Random, exact_share: float, folder: Path | None) -> Report:
    async def whole() -> Report:
        campaign = Campaign(rng, exact_share, folder)
        try:
            await inputs(campaign)
        finally:
            campaign.close()
        return campaign.report

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # on a server's stderr it would be a line of another form
        return asyncio.run(whole())


def call_of(case: Case) -> Call:
    """A case as it is called."""
    kind = case.WhichOneof("call")
    if kind == "stream":
        return STREAM, [message.SerializeToString() for message in case.stream.requests]
    if kind == "estimate":
        return ESTIMATE, [case.estimate.SerializeToString()]
    return TRANSFORM, [case.encoded_transform or case.transform.SerializeToString()]


def _canary() -> pb.TransformRequest:
    groups = pb.RewardGroups(f64=pb.DoubleValues(values=[0.0, 1.0, 0.25, 0.5]), group_size=4)
    return pb.TransformRequest(groups=groups, k=[2], estimate_k=[1, 2])
