"""Writes diffusers modules as one file in the original Stable Diffusion 1.x layout.

The layout is that of the CompVis checkpoints: ``model.diffusion_model.*`` for the UNet, ``first_stage_model.*`` for
the VAE and ``cond_stage_model.transformer.text_model.*`` for CLIP's text model. The header's metadata entry
``component_configs`` describes the architecture, so that a file of any size can be rebuilt from itself alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.families.unet import weight_names

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

SCHEDULER_CONFIG: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

TEXT_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def unet_keys(unet: UNet2DConditionModel) -> dict[str, str]:
    """Maps every state key of the UNet to its original name, prefix included."""
    return {key: UNET_PREFIX + weight_names.unet_name(key, unet.config) for key in unet.state_dict()}


def vae_keys(vae: AutoencoderKL) -> dict[str, str]:
    """Maps every state key of the VAE to its original name, prefix included."""
    return {key: VAE_PREFIX + weight_names.vae_name(key, vae.config) for key in vae.state_dict()}


def vae_tensors(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The VAE's weights under their original names; the attention's linear layers become 1x1 convolutions."""
    names = vae_keys(vae)
    tensors: dict[str, Tensor] = {}
    for key, value in vae.state_dict().items():
        is_attention_matrix = ".attentions." in key and value.ndim == 2
        tensors[names[key]] = value[:, :, None, None] if is_attention_matrix else value
    return tensors


def to_single_file(unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    """Returns every weight of the three modules under its name in the original layout (shapes likewise)."""
    names = unet_keys(unet)
    tensors = {names[key]: value for key, value in unet.state_dict().items()}
    tensors |= vae_tensors(vae)
    for key, value in text_encoder.state_dict().items():
        # transformers 5 dropped the "text_model." level that the original names have.
        tensors[TEXT_PREFIX + key.removeprefix("text_model.")] = value
    return {key: value.detach() for key, value in tensors.items()}


def component_configs(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    scheduler: dict[str, object] | None = None,
) -> dict[str, dict[str, Any]]:
    """The architecture of each component in the configuration form of diffusers and transformers."""
    text = text_encoder.config.to_dict()
    return {
        "unet": {key: value for key, value in unet.config.items() if not key.startswith("_")},
        "vae": {key: value for key, value in vae.config.items() if not key.startswith("_")},
        "text_encoder": {key: text[key] for key in TEXT_CONFIG_KEYS if key in text},
        "scheduler": dict(scheduler or SCHEDULER_CONFIG),
    }


def write_single_file(
    path: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    dtype: torch.dtype = torch.float16,
    scheduler: dict[str, object] | None = None,
) -> None:
    """Writes the checkpoint to ``path`` in ``dtype``, by way of a temporary file beside it."""
    tensors = {key: value.to(dtype).contiguous() for key, value in to_single_file(unet, vae, text_encoder).items()}
    configs = component_configs(unet, vae, text_encoder, scheduler)
    metadata = {"format": "pt", "component_configs": json.dumps(configs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(path.name + ".part")
    save_file(tensors, waiting, metadata=metadata)
    waiting.chmod(0o644)  # safetensors writes files for their owner alone
    os.replace(waiting, path)


def read_single_file(path: Path) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Rebuilds the three modules from a file of ``write_single_file``, in float32 and ready for inference."""
    with safe_open(path, framework="pt") as opened:
        configs = json.loads(opened.metadata()["component_configs"])
        tensors = {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118 - no mapping
    unet = UNet2DConditionModel.from_config(configs["unet"])
    vae = AutoencoderKL.from_config(configs["vae"])
    text = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    unet.load_state_dict({key: tensors[name] for key, name in unet_keys(unet).items()})
    names = vae_keys(vae)
    vae.load_state_dict({key: tensors[names[key]].view_as(value) for key, value in vae.state_dict().items()})
    text.load_state_dict({key: tensors[TEXT_PREFIX + key.removeprefix("text_model.")] for key in text.state_dict()})
    modules = (unet, vae, text)
    for module in modules:
        module.eval().requires_grad_(False)
    return modules
