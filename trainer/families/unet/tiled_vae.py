"""The VAE's encoder for pictures too large for a GPU's memory: strip by strip, with the numbers of the whole picture.

Up to its middle block the encoder is made of convolutions, which a strip with one more row above and below computes
exactly, and of group norms (Wu & He 2018), whose mean and variance are added up over all strips before they are used.
So nothing is blended, as it is where pictures are cut into tiles that know nothing of one another. What lies between
two layers waits in main memory. From the middle block on, at an eighth of the side, everything goes in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from trainer.families.unet.group_norm import affine

LARGE = 1536 * 1024
"""Pixels of a picture above which it is encoded in strips."""
STRIP = 256 * 1024
"""Most places of a feature map that are computed at once."""


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Return what the VAE's encoder gives for pictures, their posterior's moments.

    Args:
        pixels: [b, 3, H, W] in the VAE's dtype, sides divisible by 8, on any device.

    Returns:
        [b, 8, H/8, W/8] on the VAE's device.
    """
    encoder = vae.encoder
    # Tensors without numbers, of a forecast, can wait nowhere else.
    features = _convolved(pixels if pixels.is_meta else pixels.cpu(), encoder.conv_in)
    for block in encoder.down_blocks:
        for residual in block.resnets:
            inner = _convolved(features, residual.conv1, _norm(features, residual.norm1))
            features = _convolved(inner, residual.conv2, _norm(inner, residual.norm2), beside=(residual, features))
        for sampler in block.downsamplers or ():
            features = _halved(features, sampler.conv)
    middle = encoder.mid_block(features.to(vae.device))
    moments: Tensor = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(middle)))
    return moments if vae.quant_conv is None else vae.quant_conv(moments)


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip and the one behind its last."""
    rows = max(1, STRIP // width)
    yield from ((top, min(top + rows, height)) for top in range(0, height, rows))


def _convolved(
    features: Tensor,
    layer: nn.Conv2d,
    before: Callable[[Tensor], Tensor] = lambda rows: rows,
    beside: tuple[ResnetBlock2D, Tensor] | None = None,
) -> Tensor:
    """Return a 3x3 convolution of [b, c, H, W], on the CPU.

    Args:
        before: what is done to the rows first; the convolution's zeros around the picture come after it.
        beside: a residual block and its input, which goes around the convolution.
    """
    count, _, height, width = features.shape
    result = torch.empty(count, layer.out_channels, height, width, dtype=features.dtype, device=features.device)
    for top, bottom in _strips(height, width):
        above, below = int(top > 0), int(bottom < height)
        rows = before(features[:, :, top - above : bottom + below].to(layer.weight.device))
        rows = functional.pad(rows, (0, 0, 1 - above, 1 - below))
        made = functional.conv2d(rows, layer.weight, layer.bias, padding=(0, 1))
        if beside is not None:
            block, source = beside
            around = source[:, :, top:bottom].to(made.device)
            around = around if block.conv_shortcut is None else block.conv_shortcut(around)
            made = (around + made) / block.output_scale_factor
        result[:, :, top:bottom] = made
    return result


def _halved(features: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return a 3x3 convolution with stride 2 of [b, c, H, W] with zeros below and to the right, on the CPU."""
    count, _, height, width = features.shape
    shape = count, layer.out_channels, height // 2, width // 2
    result = torch.empty(shape, dtype=features.dtype, device=features.device)
    for top, bottom in _strips(height // 2, 2 * width):
        rows = features[:, :, 2 * top : 2 * bottom + 1].to(layer.weight.device)
        rows = functional.pad(rows, (0, 1, 0, 2 * (bottom - top) + 1 - rows.shape[2]))
        result[:, :, top:bottom] = functional.conv2d(rows, layer.weight, layer.bias, stride=2)
    return result


def _norm(features: Tensor, layer: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    """Return a group norm and SiLU with the mean and variance of the whole of [b, c, H, W], for rows of it."""
    count, _, height, width = features.shape
    device, groups = layer.weight.device, layer.num_groups
    total = torch.zeros(2, count, groups, dtype=torch.float64, device=device)
    for top, bottom in _strips(height, width):
        rows = features[:, :, top:bottom].to(device, torch.float32).reshape(count, groups, -1)
        variance, mean = torch.var_mean(rows, dim=-1, correction=0)
        share = (bottom - top) / height
        total += share * torch.stack([mean.double(), variance.double() + mean.double().square()])
    scale, shift = affine(layer, total[0], total[1] - total[0].square())

    def normed(rows: Tensor) -> Tensor:
        whole = rows.float() * scale[:, :, None, None] + shift[:, :, None, None]
        return functional.silu(whole.to(rows.dtype))

    return normed
