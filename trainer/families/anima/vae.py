"""Qwen-Image's VAE for pictures, each one frame of no film: what frames before it would add is nothing, and left out.

Its convolutions go over three frames, of which the first two are zeros for a picture. So they are the plane
convolutions with the last third of the weights, at a third of the work and of the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import Tensor
from torch.nn import functional


class _OneFrame(QwenImageCausalConv3d):  # type: ignore[misc]
    """A convolution over frames, of one frame: [b, c, 1, h, w] -> [b, c, 1, h, w]."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Return what the convolution makes of a frame that none was before."""
        width, _, height, *_ = self._padding
        kernel = self.weight[:, :, -1]
        return functional.conv2d(x[:, :, 0], kernel, self.bias, self.stride[1:], (height, width))[:, :, None]


def for_pictures(vae: Any) -> Any:
    """Make a VAE one for pictures, in place; its weights stay as they are."""
    for module in vae.modules():
        if type(module) is QwenImageCausalConv3d:
            module.__class__ = _OneFrame
    return vae


def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Return the mean of the posterior of pictures: [b, 3, 8h, 8w] in [-1, 1] -> [b, c, h, w]."""
    found: Tensor = vae.quant_conv(vae.encoder(pixels[:, :, None]))
    return found[:, :, 0].chunk(2, dim=1)[0]


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Return pictures: [b, c, h, w] -> [b, 3, 8h, 8w] in [-1, 1]."""
    found: Tensor = vae.decoder(vae.post_quant_conv(latents[:, :, None]))
    return torch.clamp(found[:, :, 0], -1.0, 1.0)
