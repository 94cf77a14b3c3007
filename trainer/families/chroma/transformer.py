"""Chroma's transformer: diffusers' module with the original's layers, and its forward pass over latents.

The pass is diffusers' own, but for three things. Sigma stays in float32 up to its sines and cosines. The approximator
gets no gradient, as in sd-scripts (library/chroma_models.py): nothing before it learns. And padding is hidden as a key
of attention alone: where its own rows saw nothing at all they would be no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.families.flux.facts import LATENTS
from trainer.families.flux.transformer import fuse_blocks, packed, places, unpacked
from trainer.families.reading.weights import build_empty
from trainer.process.diffusion import TIMESTEPS

_OF_DOUBLE, _OF_SINGLE, _OF_LAST = 6, 3, 2
"""Modulations of a double block's picture, or text; of a single block; and behind the last."""


class _HiddenKeys(FluxAttnProcessor):
    """Diffusers' attention, where what one token may not see none may: [b, 1, n, n] -> [b, 1, 1, n]."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        seen = None if attention_mask is None else attention_mask.any(-2, keepdim=True)
        return super().__call__(attn, hidden_states, encoder_hidden_states, seen, image_rotary_emb)


def build_transformer(config: Mapping[str, Any]) -> ChromaTransformer2DModel:
    """Build the transformer without memory for weights, with the layers that the original has.

    Raises:
        ModelError: the configuration cannot be built.
    """
    model = build_empty(ChromaTransformer2DModel.from_config, dict(config))
    fuse_blocks(model)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.set_processor(_HiddenKeys())
    return model


def run(
    model: ChromaTransformer2DModel,
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
        text: "context" [b, n, width of T5], and bool "mask" [b, n] of what is seen of it.
        checkpointing: compute each block again on the way back.

    Returns:
        [b, 16, h, w]
    """
    height, width = (side // LATENTS.patch for side in noisy.shape[-2:])
    hidden, context = model.x_embedder(packed(noisy)), model.context_embedder(text["context"])
    words = context.shape[1]
    modulations = _modulations(model, sigmas, hidden.dtype)
    where = torch.cat([torch.zeros(words, 3), places(height, width)])
    mask = text["mask"]
    around: dict[str, Any] = {
        "image_rotary_emb": model.pos_embed(where.to(noisy.device)),
        "attention_mask": torch.cat([mask, mask.new_ones(len(mask), height * width)], dim=1),
    }
    again = checkpointing and torch.is_grad_enabled()

    def through(block: Any, *inputs: Tensor) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False, **around) if again else block(*inputs, **around)

    singles, doubles = len(model.single_transformer_blocks), len(model.transformer_blocks)
    pictures = modulations[:, _OF_SINGLE * singles :].split(_OF_DOUBLE, dim=1)
    for number, block in enumerate(model.transformer_blocks):
        own = torch.cat([pictures[number], pictures[doubles + number]], dim=1)
        context, hidden = through(block, hidden, context, own)
    hidden = torch.cat([context, hidden], dim=1)
    for number, block in enumerate(model.single_transformer_blocks):
        hidden = through(block, hidden, modulations[:, _OF_SINGLE * number : _OF_SINGLE * (number + 1)])
    drawn: Tensor = model.proj_out(model.norm_out(hidden[:, words:], modulations[:, -_OF_LAST:]))
    return unpacked(drawn, height, width)


@torch.no_grad()
def _modulations(model: ChromaTransformer2DModel, sigmas: Tensor, dtype: torch.dtype) -> Tensor:
    """Return shifts, scales and gates of all blocks, [b, 3 singles + 12 doubles + 2, width]."""
    told = model.time_text_embed(sigmas.float() * TIMESTEPS)
    found: Tensor = model.distilled_guidance_layer(told.to(dtype))
    return found
