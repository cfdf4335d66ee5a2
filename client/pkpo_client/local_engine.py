"""Work done in this process, by the same mathematics as the service: bit for bit the same answers.

`pkpo_core` needs numba, which the base install does not have; it is imported when the first work arrives.
"""

from __future__ import annotations

import importlib.util
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pkpo import __version__
from pkpo_client.errors import DeadlineExceeded, InvalidArgument, LocalComputingMissing, Violation
from pkpo_client.results import MaxAtK, ServerInfo, VariantInfo
from pkpo_client.splitting import NO_LIMITS
from pkpo_client.work import Advantages, Batch, EstimateBatch, Info, ServerLimits, Work

_preparing = threading.Lock()


class LocalEngine:
    """Does any work in this process.

    Raises:
        LocalComputingMissing: numba is not installed.
    """

    def __init__(self) -> None:
        # Found out now and not in the middle of an outage; importing numba takes longer and can wait.
        for needed in ("numba", "pkpo_core"):
            if importlib.util.find_spec(needed) is None:
                raise LocalComputingMissing(f"computing in this process needs {needed}: pip install 'pkpo[local]'")
        self._prepared = False

    def prepare(self) -> None:
        """Loads the kernels in the background, that the first work may find them there. Once; again does nothing."""
        with _preparing:
            if self._prepared:
                return
            # Where no thread is to be had, the first work loads them itself.
            with suppress(RuntimeError):
                threading.Thread(target=_load_kernels, name="pkpo-local-kernels").start()
                self._prepared = True

    def answer(self, work: Work, seconds: float = math.inf) -> Any:
        """The answer to `work`.

        Args:
            work: of any kind.
            seconds: it may take.

        Raises:
            InvalidArgument: as the service would.
            DeadlineExceeded: it took longer.
        """
        if isinstance(work, ServerLimits):
            return NO_LIMITS
        import pkpo_core

        if isinstance(work, Info):
            return _info()
        try:
            if isinstance(work, Batch):
                return _transformed(work, _checkpoint(seconds))
            if isinstance(work, EstimateBatch):
                groups = pkpo_core.RewardGroups(work.rewards, work.group_sizes)
                return _estimates(pkpo_core.estimate(groups, work.k, checkpoint=_checkpoint(seconds)))
        except pkpo_core.InvalidArgument as error:
            violations = [Violation(each.field, each.description) for each in error.violations]
            raise InvalidArgument.of(*violations) from error
        raise TypeError(f"no such work: {work!r}")


def _load_kernels() -> None:
    with suppress(Exception):  # which the first work meets too, and there is somebody to be told
        import pkpo_core

        pkpo_core.compile_kernels(checkpoint=_end_with_the_program)


def _end_with_the_program() -> None:
    # No daemon: those are ended wherever they are, and the compiler is no place for that. So the program waits.
    if not threading.main_thread().is_alive():
        raise SystemExit  # of this thread


def _transformed(batch: Batch, checkpoint: Callable[[], None]) -> Advantages:
    import pkpo_core

    done = pkpo_core.transform(
        pkpo_core.RewardGroups(batch.rewards, batch.group_sizes),
        batch.k,
        variant=pkpo_core.Variant(batch.variant),
        scale=pkpo_core.Scale(batch.scale),
        k_policy=pkpo_core.KPolicy(batch.k_policy),
        estimate_k=batch.estimate_k,
        seed=batch.seed,
        first_group=batch.first_group,
        checkpoint=checkpoint,
    )
    return Advantages(done.advantages, done.group_statuses, _estimates(done.estimates))


def _estimates(done: Any) -> tuple[MaxAtK, ...]:
    return tuple(MaxAtK(each.k, each.values, each.standard_errors) for each in done)


def _info() -> ServerInfo:
    import pkpo_core

    return ServerInfo(
        version=__version__,
        variants=tuple(
            VariantInfo(variant.value, about.source, about.k_range, about.needs_seed)
            for variant, about in pkpo_core.VARIANTS.items()
        ),
        limits=NO_LIMITS,
        default_variant=pkpo_core.Variant.SLOO_MINUS_ONE.value,
    )


def _checkpoint(seconds: float) -> Callable[[], None]:
    until = time.monotonic() + seconds

    def checkpoint() -> None:
        if time.monotonic() > until:
            error = DeadlineExceeded(f"computing in this process took longer than {max(seconds, 0.0):.1f} s")
            error.advice = "; give a longer timeout="
            raise error

    return checkpoint


__all__ = ["LocalEngine"]
