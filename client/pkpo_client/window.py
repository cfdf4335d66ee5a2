"""The batches of a stream that are under way: which to send, which to send again, and in which order they come out.

Knows no channel, no thread and no event loop: a driver (`stream`, `async_stream`) tells it what arrived and what time
it is, and asks what to do.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pkpo.v1 import reward_transform_pb2 as pb
from pkpo_client import codec
from pkpo_client.attempts import ATTEMPTS, Failures, most_refusals, never_again
from pkpo_client.errors import Cancelled, Overloaded, PkpoError, ServerError, Unavailable, copy_of
from pkpo_client.status import error_of_message
from pkpo_client.work import Batch, Operation, Work

_RESETS, _MOST_RESETS = ("INTERNAL", "UNKNOWN", "DATA_LOSS"), 3


class Clock:
    """Seconds that somebody waited for the stream: it stands while the caller is busy elsewhere."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._since: float | None = None

    def now(self) -> float:
        return self._waited + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextmanager
    def going(self) -> Iterator[None]:
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._waited, self._since = self.now(), None

    @contextmanager
    def standing(self) -> Iterator[None]:
        self._waited, self._since = self.now(), None
        try:
            yield
        finally:
            self._since = time.monotonic()


class Item:
    """One batch: an operation under way, what it wants done, and at last its result or its error.

    Attributes:
        work: what it wants done now; None once it is done.
        started: when it was admitted, or begun anew, by the stream's clock.
        deadline: when it must be done.
        ready_at: not to be sent before.
        in_flight: whether it was sent and an answer may still come.
        sent_at: when that was.
        refusals: of the message it was last sent in.
    """

    def __init__(self, operation: Operation[Any], started: float) -> None:
        self.work: Work | None = None
        self.started = started
        self.deadline = started
        self.ready_at = started
        self.in_flight = False
        self.sent_at = started
        self.refusals = Failures()
        self._operation = operation
        self._result: Any = None
        self._error: BaseException | None = None
        self._advance(lambda: next(operation))

    def answer(self, answer: Any) -> None:
        """What it wanted was done."""
        self._advance(lambda: self._operation.send(answer))

    def fail(self, error: Exception) -> None:
        """What it wanted could not be done."""
        self._advance(lambda: self._operation.throw(error))

    def start_over(self, now: float) -> None:
        """What it wants is to be done by somebody else, who has as much time as there was."""
        if self.work is not None:
            self.started = self.ready_at = now
            self.deadline = now + self.work.timeout
            self.refusals = Failures()

    def result(self) -> Any:
        """The result of a batch that is done; raises its error. To be asked for once."""
        # An error knows where it was raised, and with that this batch: neither is to keep the other.
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error

    def _advance(self, step: Callable[[], Work]) -> None:
        self.in_flight = False
        self.refusals = Failures()
        try:
            self.work = step()
            self.deadline = self.started + self.work.timeout
        except StopIteration as stop:
            self.work, self._result = None, stop.value
        except Exception as error:
            self.work, self._error = None, error


class Window:
    """The batches under way, in order.

    Args:
        size: how many there may be.
        address: of the service, for errors.
        clock: of the stream.
    """

    def __init__(self, size: int, address: str, clock: Clock) -> None:
        self._size = size
        self._address = address
        self._clock = clock
        self._items: deque[Item] = deque()
        self._in_flight: dict[int, Item] = {}
        self._sequence = 0
        self._breaks = 0
        self._failures = Failures()
        self._resume_at = 0.0
        self._quiet_since = 0.0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_room(self) -> bool:
        return len(self._items) < self._size

    @property
    def head_is_done(self) -> bool:
        return bool(self._items) and self._items[0].work is None

    @property
    def broken(self) -> bool:
        """Whether the stream broke since the service last answered."""
        return self._breaks > 0

    @property
    def nobody_answers(self) -> bool:
        """Whether the stream broke so often since that there is no use in waiting for the service."""
        return self._breaks >= ATTEMPTS

    @property
    def waited(self) -> float:
        """Seconds that the first batch has waited."""
        return self._clock.now() - self._items[0].started if self._items else 0.0

    @property
    def seen(self) -> str:
        """What the stream last broke of, as far as anyone said."""
        return self._failures.seen

    def admit(self, operation: Operation[Any]) -> Item:
        """Another batch."""
        item = Item(operation, self._clock.now())
        self._items.append(item)
        return item

    def take_head(self) -> Any:
        """The result of the first batch, which is done; raises its error. It is no longer in the window."""
        return self._items.popleft().result()

    def to_send(self) -> Item | None:
        """The first batch that wants something done now and is not in flight."""
        now = self._clock.now()
        if now < self._resume_at or self._held:
            return None
        for item in self._items:
            if item.work is not None and not item.in_flight and item.ready_at <= now:
                return item
        return None

    @property
    def _held(self) -> bool:
        """Whether nothing is sent before something arrives, or is given up."""
        # After a failure one batch goes first: if it fares no better, it alone is sent again, or learns the reason why.
        return bool(self._failures.count and self._in_flight)

    def send(self, item: Item) -> bytes:
        """The message to send for a batch, which is then in flight."""
        assert isinstance(item.work, Batch)
        # A number is used once, so that a late answer is never taken for another's.
        self._sequence += 1
        self._in_flight[self._sequence] = item
        item.in_flight, item.sent_at = True, self._clock.now()
        return codec.stream_request(self._sequence, item.work)

    def receive(self, response: pb.TransformStreamResponse) -> None:
        """A message has arrived."""
        self._forget_failures()
        self._quiet_since = self._clock.now()
        item = self._in_flight.pop(response.sequence, None)
        if item is None:
            return  # of a batch that was given up
        assert isinstance(item.work, Batch)
        item.in_flight = False
        if response.WhichOneof("result") == "response":
            try:
                answer = codec.advantages(item.work, response.response)
            except PkpoError as error:
                item.fail(error)
            else:
                item.answer(answer)
            return
        refusal = error_of_message(response.error, self._address, self._clock.now() - item.started)
        if isinstance(refusal, Unavailable) or (isinstance(refusal, Overloaded) and refusal.retry_after is not None):
            item.ready_at = self._clock.now() + item.refusals.add(refusal)
        else:
            item.fail(refusal)

    def end(self, error: PkpoError | None) -> None:
        """The call has ended, with a status or without: everything in flight is sent again, or fails."""
        if isinstance(error, Overloaded) and self._failures.refusals + 1 < most_refusals(error):
            self._breaks = 0
        elif self._is_break(error):
            self._breaks += 1
        else:
            assert error is not None
            self._forget_failures()
            in_flight, self._in_flight = self._in_flight, {}
            for item in in_flight.values():
                item.fail(copy_of(error))
            return
        self.recall(self._failures.add(error))

    def _is_break(self, error: PkpoError | None) -> bool:
        # A server that goes away may end its streams politely, or cancel them; either way the rest was not answered.
        if error is None:
            return True
        return not never_again(error) and (isinstance(error, (Unavailable, Cancelled)) or self._was_reset(error))

    def _was_reset(self, error: PkpoError) -> bool:
        # A proxy whose server died resets its streams, and gRPC calls that INTERNAL, as it would a server's own fault.
        # A connection whose bytes TLS finds corrupted is UNKNOWN to it; without TLS one may bring what is no message. A
        # fault comes again; then the batch that provokes it, sent alone after a break, learns of it.
        return isinstance(error, ServerError) and error.code in _RESETS and self._breaks < _MOST_RESETS

    def recall(self, delay: float = 0.0) -> None:
        """Everything in flight is to be sent again, and nothing is sent for `delay` seconds."""
        self._quiet_since = self._clock.now()
        self._resume_at = self._quiet_since + delay
        for item in self._in_flight.values():
            item.in_flight = False
        self._in_flight.clear()

    def start_over(self) -> None:
        """Everything under way is to be answered by somebody else, from now on; what went wrong is forgotten."""
        self._forget_failures()
        self.recall()
        for item in self._items:
            item.start_over(self._clock.now())

    def _forget_failures(self) -> None:
        self._breaks = 0
        self._failures = Failures()

    def overdue(self) -> list[Item]:
        """The batches whose time is up."""
        now = self._clock.now()
        return [item for item in self._items if item.deadline <= now and item.work is not None]

    def heard_nothing_since(self, item: Item) -> bool:
        """Whether no message has arrived since a batch under way was admitted, on a call that is no younger."""
        return item.in_flight and self._quiet_since <= item.started

    def reason(self, item: Item) -> PkpoError | None:
        """What the service last said of a batch whose time is up, or of the stream; None where it left it to wait."""
        # A batch that waits behind another one leaves the service no less time for it.
        asked = max(self._resume_at, item.started)
        since = item.sent_at if item.in_flight else max(asked, item.ready_at)
        said = item.refusals.reason(item.deadline - since) or self._failures.reason(item.deadline - asked)
        return said and copy_of(said)

    def give_up(self, item: Item, error: PkpoError) -> None:
        """The batch fails; should its answer still arrive, it is ignored."""
        self._in_flight = {sequence: each for sequence, each in self._in_flight.items() if each is not item}
        item.fail(error)

    def seconds_to_wait(self) -> float | None:
        """Seconds until there is something to do even if nothing arrives; None for no end."""
        now, soonest = self._clock.now(), math.inf
        for item in self._items:
            if item.work is None:
                continue
            soonest = min(soonest, item.deadline)
            if not item.in_flight and not self._held:
                soonest = min(soonest, max(item.ready_at, self._resume_at))
        return None if soonest == math.inf else max(0.0, soonest - now)


__all__ = ["Clock", "Item", "Window"]
