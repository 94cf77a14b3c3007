"""Stable Diffusion 1.x as numbers and names: no weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.unet import facts as stable
from trainer.families.unet.facts import StableFacts, TextEncoderFacts

UNET_CONFIG: Mapping[str, Any] = {
    **stable.UNET_CONFIG,
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}

VAE_SCALE = 0.18215
VAE_CONFIG: Mapping[str, Any] = {**stable.VAE_CONFIG, "sample_size": 512, "scaling_factor": VAE_SCALE}

FACTS = StableFacts(
    name="sd15",
    vae_scale=VAE_SCALE,
    text_encoders=(
        TextEncoderFacts("text_encoder", "cond_stage_model.transformer.", "lora_te_text_model_", setting="clip_l"),
    ),
    configs={
        "unet": UNET_CONFIG,
        "vae": VAE_CONFIG,
        "text_encoder": stable.CLIP_L_CONFIG,
        "scheduler": stable.SCHEDULER_CONFIG,
    },
)
