"""Chroma as numbers and names (Lodestone Rock 2025): no weights, no torch.

It is FLUX.1 schnell without CLIP and without the layers that tell each block the time: one small network, the
approximator, gives all blocks their modulations at once. VAE and T5 are FLUX.1's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.flux import facts as flux

DENOISER, T5 = flux.DENOISER, "text_encoder"
"""The components, as diffusers' folders call them."""

LENGTH = flux.DEV_LENGTH
"""T5 tokens of a caption."""
SHOWN_PADDING = 1
"""Tokens behind a text's end that the transformer sees too."""
GUIDANCE = 4.0
"""How far samples are pushed away from the negative prompt, where a prompt says nothing."""

_LEFT_OUT = ("pooled_projection_dim", "guidance_embeds")

TRANSFORMER_CONFIG: Mapping[str, Any] = {
    **{key: value for key, value in flux.TRANSFORMER_CONFIG.items() if key not in _LEFT_OUT},
    "approximator_num_channels": 64,
    "approximator_hidden_dim": 5120,
    "approximator_layers": 5,
}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    DENOISER: TRANSFORMER_CONFIG,
    "vae": flux.VAE_CONFIG,
    T5: flux.T5_CONFIG,
    "scheduler": flux.SCHEDULER_CONFIG,
}
