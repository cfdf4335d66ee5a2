"""What the two clients of a service have in common: all but the waiting."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import grpc

from pkpo import __version__
from pkpo_client import status
from pkpo_client.attempts import Attempts, never_again
from pkpo_client.channel import Endpoint, server_version
from pkpo_client.errors import (
    ClientClosed,
    PermissionDenied,
    PkpoError,
    ServerError,
    Unauthenticated,
    Unavailable,
    refused,
)
from pkpo_client.local_engine import LocalEngine
from pkpo_client.options import Defaults
from pkpo_client.outage import Outage, logger
from pkpo_client.results import Limits
from pkpo_client.splitting import DEFAULT_LIMITS, LARGEST_MESSAGE_BYTES
from pkpo_client.window import Window
from pkpo_client.work import Info, ServerLimits, Work

#: What a probe may end with that the service itself did not say.
NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
PROBE_SECONDS = 60.0
#: For a call that only asks gRPC what it saw of the connection; the answer is there at once, or there is none.
GLANCE_SECONDS = 0.2


@dataclass(eq=False, slots=True)
class Ask:
    """To be asked of the service.

    Attributes:
        work: what.
        seconds: that this attempt may take.
        waited: seconds that the earlier ones took.
        patient: whether to wait for a connection where there is none.
    """

    work: Work
    seconds: float
    waited: float
    patient: bool


@dataclass(eq=False, slots=True)
class Pause:
    """Nothing to be done for `seconds`."""

    seconds: float


@dataclass(eq=False, slots=True)
class Compute:
    """To be computed in this process: `work`."""

    work: Work


class Remote(ABC):
    """A client of a service.

    Args:
        address: "host:port", "dns:///host:port" (balanced over all addresses of the name) or "unix:/path".
        credentials: of TLS, from `grpc.ssl_channel_credentials`; None for plaintext.
        token: a bearer token, sent in the `authorization` metadata of every call. Refused in plaintext to anything but
            this machine. Given a path, the token that this file holds: a change of it counts from the next call on.
        fallback: "local" computes in this process, with the same bits, while the service is unreachable (needs
            `pip install 'pkpo[local]'`); None raises.
        variant: of calls that do not say theirs, as are the following: "sloo_minus_one".
        scale: "sum" or "mean".
        k_policy: "strict" or "clamp".
        run_id: names the training run in the service's metrics and logs.
        timeout: seconds a call may take, with all retries and parts; `math.inf` for no end.

    Raises:
        InvalidArgument: an argument that cannot be.
        LocalComputingMissing: `fallback="local"` where numba is not installed.
    """

    #: The version of the server that answered last, None before the first answer.
    server_version: str | None

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | os.PathLike[str] | None = None,
        fallback: str | None = None,
        variant: str = "sloo_minus_one",
        scale: str = "sum",
        k_policy: str = "strict",
        run_id: str = "",
        timeout: float = 30.0,
    ) -> None:
        if fallback not in (None, "local"):
            raise refused("fallback", f"is {fallback!r:.80}; must be None or 'local'")
        self._endpoint = Endpoint(address, credentials, token)
        self._defaults = Defaults(variant, scale, k_policy, run_id, timeout)
        self._fallback = fallback
        self._engine = LocalEngine() if fallback else None
        self._outage = Outage(address)
        self._lock = threading.Lock()
        self._limits: Limits | None = None
        self._closed = False
        self._closing = threading.Event()
        self.server_version = None

    @property
    def address(self) -> str:
        """Of the service."""
        return self._endpoint.address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}{', closed' if self._closed else ''})"

    def __getstate__(self) -> dict[str, Any]:
        if self._endpoint.credentials is not None:
            raise TypeError(
                f"a {type(self).__name__} with credentials= cannot be pickled, for gRPC's credentials cannot; "
                "make it in the process that uses it"
            )
        defaults = self._defaults
        return {
            "address": self.address,
            "token": self._endpoint.token,
            "fallback": self._fallback,
            "variant": defaults.variant,
            "scale": defaults.scale,
            "k_policy": defaults.k_policy,
            "run_id": defaults.run_id,
            "timeout": defaults.timeout,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def _patient(self) -> bool:
        """Whether to wait for a service that is away for now: not where this process can compute."""
        return self._engine is None

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed(f"this client of {self.address} was closed; make another one")

    def _learn_version(self, *metadata: Any) -> None:
        """What the metadata of a call say of the server."""
        version = next(filter(None, map(server_version, metadata)), None)
        if version is None or version == self.server_version:
            return
        self.server_version = version
        if version.partition(".")[0] != __version__.partition(".")[0]:
            logger.warning(
                "%s runs pkpo %s and this client is pkpo %s: another major version", self.address, version, __version__
            )

    def _known(self, work: Work) -> Limits | None:
        """The answer to `work` where nobody need be asked for it."""
        return self._limits if isinstance(work, ServerLimits) else None

    def _answering(self, work: Work, seconds: float) -> Generator[Ask | Pause | Compute, Any, Any]:
        """How `work` is answered within `seconds`: by the service, or by this process while the service is away."""
        if self._outage.ongoing and not isinstance(work, Info):
            self._probe()
            return (yield from self._answering_here(work))
        started = time.monotonic()
        patient = self._patient or isinstance(work, Info)
        try:
            if isinstance(work, ServerLimits):
                return (yield from self._asking_limits(seconds, patient))
            return (yield from self._asking(work, seconds, patient))
        except Unavailable as error:
            if self._engine is None or isinstance(work, Info):
                raise
            self._outage.begin(time.monotonic() - started, error.seen)
            self._probe()
            return (yield from self._answering_here(work))

    def _answering_here(self, work: Work) -> Generator[Compute, Any, Any]:
        if isinstance(work, ServerLimits):
            # As they were, so that a batch is split as it would have been.
            return self._limits or DEFAULT_LIMITS
        self._outage.computed_here()
        return (yield Compute(work))

    def _asking(self, work: Work, seconds: float, patient: bool) -> Generator[Ask | Pause, Any, Any]:
        """The answer of the service to `work`, which is asked for again where that may help."""
        attempts = Attempts(seconds, patient)
        try:
            while True:
                try:
                    return (yield Ask(work, attempts.seconds_left, attempts.waited, patient))
                except PkpoError as error:
                    if self._engine is not None and isinstance(error, Unavailable):
                        self._engine.prepare()
                    pause = attempts.pause_after(error)
                    if pause is None:
                        raise attempts.ends_with(error)  # noqa: B904 - it has its cause
                yield Pause(pause)
        finally:
            # They hold the last error, which holds this frame, and that all of the work: not for the cyclic collector.
            del attempts

    def _asking_limits(self, seconds: float, patient: bool) -> Generator[Ask | Pause, Any, Limits]:
        try:
            limits: Limits = (yield from self._asking(Info(seconds), seconds, patient)).limits
        except (PermissionDenied, Unauthenticated):
            limits = DEFAULT_LIMITS
        except ServerError as error:
            if error.code != grpc.StatusCode.UNIMPLEMENTED.name:
                raise
            limits = DEFAULT_LIMITS
        self._limits = replace(limits, max_message_bytes=min(limits.max_message_bytes, LARGEST_MESSAGE_BYTES))
        return self._limits

    @abstractmethod
    def _probe(self) -> None:
        """Asks in the background whether the service is back, if nobody is asking."""

    def _computes_here(self, window: Window) -> bool:
        """Whether the batches of a stream are computed in this process now, whoever found the service away.

        Who can do that does not wait until a batch is overdue where nobody answers.
        """
        if self._engine is None:
            return False
        if window.broken:
            self._engine.prepare()
        if window.nobody_answers:
            self._outage.begin(window.waited, window.seen)
        return self._outage.ongoing

    def _give_up_overdue(self, window: Window, now: float, trouble: str | None) -> bool:
        """Ends what a stream has waited for too long: computed here where there is no connection, else an error.

        Args:
            window: of the stream; a batch is overdue.
            now: by its clock.
            trouble: what is wrong with the connection, as far as gRPC says; None where nothing is.

        Returns:
            Whether the call is to be given up too, for nothing comes from it.
        """
        overdue = window.overdue()
        connected = not window.broken and trouble is None
        silent = connected and window.heard_nothing_since(overdue[0])
        if not connected and self._engine is not None:
            self._outage.begin(now - overdue[0].started, trouble or window.seen)
            window.start_over()
            return True
        for item in overdue:
            window.give_up(
                item, window.reason(item) or self._late(now - item.started, None if connected else trouble or "")
            )
        if silent:
            window.recall()
        return silent

    def _error(self, failure: Any, waited: float, trouble: str | None) -> PkpoError:
        """The error of a call that gRPC says failed; `trouble` as in `_give_up_overdue`."""
        if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED and trouble is not None:
            return status.unreachable(self.address, waited, trouble)
        return status.error_of_call(failure, self.address, waited)

    def _end_of_stream(self, failure: Any, carried: Any, waited: float) -> PkpoError | None:
        """The error that a stream's call ended with; None where it goes on: here, or with the token of now.

        Args:
            failure: the `grpc.RpcError` of the call.
            carried: the metadata it was made with.
            waited: seconds that the first batch has waited.
        """
        error = self._error(failure, waited, None)
        error.__cause__ = failure
        if self._engine is not None and isinstance(error, Unavailable) and never_again(error):
            self._engine.prepare()
            self._outage.begin(waited, error.seen)
            return None
        return None if isinstance(error, Unauthenticated) and self._endpoint.metadata != carried else error

    def _late(self, waited: float, trouble: str | None) -> PkpoError:
        """The error of a batch whose time is up; `trouble` as in `_give_up_overdue`."""
        if trouble is None:
            return status.deadline_exceeded(self.address, waited)
        return status.unreachable(self.address, waited, trouble)


__all__ = ["GLANCE_SECONDS", "NO_ANSWER", "PROBE_SECONDS", "Ask", "Compute", "Pause", "Remote"]
