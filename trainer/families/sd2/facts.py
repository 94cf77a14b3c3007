"""Stable Diffusion 2.x as numbers and names: no weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.unet import facts as stable
from trainer.families.unet.facts import StableFacts, TextEncoderFacts

UNET_CONFIG: Mapping[str, Any] = {
    **stable.UNET_CONFIG,
    "sample_size": 96,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}

VAE_SCALE = 0.18215
VAE_CONFIG: Mapping[str, Any] = {**stable.VAE_CONFIG, "sample_size": 768, "scaling_factor": VAE_SCALE}

OPEN_CLIP_H_CONFIG: Mapping[str, Any] = {
    **stable.CLIP_L_CONFIG,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 512,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
"""The text encoder of OpenCLIP ViT-H/14 without the last of its 24 layers, which the model was not trained on."""

FACTS = StableFacts(
    name="sd2",
    vae_scale=VAE_SCALE,
    text_encoders=(TextEncoderFacts("text_encoder", "cond_stage_model.model.", "lora_te_text_model_", pad=0),),
    configs={
        "unet": UNET_CONFIG,
        "vae": VAE_CONFIG,
        "text_encoder": OPEN_CLIP_H_CONFIG,
        "scheduler": stable.SCHEDULER_CONFIG,
    },
    exclamation_is_padding=True,
    predicts_either=True,
    projections_as_convolutions=True,
)
