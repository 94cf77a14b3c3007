"""FLUX.1's transformer: diffusers' module with the original's layers, and its forward pass over latents.

The pass is diffusers' own, but for two things. Sigma and guidance stay in float32 up to their sines and cosines, where
diffusers (and sd-scripts) rounds them to the weights' dtype: in bf16 the model is then told 342 for 342.99. And the
text's padding can be masked, in double and single blocks alike, as sd-scripts does with `apply_t5_attn_mask`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.families.flux.facts import LATENTS
from trainer.families.flux.weight_names import FUSED
from trainer.families.reading.fused import fuse
from trainer.families.reading.weights import build_empty
from trainer.process.diffusion import TIMESTEPS


def build_transformer(config: Mapping[str, Any]) -> FluxTransformer2DModel:
    """Build the transformer without memory for weights, with the layers that the original has.

    Raises:
        ModelError: the configuration cannot be built.
    """
    model = build_empty(FluxTransformer2DModel.from_config, dict(config))
    fuse_blocks(model)
    return model


def fuse_blocks(model: nn.Module) -> None:
    """Make one layer of those of diffusers' blocks that are one in the original, in place."""
    for blocks, layers in FUSED.items():
        for block in getattr(model, blocks):
            for name, parts in layers.items():
                parent, _, own = name.rpartition(".")
                inside = block.get_submodule(parent) if parent else block
                fuse(inside, [part.removeprefix(f"{parent}.") for part in parts], own)


def run(
    model: FluxTransformer2DModel,
    noisy: Tensor,
    sigmas: Tensor,
    text: Mapping[str, Tensor],
    guidance: Tensor | None,
    *,
    checkpointing: bool = False,
) -> Tensor:
    """Return what the transformer makes of latents; differentiable.

    Args:
        noisy: [b, 16, h, w] in the weights' dtype.
        sigmas: float32 [b] from 0 to 1.
        text: "context" [b, n, width of T5], "pooled" [b, width of CLIP], and bool "mask" [b, n] where padding is not to
            be seen.
        guidance: float32 [b]; models that are told none ignore it.
        checkpointing: compute each block again on the way back.

    Returns:
        [b, 16, h, w]
    """
    height, width = (side // LATENTS.patch for side in noisy.shape[-2:])
    hidden, context = model.x_embedder(packed(noisy)), model.context_embedder(text["context"])
    told = [sigmas.float() * TIMESTEPS]
    if model.config.guidance_embeds:
        assert guidance is not None
        told.append(guidance.float() * TIMESTEPS)
    embedded = model.time_text_embed(*told, text["pooled"])
    where = torch.cat([torch.zeros(context.shape[1], 3), places(height, width)])
    around: dict[str, Any] = {
        "temb": embedded,
        "image_rotary_emb": model.pos_embed(where.to(noisy.device)),
        "joint_attention_kwargs": _seen(text.get("mask"), height * width),
    }
    again = checkpointing and torch.is_grad_enabled()
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        if again:
            context, hidden = checkpoint(block, hidden, context, use_reentrant=False, **around)
        else:
            context, hidden = block(hidden, context, **around)
    drawn: Tensor = model.proj_out(model.norm_out(hidden, embedded))
    return unpacked(drawn, height, width)


def packed(latents: Tensor) -> Tensor:
    """[b, c, 2h, 2w] -> [b, h w, 4c]: a token is 2 x 2 latent pixels, by channel, row and column."""
    return nn.functional.pixel_unshuffle(latents, LATENTS.patch).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse of `packed`; `height` and `width` count tokens."""
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), LATENTS.patch)


def places(height: int, width: int) -> Tensor:
    """Return where each token of a picture is, float32 [h w, 3]: 0, its row, its column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


def _seen(mask: Tensor | None, tokens: int) -> dict[str, Tensor]:
    """Return what attention is told: every token sees the unmasked ones of the text and all of the picture."""
    if mask is None:
        return {}
    whole = torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1)
    return {"attention_mask": whole[:, None, None, :]}
