"""What a training step is compared with: the floor below every LoRA trainer, and a plain loop of the libraries' own.

Both get latents and text states that lie in memory ready for use, and models with random weights: numbers do not
decide how long the arithmetic takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.ground import random_modules
from trainer.config import TrainingConfig, resolution_size
from trainer.families import recognise_chosen

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
"""The UNet's layers that kohya's LoRA attaches to."""
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]

_TOKENS = 77
_TIME_IDS = 6


class Inputs:
    """Random inputs of a step: latents [b, 4, h, w], token ids [b, 77], text states and, of SDXL, the conditions."""

    def __init__(self, config: TrainingConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.configs: Mapping[str, Mapping[str, Any]] = recognise_chosen(config).configs
        width, height = resolution_size(config)
        batch = config.training.train_batch_size
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.latents = torch.randn(batch, 4, height // 8, width // 8, **options)
        self.noise = torch.randn_like(self.latents)
        self.timesteps = torch.randint(0, 1000, (batch,), device=device)
        self.token_ids = torch.randint(0, 49406, (batch, _TOKENS), device=device)
        self.context = torch.randn(batch, _TOKENS, self.configs["unet"]["cross_attention_dim"], **options)
        self.conditions: dict[str, Tensor] | None = None
        if "text_encoder_2" in self.configs:
            pooled = self.configs["text_encoder_2"]["projection_dim"]
            ids = torch.full((batch, _TIME_IDS), float(width), **options)
            self.conditions = {"text_embeds": torch.randn(batch, pooled, **options), "time_ids": ids}


def _parts(inputs: Inputs) -> dict[str, Mapping[str, Any]]:
    return {name: inputs.configs[name] for name in ("unet", "text_encoder")}


class Floor:
    """One forward and one backward through frozen models: below this no LoRA training of them can be.

    diffusers' UNet, and transformers' text encoder where it is trained, in eval mode with SDPA, every weight frozen;
    gradients are asked of the latents and the text states (where the text encoder is trained: of its embeddings).
    """

    def __init__(self, config: TrainingConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.inputs = Inputs(config, device, dtype)
        self.trains_text = not config.network.network_train_unet_only
        modules = random_modules(_parts(self.inputs), device=device)
        self.unet, self.text = (part.to(device, dtype).requires_grad_(False) for part in modules.values())
        if config.training.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.text.gradient_checkpointing_enable({"use_reentrant": False})
            self.text.train()
        self.text.get_input_embeddings().register_forward_hook(lambda _module, _inputs, out: out.requires_grad_())

    def __call__(self) -> None:
        """Compute one step."""
        inputs = self.inputs
        latents = inputs.latents.detach().requires_grad_()
        context = inputs.context.detach().requires_grad_()
        if self.trains_text:
            context = self.text(inputs.token_ids).last_hidden_state
        answer = self.unet(latents, inputs.timesteps, context, added_cond_kwargs=inputs.conditions, return_dict=False)
        mse_loss(answer[0].float(), inputs.noise.float()).backward()


class Reference:
    """The loop of diffusers' LoRA training example in our words: PEFT adapters, accelerate, torch's AdamW.

    The example also decodes each picture and encodes picture and caption in every step; here they lie ready.
    """

    def __init__(self, config: TrainingConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.inputs = Inputs(config, device, torch.float32)
        self.trains_text = not config.network.network_train_unet_only
        modules = random_modules(_parts(self.inputs), device=device)
        unet, text = (part.to(device, dtype).requires_grad_(False) for part in modules.values())
        network = config.network
        options: dict[str, Any] = {"r": network.network_dim, "lora_alpha": network.network_alpha}
        unet.add_adapter(LoraConfig(**options, init_lora_weights="gaussian", target_modules=TARGETS))
        if self.trains_text:
            text.add_adapter(LoraConfig(**options, init_lora_weights="gaussian", target_modules=TEXT_TARGETS))
        if config.training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            text.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [part for module in (unet, text) for part in module.parameters() if part.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(trained, lr=config.optimizer.learning_rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
        if not AcceleratorState._shared_state:
            Accelerator(mixed_precision=config.training.mixed_precision, cpu=device.type == "cpu")
        self.accelerator = Accelerator()
        self.unet, self.text, self.optimizer, self.schedule = self.accelerator.prepare(unet, text, optimizer, schedule)
        self.unet.train()
        self.text.train()
        self.trained, self.noise_scheduler = trained, DDPMScheduler()
        self.limit = config.optimizer.max_grad_norm

    def __call__(self) -> None:
        """Make one step."""
        inputs, accelerator = self.inputs, self.accelerator
        with accelerator.accumulate(self.unet):
            noise = torch.randn_like(inputs.latents)
            timesteps = torch.randint(0, 1000, (len(noise),), device=noise.device).long()
            noisy = self.noise_scheduler.add_noise(inputs.latents, noise, timesteps)
            context = self.text(inputs.token_ids, return_dict=False)[0] if self.trains_text else inputs.context
            answer = self.unet(noisy, timesteps, context, added_cond_kwargs=inputs.conditions, return_dict=False)[0]
            loss = mse_loss(answer.float(), noise.float(), reduction="mean")
            average = accelerator.gather(loss.repeat(len(noise))).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.trained, self.limit)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        average.item()
