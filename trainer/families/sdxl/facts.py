"""Stable Diffusion XL as numbers and names (Podell et al. 2023): no weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.unet import facts as stable
from trainer.families.unet.facts import StableFacts, TextEncoderFacts

UNET_CONFIG: Mapping[str, Any] = {
    **stable.UNET_CONFIG,
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

VAE_SCALE = 0.13025
VAE_CONFIG: Mapping[str, Any] = {
    **stable.VAE_CONFIG,
    "sample_size": 1024,
    "scaling_factor": VAE_SCALE,
    "force_upcast": True,
}

OPEN_CLIP_BIGG_CONFIG: Mapping[str, Any] = {
    **stable.CLIP_L_CONFIG,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}
"""The text encoder of OpenCLIP ViT-bigG/14."""

FACTS = StableFacts(
    name="sdxl",
    vae_scale=VAE_SCALE,
    text_encoders=(
        TextEncoderFacts(
            "text_encoder",
            "conditioner.embedders.0.transformer.",
            "lora_te1_text_model_",
            setting="clip_l",
        ),
        TextEncoderFacts(
            "text_encoder_2",
            "conditioner.embedders.1.model.",
            "lora_te2_text_model_",
            projected=True,
            pad=0,
            setting="clip_g",
        ),
    ),
    configs={
        "unet": UNET_CONFIG,
        "vae": VAE_CONFIG,
        "text_encoder": stable.CLIP_L_CONFIG,
        "text_encoder_2": OPEN_CLIP_BIGG_CONFIG,
        "scheduler": stable.SCHEDULER_CONFIG,
    },
    original_names=True,
)
