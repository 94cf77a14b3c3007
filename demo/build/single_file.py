"""Writes diffusers modules as one file in the original Stable Diffusion 1.x layout.

The layout is that of the CompVis checkpoints: ``model.diffusion_model.*`` for the UNet, ``first_stage_model.*`` for
the VAE and ``cond_stage_model.transformer.text_model.*`` for CLIP's text model. The header's metadata entry
``component_configs`` describes the architecture, so that a file of any size can be rebuilt from itself alone.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

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

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_modules(unet: UNet2DConditionModel) -> dict[str, str]:
    """Maps the path of each block of layers in diffusers to its path in the original layout."""
    paths = dict(UNET_TOP)
    stride = unet.config.layers_per_block + 1
    for level in range(len(unet.down_blocks)):
        for layer in range(stride - 1):
            place = 1 + level * stride + layer
            paths[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{place}.0"
            paths[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{place}.1"
        paths[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * stride}.0.op"
    for level, block in enumerate(unet.up_blocks):
        for layer in range(stride):
            place = level * stride + layer
            paths[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{place}.0"
            paths[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{place}.1"
        # The upsampler shares the place of the level's last layer, behind its resnet and, if there is one, attention.
        behind = 2 if getattr(block, "attentions", None) else 1
        paths[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{level * stride + stride - 1}.{behind}"
    return paths


def _split(key: str, paths: dict[str, str]) -> tuple[str, str]:
    """Splits a key at the longest known module path: (mapped path, rest of the key)."""
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:length])
        if head in paths:
            return paths[head], ".".join(parts[length:])
    raise ValueError(f"no place in the original layout for the weight {key!r}")


def unet_keys(unet: UNet2DConditionModel) -> dict[str, str]:
    """Maps every state key of the UNet to its original name, prefix included."""
    paths = _unet_modules(unet)
    names: dict[str, str] = {}
    for key in unet.state_dict():
        place, rest = _split(key, paths)
        if ".resnets." in key:
            layer, kind = rest.rsplit(".", 1)
            rest = f"{UNET_RESNET[layer]}.{kind}"
        names[key] = f"{UNET_PREFIX}{place}.{rest}"
    return names


def _vae_key(key: str, levels: int) -> str:
    """The original name of one VAE weight; the decoder counts its levels from the finest up."""
    key = re.sub(r"^encoder\.down_blocks\.(\d+)", r"encoder.down.\1", key)
    key = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"\.mid_block\.resnets\.(\d)", lambda found: f".mid.block_{int(found[1]) + 1}", key)
    key = re.sub(r"\.resnets\.(\d+)", r".block.\1", key)
    key = key.replace(".downsamplers.0.", ".downsample.").replace(".upsamplers.0.", ".upsample.")
    key = key.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
    if ".mid_block.attentions.0." in key:
        head, rest = key.split(".mid_block.attentions.0.")
        layer, kind = rest.rsplit(".", 1)
        key = f"{head}.mid.attn_1.{VAE_ATTENTION[layer]}.{kind}"
    return VAE_PREFIX + key


def vae_tensors(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The VAE's weights under their original names; the attention's linear layers become 1x1 convolutions."""
    levels = len(vae.config.block_out_channels)
    tensors: dict[str, Tensor] = {}
    for key, value in vae.state_dict().items():
        is_attention_matrix = ".attentions." in key and value.ndim == 2
        tensors[_vae_key(key, levels)] = value[:, :, None, None] if is_attention_matrix else value
    return tensors


def to_single_file(unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    """Returns every weight of the three modules under its name in the original layout (shapes likewise).

    Raises ValueError for a weight that the layout has no place for.
    """
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
    levels = len(vae.config.block_out_channels)
    state = vae.state_dict()
    vae.load_state_dict({key: tensors[_vae_key(key, levels)].view_as(value) for key, value in state.items()})
    text.load_state_dict({key: tensors[TEXT_PREFIX + key.removeprefix("text_model.")] for key in text.state_dict()})
    modules = (unet, vae, text)
    for module in modules:
        module.eval().requires_grad_(False)
    return modules
