"""Anima's transformer and its adapter: diffusers' modules, and their forward pass over latents.

The pass is diffusers' own, but for two things: the mask of padding is nil and is made here (diffusers resizes one with
a library that is not needed), and pictures may be as large as they are anywhere, where diffusers counts 240 rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AnimaTextConditioner, CosmosTransformer3DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.families.reading.weights import build_empty

_MOST_ROWS = 1024
"""Rows, or columns, of tokens that have a place."""


def build_transformer(config: Mapping[str, Any]) -> CosmosTransformer3DModel:
    """Build the transformer without memory for weights.

    Raises:
        ModelError: the configuration cannot be built.
    """
    model = build_empty(CosmosTransformer3DModel.from_config, dict(config))
    model.rope.max_size = [_MOST_ROWS] * 3
    return model


def build_conditioner(config: Mapping[str, Any], device: torch.device) -> AnimaTextConditioner:
    """Build the adapter without memory for weights. What it counts with is made on the device.

    Raises:
        ModelError: the configuration cannot be built.
    """
    model = build_empty(AnimaTextConditioner.from_config, dict(config))
    head = config["model_dim"] // config["num_attention_heads"]
    model.rotary_emb = type(model.rotary_emb)(head).to(device)
    return model


def run(
    model: CosmosTransformer3DModel,
    conditioner: AnimaTextConditioner,
    noisy: Tensor,
    sigmas: Tensor,
    text: Mapping[str, Tensor],
    *,
    checkpointing: bool = False,
) -> Tensor:
    """Return what the transformer makes of latents; differentiable.

    Args:
        noisy: [b, 16, h, w] in the weights' dtype.
        sigmas: float32 [b] from 0 to 1.
        text: "states" [b, n, width of Qwen3], "seen" bool [b, n], which of them are the text's, "ids" long [b, m] of
            T5's vocabulary, and "mask" bool [b, m], which of those are.
        checkpointing: compute each block again on the way back.

    Returns:
        [b, 16, h, w]
    """
    again = checkpointing and torch.is_grad_enabled()

    def through(block: nn.Module, *inputs: Any) -> Tensor:
        found: Tensor = checkpoint(block, *inputs, use_reentrant=False) if again else block(*inputs)
        return found

    context = conditioner(text["states"], text["ids"], text["mask"], _seen(text["seen"]))
    latents = torch.cat([noisy, torch.zeros_like(noisy[:, :1])], dim=1)[:, :, None]
    places = model.rope(latents)
    patch = model.config.patch_size[1]
    height, width = (side // patch for side in noisy.shape[-2:])
    hidden = model.patch_embed(latents).flatten(1, 3)
    modulation, told = model.time_embed(hidden, sigmas.float())
    for block in model.transformer_blocks:
        hidden = through(block, hidden, context, told, modulation, places)
    hidden = model.proj_out(model.norm_out(hidden, told, modulation))
    # A token is rows, columns and channels, in this order, though it came in as channels, rows and columns.
    pixels = hidden.unflatten(2, (patch, patch, -1)).unflatten(1, (height, width))
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def _seen(mask: Tensor) -> Tensor:
    """Return what the adapter looks at of Qwen3's states.

    Where a text is empty nothing could be looked at; its states are zeros, of which nothing comes either way.
    """
    return mask | ~mask.any(-1, keepdim=True)
