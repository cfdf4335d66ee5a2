"""Every method by its name, and what the service makes of each."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate import Accelerator

from live_server import LiveServer
from pkpo_client import Client, LocalClient, errors, schedules
from trainer_example.advantages import Service
from trainer_example.configuration import Configuration
from trainer_example.methods import PUBLISHED_ENTROPY_COEFFICIENTS, Method, method_named

K_OPT = (1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        *((f"k:{k}", Method("sloo_minus_one", schedules.constant(k))) for k in K_OPT),
        ("k:8@0,1@400", Method("sloo_minus_one", schedules.step({0: 8, 400: 1}))),
        ("anneal:400", Method("sloo_minus_one", schedules.step({0: 8, 400: 1}))),
        ("tzsm", Method("tzsm", None)),
        ("loo", Method("loo", None)),
        ("passk_analytic:4", Method("passk_analytic", schedules.constant(4))),
        *((f"entropy:{c}", Method("loo", None, c)) for c in PUBLISHED_ENTROPY_COEFFICIENTS),
    ],
)
def test_names(text: str, method: Method) -> None:
    assert method_named(text) == method


@pytest.mark.parametrize("text", ["k:", "k:0", "k:many", "anneal:soon", "entropy:", "s:1@x", "loo:8", "tzsm:8"])
def test_what_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=f"method: '{text}'"):
        method_named(text)


def test_every_variant_of_the_service_trains(server: LiveServer, tiny: dict[str, object]) -> None:
    """The advantages of a step are the client's own, of every variant that the service says it has."""
    rewards = np.random.default_rng(0).integers(2, size=(4, 16)).astype(float)
    with Client(server.address) as client, LocalClient() as local:
        variants = [variant.name for variant in client.server_info().variants]
        assert len(variants) >= 14
        for variant in variants:
            text = variant if variant in ("loo", "grpo", "tzsm") else f"{variant}:8"
            configuration = Configuration(**{**tiny, "samples_per_prompt": 16, "method": text})  # type: ignore[arg-type]
            with Service(configuration, method_named(text), Accelerator(cpu=True)) as service:
                service.check()
                signal = service.signal(rewards, step=3)
            k = None if variant in ("loo", "grpo", "tzsm") else 8
            wanted = local.transform(rewards, k, variant=variant, scale="sum", seed=3)
            np.testing.assert_array_equal(signal.advantages.numpy().reshape(4, 16), wanted.astype(np.float32))


def test_k_1_is_leave_one_out(tiny: dict[str, object]) -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]] * 2)
    configuration = Configuration(**tiny)  # type: ignore[arg-type]
    of = []
    for text in ("k:1", "loo", "entropy:0.01"):
        with Service(configuration, method_named(text), Accelerator(cpu=True)) as service:
            of.append(service.signal(rewards, step=0).advantages.numpy())
    np.testing.assert_allclose(of[0], of[1], rtol=1e-6)
    np.testing.assert_array_equal(of[1], of[2])


@pytest.mark.parametrize("text", ["k:8@0,9@3", "sloo:8", "no_such_variant:2", "s"])
def test_what_the_service_would_refuse_is_refused_before_the_first_step(text: str, tiny: dict[str, object]) -> None:
    configuration = Configuration(**{**tiny, "method": text})  # type: ignore[arg-type]
    with (
        Service(configuration, method_named(text), Accelerator(cpu=True)) as service,
        pytest.raises(errors.InvalidArgument),
    ):
        service.check()


def test_groups_without_signal_are_counted(tiny: dict[str, object]) -> None:
    configuration = Configuration(**tiny)  # type: ignore[arg-type]
    with Service(configuration, method_named("k:2"), Accelerator(cpu=True)) as service:
        signal = service.signal(np.array([[1.0] * 8, [0.0] * 8, [1.0] + [0.0] * 7]), step=0)
    assert signal.groups_without_signal == 2
    assert signal.k == 2
