"""FLUX.1 as numbers and names (Black Forest Labs 2024): no weights, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.family import Latents
from trainer.families.unet import facts as stable

DENOISER, CLIP, T5 = "transformer", "text_encoder", "text_encoder_2"
"""The components, as diffusers' folders call them."""

LATENTS = Latents(channels=16, factor=8, patch=2, scale=0.3611, shift=0.1159)
TOKEN = LATENTS.channels * LATENTS.patch**2
"""Numbers in what the transformer takes as one token."""
MLP_RATIO = 4
TIMES = 256
"""Width of the sines and cosines that a sigma is told by."""

DEV_LENGTH, SCHNELL_LENGTH = 512, 256
"""T5 tokens of a caption, by whether the model is told a guidance."""

TRANSFORMER_CONFIG: Mapping[str, Any] = {
    "patch_size": 1,
    "in_channels": TOKEN,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
"""FLUX.1 dev; schnell is the same without guidance_embeds."""

VAE_CONFIG: Mapping[str, Any] = {
    **stable.VAE_CONFIG,
    "latent_channels": LATENTS.channels,
    "sample_size": 1024,
    "scaling_factor": LATENTS.scale,
    "shift_factor": LATENTS.shift,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

T5_CONFIG: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "is_encoder_decoder": False,
    "use_cache": False,
    "tie_word_embeddings": False,
}
"""The encoder of T5 v1.1 XXL (Raffel et al. 2020)."""

SCHEDULER_CONFIG: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""That of dev, which sd-scripts draws samples of schnell with too."""

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    DENOISER: TRANSFORMER_CONFIG,
    "vae": VAE_CONFIG,
    CLIP: stable.CLIP_L_CONFIG,
    T5: T5_CONFIG,
    "scheduler": SCHEDULER_CONFIG,
}
