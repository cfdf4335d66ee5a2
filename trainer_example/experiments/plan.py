"""What is run: tasks, the methods compared on each, and seeds.

A seed decides everything of a run: the task's classes and prompts, the initial weights, the warm start and the samples.
Runs of one seed that differ in their method alone start from the same model and see the same prompts in the same order,
so that methods are compared seed by seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer_example.methods import PUBLISHED_ENTROPY_COEFFICIENTS

K = (1, 2, 4, 8, 16)
TZSM = "k = 16 (TZSM)"
BY_K = {f"k = {k}": f"k:{k}" for k in K[:-1]} | {TZSM: "tzsm"}
ENTROPY = {f"entropy {c}": f"entropy:{c}" for c in PUBLISHED_ENTROPY_COEFFICIENTS}
# 0.1 changes little, and with one seed of others 0.3 ended in noise: what there is to find is between them.
LARGER_ENTROPY = {f"entropy {c:g}": f"entropy:{c:g}" for c in (0.2, 0.3)}
# For k = 1 alone, that it is not said to have lost by the learning rate it was given.
RATES = {"k = 1, rate / 3": 1 / 3, "k = 1, rate * 3": 3.0}
OTHER_RATES = dict.fromkeys(RATES, "k:1")
ANALYTIC = {f"Pass@k analytic, k = {k}": f"passk_analytic:{k}" for k in (8, 1)}
EXPLORING = "k = 8"
ANNEALED = "8, then 1"
AT_SWITCH = "k:8@0,1@{switch}"
SEEDS = 3  # of everything, before any more of them
QUICK_SEEDS = 2
COMMON = {
    "samples_per_prompt": 16,
    "prompts_per_step": 64,
    "evaluation_samples": 32,
    "evaluation_prompts": 500,
    "checkpoint_every": 100,
    "tensorboard": False,
}


@dataclass(frozen=True)
class Experiment:
    """Methods that are compared on a task.

    Attributes:
        name: of the experiment.
        title: of its part of the page.
        text: what is tried, for the page.
        task: of the trainer, without its seed.
        options: of the trainer.
        methods: of the trainer, by what tables call them.
        measure: what the tables show: "pass" (all right or not), or "max" (the reward).
        rates: how many times the learning rate of `options` a method has, where it is another.
        seeds: how many.
        version: of how its runs are made and of what a result of them holds. No version's claims are tried on the
            seeds that another's were seen on.
    """

    name: str
    title: str
    text: str
    task: str
    options: Mapping[str, Any]
    methods: Mapping[str, str]
    measure: str = "pass"
    rates: Mapping[str, float] = field(default_factory=dict)
    seeds: int = SEEDS
    version: int = 2

    def runs(self) -> list[Run]:
        """Every seed of a method, method by method."""
        return [Run(self, label, seed) for label in self.methods for seed in range(1, self.seeds + 1)]

    def ks(self) -> dict[int, str]:
        """The methods that differ in their k alone, by it."""
        return {k: label for k, label in zip(K, BY_K, strict=True) if label in self.methods}


@dataclass(frozen=True)
class Run:
    """One method on one task with one seed."""

    experiment: Experiment
    label: str
    seed: int

    @property
    def follows(self) -> Run | None:
        """The run that has to be done before this one, because it says when this one changes its k."""
        return Run(self.experiment, EXPLORING, self.seed) if self.label == ANNEALED else None

    def options(self, switch: int | None = None) -> dict[str, Any]:
        """What the trainer is told, but for where things are.

        Args:
            switch: the step at which k changes, for a run that follows another.
        """
        task = self.experiment.task
        seed = 100 * self.experiment.version + self.seed
        options = {**COMMON, **self.experiment.options}
        if self.label in self.experiment.rates:
            options["learning_rate"] *= self.experiment.rates[self.label]
        return {
            **options,
            "task": f"{task}{',' if ':' in task else ':'}seed={seed}",
            "method": self.experiment.methods[self.label].format(switch=switch),
            "seed": seed,
            "model_seed": seed,
        }

    def key(self, switch: int | None = None) -> str:
        """The name of the run and a hash of everything it is told: of other options, another key."""
        told = json.dumps([self.experiment.version, self.options(switch)], sort_keys=True)
        return f"{self.experiment.name}-{self.seed}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


AMBIGUOUS = Experiment(
    "ambiguous",
    "Ambiguous prompts",
    "A prompt is a letter and four digits; its class, the letter, draws one of six rules with chances .40 to .06, "
    "and which one is not in the prompt. The warm start knows the six, not their chances. An answer is right or "
    "wrong.",
    "rules",
    {"steps": 800, "learning_rate": 2e-4, "evaluate_every": 100},
    {
        **BY_K,
        **ENTROPY,
        **LARGER_ENTROPY,
        **ANALYTIC,
        "Pass@k bootstrap, k = 8": "passk_bootstrap:8",
        "Pass@k full, k = 8": "passk_full:8",
        ANNEALED: AT_SWITCH,
    },
)
AGAIN = dataclasses.replace(
    AMBIGUOUS,
    name="again",
    title="Ambiguous prompts, once more",
    text="The same task with eight seeds that are none of those above, for every k and what is annealed.",
    options={**AMBIGUOUS.options, "evaluate_every": 200},
    methods={**BY_K, ANNEALED: AT_SWITCH},
    seeds=8,
    version=4,
)
HARD_ENTROPY = ("entropy 0.01", "entropy 0.05", "entropy 0.1")
HARD = Experiment(
    "hard",
    "A hard set",
    "Four classes; a prompt wants one simple rule with chance 0.2 and a composition of two rules with 0.8. In the "
    "warm start's demonstrations of a composition every digit is replaced by a random one with chance 0.65, so that "
    "the model rarely gets one right.",
    "rules:hard=true",
    {"steps": 2000, "learning_rate": 5e-4, "evaluate_every": 200},
    {**BY_K, **{label: ENTROPY[label] for label in HARD_ENTROPY}, **ANALYTIC, ANNEALED: AT_SWITCH, **OTHER_RATES},
    rates=RATES,
    version=3,
)
DIGITS = Experiment(
    "digits",
    "The share of right digits",
    "The ambiguous task, but the reward is continuous, the share of right digits, and a quarter of the digits in the "
    "warm start's demonstrations are random: the model has yet to learn to apply a rule without a slip.",
    "rules:continuous=true,slips=0.25",
    {"steps": 600, "learning_rate": 2e-4, "evaluate_every": 100},
    dict(BY_K),
    "max",
)
FOG = Experiment(
    "fog",
    "A maze half in fog",
    "A robot is told its whole way through a maze of 5 x 5 cells, to the right and down, before it starts. Nearly half "
    "of the cells, 44 %, are in fog, and 43 % of those hide a wall; there is always a way through. The warm start "
    "shows ways that meet no wall that is seen, however much fog is on them, for so long that the model knows them.",
    "fog",
    {"steps": 400, "learning_rate": 5e-4, "evaluate_every": 50, "warm_start_steps": 2400},
    {**BY_K, **OTHER_RATES},
    rates=RATES,
    version=5,
)
SUMS = Experiment(
    "sums",
    "A task of reasoning-gym",
    "`chain_sum` of reasoning-gym, two numbers of two digits, with its own questions and its own scorer; a Gemma-2 "
    "of four layers and width 128 after a short warm start. The scorer gives part marks: training sees them, and "
    "pass@k counts full marks only. The prompts are drawn from the 16,200 such questions: some of training come "
    "twice, and of 22 to 24 % of the held-out questions, nearly half of the additions, the one with its numbers the "
    "other way round is in training.",
    "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=2,max_digits=2,"
    "max_new_tokens=5,warm_start_steps=150,test_prompts=1000",
    {"model": "small-gemma2", "steps": 500, "learning_rate": 1e-4, "warmup_steps": 20, "evaluate_every": 100},
    {"k = 1": "k:1", "k = 8": "k:8", **OTHER_RATES},
    rates=RATES,
    version=3,
)
EXPERIMENTS = (AMBIGUOUS, AGAIN, HARD, DIGITS, FOG, SUMS)


def quick(experiment: Experiment) -> Experiment:
    """The same with few steps and seeds: to see that everything works, not what comes out."""
    options = {"steps": 40, "evaluate_every": 20, "evaluation_prompts": 100, "warm_start_steps": 100}
    return dataclasses.replace(experiment, options={**experiment.options, **options}, seeds=QUICK_SEEDS)


def with_seeds(experiment: Experiment, seeds: int) -> Experiment:
    """The same with fewer seeds or with more: more of some never takes planned ones from another."""
    return dataclasses.replace(experiment, seeds=max(seeds, experiment.seeds) if seeds > SEEDS else seeds)


def runs_of(experiments: Sequence[Experiment]) -> list[Run]:
    """All runs: the first seeds of every comparison of k, those of the other methods, and then all further seeds."""
    runs = [run for experiment in experiments for run in experiment.runs()]
    return [
        *(run for run in runs if run.seed <= SEEDS and run.label in BY_K),
        *(run for run in runs if run.seed <= SEEDS and run.label not in BY_K),
        *(run for run in runs if run.seed > SEEDS),
    ]
