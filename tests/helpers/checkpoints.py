"""Tiny random Stable Diffusion 1.x checkpoints with the real structure, in every form that can be loaded.

The blocks and the token table's 49408 rows are those of the published model; widths are small, and there is one layer
in each block: hundreds of runs are made of them. What depends on the number is tested on models of the real size,
without weights.
All forms made from one seed hold the same bits.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from demo.build.single_file import SCHEDULER_CONFIG, write_single_file

UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
VAE = {
    "sample_size": 64,
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


def tiny_modules(seed: int = 0) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Return a random UNet, VAE and text encoder, float32, in eval mode; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
        return UNet2DConditionModel(**UNET).eval(), AutoencoderKL(**VAE).eval(), text_encoder.eval()


def tiny_sd15(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write `tiny_sd15.safetensors` in the original layout and return its path."""
    path = Path(folder) / "tiny_sd15.safetensors"
    write_single_file(path, *tiny_modules(seed), dtype=dtype)
    return path


def full_sd15(folder: Path) -> Path:
    """Write a random `full_sd15.safetensors` with the published model's widths, in half precision (2.1 GB)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=VAE["down_block_types"],
            up_block_types=VAE["up_block_types"],
            scaling_factor=0.18215,
        )
        whole = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
        text_encoder = CLIPTextModel(
            CLIPTextConfig(**{**TEXT_ENCODER, **whole, "num_hidden_layers": 12, "num_attention_heads": 12})
        )
    path = Path(folder) / "full_sd15.safetensors"
    write_single_file(path, unet.eval(), vae.eval(), text_encoder.eval(), dtype=torch.float16)
    return path


def tiny_sd15_ckpt(folder: Path, *, seed: int = 0, legacy: bool = False) -> Path:
    """Write `tiny_sd15.ckpt`, a pickle of {"state_dict": ..., "component_configs": JSON}, and return its path.

    `legacy` writes the format that PyTorch had before 1.6.
    """
    source = tiny_sd15(folder, seed=seed)
    path = source.with_suffix(".ckpt")
    with safe_open(source, "pt") as file:
        content = {
            "global_step": 470000,
            "state_dict": {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118 - no mapping
            "component_configs": file.metadata()["component_configs"],
        }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    source.unlink()
    return path


def tiny_sd15_folder(folder: Path, *, seed: int = 0) -> Path:
    """Write the diffusers folder `tiny_sd15`, without tokenizer files, and return its path."""
    path = Path(folder) / "tiny_sd15"
    for name, module in zip(("unet", "vae", "text_encoder"), tiny_modules(seed), strict=True):
        module.save_pretrained(path / name)
    DDIMScheduler(**SCHEDULER_CONFIG).save_pretrained(path / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path
