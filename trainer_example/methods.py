"""How rewards become advantages, by one name: what the papers compare."""

from __future__ import annotations

from dataclasses import dataclass

from pkpo_client import schedules
from pkpo_client.schedules import Schedule

WITHOUT_K = ("loo", "grpo", "tzsm")
PUBLISHED_ENTROPY_COEFFICIENTS = (0.001, 0.005, 0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        variant: of the service.
        k_at: the k of a training step; None for variants that take none.
        entropy_coefficient: how much of the policy's entropy is added to the objective.
    """

    variant: str
    k_at: Schedule | None
    entropy_coefficient: float = 0.0

    def k(self, step: int) -> int | None:
        """The k to ask the service for."""
        return None if self.k_at is None else self.k_at(step)


def method_named(text: str) -> Method:
    """The method that `text` names.

        k:8, k:8@0,1@400   PKPO's sloo_minus_one, with a k or a schedule of k; k:1 is LOO
        loo                leave-one-out, which is k:1
        anneal:400         k:8@0,1@400
        tzsm               k = n
        entropy:0.01       LOO, and an entropy bonus with this coefficient (.001, .005, .01, .05 and .1 were published)
        VARIANT:8          any variant of the service, with a k or a schedule
        VARIANT            those that take no k, or whose k is n: loo, grpo and tzsm

    Whether there is such a variant, and takes such a k, the service says.

    Raises:
        ValueError: a schedule, a step or a coefficient is none.
    """
    name, colon, value = text.partition(":")
    try:
        if name == "k":
            return Method("sloo_minus_one", schedules.from_string(value))
        if name == "anneal":
            return Method("sloo_minus_one", schedules.step({0: 8, int(value): 1}))
        if name == "entropy":
            return Method("loo", None, float(value))
        if colon and name in WITHOUT_K:
            raise ValueError(f"{name} takes no k")
        return Method(name, schedules.from_string(value) if colon else None)
    except ValueError as error:
        raise ValueError(f"method: {text!r}: {error}") from error
