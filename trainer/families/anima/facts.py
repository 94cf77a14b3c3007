"""Anima as numbers and names (CircleStone Labs and Comfy Org 2026): no weights, no torch.

It is NVIDIA's Cosmos-Predict2 for pictures, whose text comes from an adapter: words as T5 cuts them look at what
Qwen3 makes of the same text. The VAE is Qwen-Image's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.family import Latents

DENOISER, CONDITIONER, TEXT = "transformer", "text_conditioner", "text_encoder"
"""The components, as diffusers' folders call them. The second, the adapter, lies in the first one's file."""

CHANNELS, FACTOR, PATCH = 16, 8, 2
LENGTH = 512
"""Rows of text that the transformer sees; those beyond a caption's end are zeros."""
GUIDANCE = 4.0
"""How far samples are pushed away from the negative prompt, where a prompt says nothing."""

TRANSFORMER_CONFIG: Mapping[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": (128, 240, 240),
    "patch_size": (1, PATCH, PATCH),
    "rope_scale": (1.0, 4.0, 4.0),
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}

CONDITIONER_CONFIG: Mapping[str, Any] = {
    "source_dim": 1024,
    "target_dim": 1024,
    "model_dim": 1024,
    "num_layers": 6,
    "num_attention_heads": 16,
    "mlp_ratio": 4.0,
    "target_vocab_size": 32128,
    "use_self_attention": True,
    "use_layer_norm": False,
    "min_sequence_length": LENGTH,
}

TEXT_CONFIG: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "use_cache": False,
}
"""Qwen3 0.6B, the base model (Yang et al. 2025)."""

VAE_CONFIG: Mapping[str, Any] = {
    "base_dim": 96,
    "z_dim": CHANNELS,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attn_scales": (),
    "temperal_downsample": (False, True, True),
    "dropout": 0.0,
    "input_channels": 3,
    "latents_mean": (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    "latents_std": (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
    ),
}  # fmt: skip

SCHEDULER_CONFIG: Mapping[str, Any] = {"num_train_timesteps": 1000, "shift": 3.0}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    DENOISER: TRANSFORMER_CONFIG,
    CONDITIONER: CONDITIONER_CONFIG,
    "vae": VAE_CONFIG,
    TEXT: TEXT_CONFIG,
    "scheduler": SCHEDULER_CONFIG,
}


def latents_of(vae: Mapping[str, Any]) -> Latents:
    """Return what a VAE of this configuration makes of pictures, and how the transformer takes it."""
    scale = tuple(1.0 / deviation for deviation in vae["latents_std"])
    return Latents(CHANNELS, FACTOR, PATCH, scale, tuple(vae["latents_mean"]))


LATENTS = latents_of(VAE_CONFIG)
