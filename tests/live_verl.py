"""verl's own trainer and FSDP worker in this process, on CPUs, for tests.

verl knows accelerators by plugins, and finds this one by VERL_USE_EXTERNAL_MODULES; `ENVIRONMENT` is to be set before
verl is imported. What is not verl's: answers come from `generate` of transformers in the place of a vLLM server, which
also leaves nobody to send weights to.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

VOCABULARY = 64
PROMPT, RESPONSE = 4, 5
PROMPTS_PER_STEP, SAMPLES = 3, 4


class DeviceModule(types.ModuleType):
    """What verl asks of torch.cuda that torch.cpu has not: memory, of which there is nothing to tell, and a name."""

    def mem_get_info(self) -> tuple[int, int]:
        return 0, 0

    def get_device_name(self) -> str:
        return "CPU"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name, lambda *arguments, **options: 0)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = DeviceModule("cpu")

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return contextlib.nullcontext()

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None: ...


def tiny_gemma2(directory: Path) -> Path:
    """A Gemma-2 of random weights, with a tokenizer whose words are numbers, as from_pretrained reads them."""
    from tokenizers import Tokenizer, models
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=64,
        )
    ).save_pretrained(directory)
    words = {str(i): i for i in range(VOCABULARY)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="3")),
        pad_token="0",
        eos_token="1",
        bos_token="2",
        unk_token="3",
    ).save_pretrained(directory)
    return directory


def composed(overrides: Sequence[str]) -> Any:
    """verl's configuration with these overrides, as its command line makes it."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


class Run:
    """A training run of verl's RayPPOTrainer.

    Args:
        model: where a tiny Gemma-2 is.
        overrides: of verl's configuration.
        reward: of the answers of a step (samples, tokens): a reward and the number of tokens for each.

    Attributes:
        rollouts: what was sampled at each step.
        weights, gradients: by name, those of each step before it was taken.
    """

    def __init__(
        self,
        model: Path,
        overrides: Sequence[str],
        reward: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        from transformers import AutoTokenizer
        from verl.trainer.ppo.ray_trainer import RayPPOTrainer
        from verl.trainer.ppo.utils import Role
        from verl.workers.engine_workers import ActorRolloutRefWorker

        actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
        config = composed(
            [
                f"actor_rollout_ref.model.path={model}",
                "+actor_rollout_ref.model.override_config.attn_implementation=eager",
                "actor_rollout_ref.model.use_remove_padding=False",
                "actor_rollout_ref.model.enable_gradient_checkpointing=False",
                f"{actor}.strategy=fsdp2",
                f"{actor}.fsdp_config.dtype=float32",
                f"+{actor}.fsdp_config.mixed_precision={{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}}",
                f"{actor}.use_torch_compile=False",
                f"{actor}.ppo_mini_batch_size={PROMPTS_PER_STEP}",
                f"{actor}.ppo_micro_batch_size_per_gpu=6",
                f"{actor}.optim.lr=0.01",
                f"{actor}.optim.clip_grad=1e9",
                f"{rollout}.name=vllm",
                f"{rollout}.n={SAMPLES}",
                f"{rollout}.log_prob_micro_batch_size_per_gpu=6",
                f"data.train_batch_size={PROMPTS_PER_STEP}",
                "data.dataloader_num_workers=0",
                "trainer.device=cpu",
                "trainer.n_gpus_per_node=1",
                "trainer.balance_batch=False",
                "trainer.logger=[console]",
                "trainer.test_freq=-1",
                "trainer.val_before_train=False",
                "trainer.resume_mode=disable",
                "trainer.total_epochs=8",
                *overrides,
            ]
        )
        self.worker = ActorRolloutRefWorker(config.actor_rollout_ref, role="actor")
        self.worker.init_model()
        self.rollouts: list[Any] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self._reward = reward
        self.worker.actor.engine.optimizer.register_step_pre_hook(self._remember)
        self.trainer = RayPPOTrainer(
            config,
            AutoTokenizer.from_pretrained(model),
            {Role.ActorRollout: object},
            types.SimpleNamespace(get_n_gpus=lambda: 1),
            train_dataset=Prompts(),
            val_dataset=Prompts(),
            train_sampler=torch.utils.data.SequentialSampler(Prompts()),
        )
        self.trainer.actor_rollout_wg = self.worker
        self.trainer.async_rollout_manager = types.SimpleNamespace(generate_sequences=self._generated)
        self.trainer.checkpoint_manager = types.SimpleNamespace(
            update_weights=lambda step: None, sleep_replicas=lambda: None
        )

    def fit(self) -> None:
        self.trainer.fit()

    def _remember(self, optimizer: Any, *_: Any) -> None:
        named = list(self.worker.actor.engine.module.named_parameters())
        self.weights.append({name: whole(each).clone() for name, each in named})
        self.gradients.append({name: whole(each.grad).clone() for name, each in named})

    def _generated(self, batch: Any) -> Any:
        from verl import DataProto

        numbers = batch.non_tensor_batch["raw_prompt"]
        prompts = torch.stack([torch.arange(4, 4 + PROMPT) + int(number) for number in numbers])
        with torch.no_grad():
            sequences = self.worker.actor.engine.module.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                max_new_tokens=RESPONSE,
                min_new_tokens=RESPONSE,
            )
        responses = sequences[:, PROMPT:]
        rewards, lengths = self._reward(responses)
        mask = (torch.arange(RESPONSE) < lengths.unsqueeze(1)).long()
        attention = torch.cat([torch.ones_like(prompts), mask], dim=1)
        scores = torch.zeros(responses.shape)
        scores[torch.arange(len(scores)), (lengths - 1).clamp(min=0)] = rewards
        rollout = DataProto.from_dict(
            tensors={
                "prompts": prompts,
                "responses": responses,
                "response_mask": mask,
                "input_ids": sequences,
                "attention_mask": attention,
                "position_ids": attention.cumsum(dim=1) - 1,
                "rm_scores": scores,
            },
            non_tensors={"multi_modal_inputs": np.array([{}] * len(scores), dtype=object)},
            meta_info={"timing": {}},
        )
        self.rollouts.append(rollout)
        return rollout


class Prompts(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Numbers: enough for four steps."""

    def __len__(self) -> int:
        return 4 * PROMPTS_PER_STEP

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"dummy_tensor": torch.zeros(1, dtype=torch.uint8), "raw_prompt": np.array(i)}


def whole(tensor: Any) -> torch.Tensor:
    """A parameter of FSDP, or its gradient, as one tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
