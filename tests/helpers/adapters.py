"""The tiny SD1.5 with its adapter targets, fixed inputs, and LoRA weights as after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.helpers.checkpoints import TEXT_ENCODER, UNET, tiny_modules
from trainer.families.sd15 import facts
from trainer.families.unet.facts import CLIP_L_CONFIG
from trainer.families.unet.targets import adapter_targets
from trainer.targets import Target

CONFIGS = {"unet": {**facts.UNET_CONFIG, **UNET}, "text_encoder": {**CLIP_L_CONFIG, **TEXT_ENCODER}}


@dataclass(frozen=True)
class Network:
    """The `[network]` settings that a LoRA reads."""

    network_type: str = "lora"
    network_dim: int = 4
    network_alpha: float = 2.0
    conv_dim: int | None = None
    conv_alpha: float | None = None
    network_weights: str = ""
    dim_from_weights: bool = False


def components(dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """Return the tiny UNet and text encoder by component name, the same weights each time."""
    unet, _, text_encoder = tiny_modules()
    return {"unet": unet.to(dtype), "text_encoder": text_encoder.to(dtype)}


def tiny_targets(*, conv: bool = True) -> tuple[Target, ...]:
    """Return the adapter targets of the tiny model."""
    return adapter_targets(facts.FACTS, CONFIGS, conv=conv)


def target_named(name: str) -> Target:
    """Return one target of the tiny model by its kohya name."""
    return next(target for target in tiny_targets() if target.name == name)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], seed: int = 3) -> None:
    """Give every matrix values as after training, in place; the second ones are zero at the start."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors.values():
        if tensor.dim():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


def run_unet(unet: nn.Module) -> Tensor:
    """Return the UNet's output for fixed input, [2, 4, 8, 8]."""
    generator = torch.Generator().manual_seed(4)
    dtype = unet.conv_in.weight.dtype
    noisy = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
    context = torch.randn(2, 7, UNET["cross_attention_dim"], generator=generator).to(dtype)
    return unet(noisy, torch.tensor([10, 500]), context).sample


def run_text_encoder(text_encoder: nn.Module) -> Tensor:
    """Return the text encoder's last hidden state for fixed tokens, [2, 7, 32]."""
    return text_encoder(torch.arange(100, 114).reshape(2, 7)).last_hidden_state


def outputs(models: Mapping[str, nn.Module]) -> Sequence[Tensor]:
    """Return what UNet and text encoder give for fixed input."""
    return run_unet(models["unet"]), run_text_encoder(models["text_encoder"])
