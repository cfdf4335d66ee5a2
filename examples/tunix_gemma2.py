"""GRPO on Gemma-2 with google-tunix (JAX), for pass@k: a tiny random model on any machine, real weights on a TPU.

    pkpo-server &
    python examples/tunix_gemma2.py
    python examples/tunix_gemma2.py --size 2b-it --weights weights --mesh 4,1 --prompts 32 --k 8@0,1@300 --steps 400

Sums are asked for and checked. Real weights come from Kaggle (KAGGLE_USERNAME, KAGGLE_KEY), once their license is
accepted there. The page is docs/integrations/tunix.md.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.models.automodel import AutoModel, ModelSource
from tunix.models.gemma.model import AttentionType, Gemma, ModelConfig
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from pkpo_client.integrations import tunix as pkpo

TINY = ModelConfig(
    num_layers=2,
    num_embed=16,
    embed_dim=32,
    hidden_dim=64,
    num_heads=4,
    head_dim=16,
    num_kv_heads=2,
    final_logit_softcap=30.0,
    attention_types=(AttentionType.LOCAL_SLIDING, AttentionType.GLOBAL),
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    attn_logits_soft_cap=50.0,
    sliding_window_size=8,
)
CHAT = "<start_of_turn>user\nWhat is {}? Say only the number.<end_of_turn>\n<start_of_turn>model\n"


class Digits:
    """What the tiny model reads and writes, one token a character."""

    characters = "0123456789+="

    def encode(self, text: str, **_: Any) -> list[int]:
        return [3 + self.characters.index(character) for character in text]

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "".join(self.characters[token - 3] for token in tokens if 0 <= token - 3 < len(self.characters))

    def pad_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return 1

    def bos_id(self) -> int:
        return 2


def model_and_tokenizer(size: str, weights: Path, mesh: Mesh) -> tuple[nnx.Module, Any]:
    """Gemma-2, and what it reads: random weights where the size is tiny, else those from Kaggle."""
    if size == "tiny":
        with jax.set_mesh(mesh):
            return nnx.jit(lambda: Gemma(TINY, rngs=nnx.Rngs(0)))(), Digits()
    from sentencepiece import SentencePieceProcessor

    model, folder = AutoModel.from_pretrained(
        f"google/gemma-2-{size}",
        mesh,
        model_source=ModelSource.KAGGLE,
        model_path=f"google/gemma-2/flax/gemma2-{size}",
        model_download_path=str(weights),
        intermediate_ckpt_dir=str(weights / f"nnx-{size}"),
    )
    return model, SentencePieceProcessor(model_file=str(Path(str(folder)) / "tokenizer.model"))


def sums(size: str, prompts: int, steps: int) -> Iterator[dict[str, Any]]:
    """A batch for each step: prompts, and what is right."""
    random = np.random.default_rng(0)
    largest, template = (4, "{}=") if size == "tiny" else (999, CHAT)
    for _ in range(steps):
        terms = random.integers(0, largest, (prompts, 2), endpoint=True)
        asked = [template.format("+".join(map(str, pair))) for pair in terms]
        yield {"prompts": np.array(asked), "answer": terms.sum(axis=1)}


def right(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[int], **_: Any) -> list[float]:
    """1 for a completion whose first number is the answer."""
    said = [re.search(r"\d+", completion) for completion in completions]
    return [float(match is not None and match[0] == str(a)) for match, a in zip(said, answer, strict=True)]


def learner(options: argparse.Namespace) -> GRPOLearner:
    """What trains, with pkpo for its advantages."""
    shape = tuple(int(size) for size in options.mesh.split(","))
    mesh = jax.make_mesh(shape, ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, tokenizer = model_and_tokenizer(options.size, options.weights, mesh)
    tiny = options.size == "tiny"
    cluster = RLCluster(
        actor=model,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh={Role.ACTOR: mesh, Role.REFERENCE: mesh, Role.ROLLOUT: mesh},
            training_config=RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-2 if tiny else 1e-6),
                max_steps=options.steps,
                eval_every_n_steps=options.steps + 1,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=4 if tiny else 32,
                max_prompt_length=8 if tiny else 64,
                kv_cache_size=16 if tiny else 128,
                temperature=1.0,
            ),
        ),
    )
    estimator = pkpo.register(
        cluster, k=options.k, estimate_k=(1, 4, options.n), address=options.server, run_id="tunix-gemma2"
    )
    config = GRPOConfig(
        advantage_estimator="pkpo", num_generations=options.n, loss_agg_mode="seq-mean-token-sum", beta=0.0
    )

    def report(**batch: Any) -> dict[str, Any]:
        figures = estimator.metrics(**batch)
        print(f"step {cluster.global_steps}:", *(f"{name} = {value:.3f}" for name, (value, _) in figures.items()))
        # The sampler takes the same seed for every batch.
        cluster.cluster_config.rollout_config.seed = cluster.global_steps + 1
        return figures

    return GRPOLearner(cluster, config, reward_fns=right, metric_fns=[report])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--size", default="tiny", choices=["tiny", "2b", "2b-it", "9b", "9b-it"])
    made.add_argument("--weights", type=Path, default=Path("weights"), help="folder to keep them in")
    made.add_argument("--mesh", default="1,1", help="devices along fsdp,tp")
    made.add_argument("--steps", type=int, default=2)
    made.add_argument("--prompts", type=int, default=8, help="in a step")
    made.add_argument("--n", type=int, default=8, help="samples of a prompt")
    made.add_argument("--k", default="4", help="a number, or a schedule such as 8@0,1@300")
    made.add_argument("--server", default="localhost:50051")
    return made


def main() -> None:
    options = parser().parse_args()
    learner(options).train(list(sums(options.size, options.prompts, options.steps)))


if __name__ == "__main__":
    main()
