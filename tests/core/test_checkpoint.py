"""Long work can be stopped from outside: the checkpoint is called along the way, and may raise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from core.samples import JIT
from pkpo_core import RewardGroups, Variant, compile_kernels, estimate, transform

GROUPS = 40_000 if JIT else 400
BATCH = RewardGroups(np.random.default_rng(1).integers(0, 2, GROUPS * 64).astype(float), 64)
KS = {Variant.TZSM: 64}


class Stopped(Exception):
    pass


class Checkpoint:
    def __init__(self, stop_at: int | None = None) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            raise Stopped


@pytest.mark.parametrize("variant", Variant, ids=lambda variant: variant.value)
def test_a_transform_is_stopped_by_what_its_checkpoint_raises(variant: Variant) -> None:
    def run(checkpoint: Any) -> Any:
        return transform(BATCH, KS.get(variant, 4), variant=variant, checkpoint=checkpoint).advantages

    watching = Checkpoint()
    np.testing.assert_array_equal(run(watching), run(None))
    assert watching.calls >= (2 if JIT else 1)
    for stop_at in (1, watching.calls):
        with pytest.raises(Stopped):
            run(Checkpoint(stop_at))


def test_an_estimate_is_stopped_too() -> None:
    watching = Checkpoint()
    estimate(BATCH, [1, 2, 4], checkpoint=watching)
    assert watching.calls >= (2 if JIT else 1)
    for stop_at in (1, watching.calls):
        with pytest.raises(Stopped):
            estimate(BATCH, [1, 2, 4], checkpoint=Checkpoint(stop_at))


def test_kernels_can_be_compiled_ahead_and_again() -> None:
    compile_kernels()
    compile_kernels()


def test_compiling_ahead_is_stopped_too() -> None:
    watching = Checkpoint()
    compile_kernels(checkpoint=watching)
    assert watching.calls > 2
    with pytest.raises(Stopped):
        compile_kernels(checkpoint=Checkpoint(2))
