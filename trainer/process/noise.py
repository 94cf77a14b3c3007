"""The shapes of noise: with an offset for each channel, with coarser noise laid over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def shape_noise(noise: Tensor, offset: Tensor | None, strength: Tensor | None, pyramid: Tensor | None) -> Tensor:
    """Add offset noise, then pyramid noise, and scale what got a pyramid back to unit variance.

    Offset noise: Guttenberg 2023, crosslabs.org/blog/diffusion-with-offset-noise. Shapes [..., c, h, w], offset
    [..., c, 1, 1], strength anything that broadcasts. The variance is each sample's, over c, h and w.
    """
    if offset is not None and strength is not None:
        noise = noise + strength * offset
    if pyramid is not None:
        noise = noise + pyramid
        noise = noise / noise.std(dim=(-3, -2, -1), keepdim=True)
    return noise


def adaptive_strength(strength: Tensor, latents: Tensor, adaptive_noise_scale: float) -> Tensor:
    """Return the offset's strength [b,c,1,1]: more (or less, down to 0) where a channel's mean is far from 0."""
    return (strength + adaptive_noise_scale * latents.mean(dim=(-2, -1), keepdim=True).abs()).clamp(min=0.0)


def pyramid_sizes(height: int, width: int, ratios: Iterator[float]) -> Iterator[tuple[int, int]]:
    """Yield the (height, width) of each level: full size first, level i divided by the i-th ratio to the power i.

    Ends with the ratios, or with the first level that is one pixel high or wide.
    """
    for level, ratio in enumerate(ratios):
        size = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
        yield size
        if 1 in size:
            return


def pyramid_noise(levels: Sequence[Tensor], discount: float) -> Tensor:
    """Sum noise of falling resolution, level i times discount**i, each scaled up bilinearly to the first's size.

    Multi-resolution noise: Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training" (wandb.ai).
    Levels [c,h,w] or [b,c,h,w].
    """
    size = levels[0].shape[-2:]
    batched = [level if level.dim() > len(("c", "h", "w")) else level.unsqueeze(0) for level in levels]
    scaled = [F.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in batched]
    total = sum((level * discount**index for index, level in enumerate(scaled)), torch.zeros(()))
    return total.reshape(levels[0].shape)
