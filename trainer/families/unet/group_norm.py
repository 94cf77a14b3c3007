"""A group norm as what it multiplies by and what it adds, for maps that are gone through in parts. Wu and He 2018."""

from __future__ import annotations

from torch import Tensor, nn


def affine(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the channels, float32 [..., c], for means and variances float64 [..., groups]."""
    each = norm.num_channels // norm.num_groups
    inverse = (variance + norm.eps).rsqrt().repeat_interleave(each, dim=-1).float()
    scale = inverse * norm.weight.float()
    return scale, norm.bias.float() - mean.repeat_interleave(each, dim=-1).float() * scale
