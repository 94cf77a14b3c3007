"""3x3 convolutions of large maps with a quarter of the products: F(4x4, 3x3) of Winograd (Lavin and Gray 2016).

On a CPU a VAE is little else than such convolutions. Tiles of 6x6 places are spread into 36 numbers a channel, 36
products of matrices take the channels together, and what they give is gathered into 4x4 places. That is done for a few
rows of tiles at a time, which lie in a core's cache; the group norm and SiLU before the convolution and the sum after
it are done there too, so that no map is gone through for them alone.

In float32 alone: the error is 2e-6 of a result's length, where that of a plain convolution is 4e-7 to 9e-7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.families.unet.group_norm import affine

_CHANNELS = 128
"""Fewest channels of which the products take more time than what is done to the tiles."""
_PLACES = 64 * 64
"""Fewest places of a map for which it pays to make the weights ready, which each call does anew."""
_NUMBERS = 2**16
"""Tiles times channels that are computed at once. In 36 float32 numbers each that is 9 MB."""
_ROWS = 4096
"""Places whose mean and squares are taken at once."""

_G = (
    *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
    *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
)
"""What makes six numbers of three weights, for the points 0, 1, -1, 2, -2 and infinity."""


def suits(layer: Any) -> TypeGuard[nn.Conv2d]:
    """Say whether a layer is a plain 3x3 convolution of enough channels, which keeps the sides of a map."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and (layer.groups, layer.padding_mode) == (1, "zeros")
        and min(layer.in_channels, layer.out_channels) >= _CHANNELS
        and layer.weight.dtype == torch.float32
    )


def pays(features: Tensor) -> bool:
    """Say whether a map [b, c, h, w] is one to convolve so; b makes no difference to it."""
    height, width = features.shape[-2:]
    return not torch.is_grad_enabled() and height % 4 == width % 4 == 0 and height * width >= _PLACES


def convolved(features: Tensor, norm: nn.GroupNorm, layer: nn.Conv2d, beside: Tensor | None = None) -> Tensor:
    """Return conv(silu(norm(features))), plus `beside` where it is given.

    Args:
        features: [b, in, h, w] in float32, h and w multiples of four.
        layer: one that suits.
        beside: [b, out, h, w] in float32.

    Returns:
        [b, out, h, w], with the channels of a place together, as both maps are best given.
    """
    count, channels, height, width = features.shape
    result = features.new_empty(count, height, width, layer.out_channels)
    weights = _ready(layer.weight)
    step = 4 * max(1, 4 * _NUMBERS // (channels * width))
    for number in range(count):
        places = features[number].permute(1, 2, 0)
        scale, shift = _affine(places, norm)
        for top, bottom in _strips(places, step):
            made = _products(_spread(_normed(places, top, bottom, scale, shift)), weights, layer.bias)
            onto = _tiled(result[number, top:bottom])
            if beside is None:
                onto.copy_(made)
            else:
                torch.add(made, _tiled(beside[number].permute(1, 2, 0)[top:bottom]), out=onto)
            del made  # before the next strip is made
    return result.permute(0, 3, 1, 2)


def _strips(places: Tensor, step: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip and the one behind its last; of a map without numbers, those of the first."""
    height = places.shape[0]
    yield from ((top, min(top + step, height)) for top in range(0, step if places.is_meta else height, step))


def _affine(places: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Return what a group norm multiplies by and what it adds, each [c], for a map [h, w, c]."""
    height, width, channels = places.shape
    step = max(1, _ROWS // width)
    means, squares, counts = [], [], []
    for top, bottom in _strips(places, step):
        rows = places[top:bottom].reshape(-1, channels)
        means.append(rows.mean(0))
        squares.append((rows - means[-1]).square_().sum(0))
        counts.append(float(len(rows)))
    share = torch.tensor(counts, device=places.device, dtype=torch.float64)[:, None] / sum(counts)
    mean, square = torch.stack(means).double(), torch.stack(squares).double()
    each = channels // norm.num_groups
    centre = (share * mean).sum(0).view(-1, each).mean(1)
    apart = (share * (mean - centre.repeat_interleave(each)).square()).sum(0)
    variance = (square.sum(0) / sum(counts) + apart).view(-1, each).mean(1)
    return affine(norm, centre, variance)


def _ready(weight: Tensor) -> Tensor:
    """Return the weights [out, in, 3, 3] as 36 matrices [36, in, out]."""
    kernel = torch.tensor(_G, device=weight.device)
    made = torch.kron(kernel, kernel) @ weight.permute(2, 3, 1, 0).reshape(9, -1)
    return made.view(36, weight.shape[1], weight.shape[0])


def _normed(places: Tensor, top: int, bottom: int, scale: Tensor, shift: Tensor) -> Tensor:
    """Return rows of a map [h, w, c], normed and through SiLU, with a border: [4, rows + 2, w / 4 + 1, c].

    The border is zeros where the map ends. Column n of the bordered rows lies at [n % 4, :, n // 4], so that every
    fourth column is one block of memory.
    """
    height, width, channels = places.shape
    made = places.new_empty(4, bottom - top + 2, width // 4 + 1, channels)
    above, below = int(top == 0), int(bottom == height)
    first, last = above, made.shape[1] - below
    given = places[top - 1 + above : bottom + 1 - below].unflatten(1, (-1, 4)).permute(2, 0, 1, 3)
    torch.addcmul(shift, given[:3], scale, out=made[1:, first:last, :-1])
    torch.addcmul(shift, given[3], scale, out=made[0, first:last, 1:])
    # The border comes after the norm; SiLU of zero is zero.
    made[0, :, 0] = made[1, :, -1] = 0
    made[:, :first] = made[:, last:] = 0
    return F.silu(made, inplace=True)


def _spread(bordered: Tensor) -> Tensor:
    """Return B^T d B of the 6x6 places d of each tile: [4, rows + 2, w / 4 + 1, c] -> [6, 6, rows / 4, w / 4, c]."""
    _, rows, across, channels = bordered.shape
    columns = bordered.new_empty(6, rows, across - 1, channels)
    _spread_six((*bordered[:, :, :-1].unbind(0), *bordered[:2, :, 1:].unbind(0)), columns)
    made = bordered.new_empty(6, 6, rows // 4, across - 1, channels)
    _spread_six([columns[:, row : row + rows - 5 : 4] for row in range(6)], made)
    return made


def _spread_six(d: Sequence[Tensor], made: Tensor) -> None:
    """Write B^T d into the six tensors of `made`."""
    far, near = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(far, near, out=made[1])
    torch.sub(far, near, out=made[2])
    torch.sub(d[4], d[2], out=far)
    torch.sub(d[3], d[1], out=near)
    torch.add(far, near, alpha=2, out=made[3])
    torch.sub(far, near, alpha=2, out=made[4])
    last = d[0] - d[2]
    torch.add(far, last, alpha=4, out=made[0])
    torch.sub(d[5], d[3], out=last)
    torch.sub(last, near, alpha=4, out=made[5])


def _products(tiles: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """Return the places of tiles [6, 6, rows, across, in] convolved, [4 (column), 4 (row), rows, across, out]."""
    made = torch.bmm(tiles.flatten(2, 3).flatten(0, 1), weights)
    if bias is not None:
        made[7] += bias  # of the point (1, 1), which goes into each place once
    return _gathered(made.unflatten(1, tiles.shape[2:4]).unflatten(0, (6, 6)))


def _gathered(products: Tensor) -> Tensor:
    """Return A^T m A of tiles: [6, 6, rows, across, c] -> [4 (column), 4 (row), rows, across, c]."""
    rows = products.new_empty(4, *products.shape[1:])
    _gather_six(products, rows)
    made = products.new_empty(4, 4, *products.shape[2:])
    _gather_six(rows.transpose(0, 1), made)
    return made


def _gather_six(m: Tensor, made: Tensor) -> None:
    """Write A^T m into the four tensors of `made`, for the six of m."""
    ones, twos = m[1] + m[2], m[3] + m[4]
    torch.add(ones, twos, alpha=4, out=made[2])
    ones += m[0]
    torch.add(ones, twos, out=made[0])
    torch.sub(m[1], m[2], out=ones)
    torch.sub(m[3], m[4], out=twos)
    torch.add(ones, twos, alpha=2, out=made[1])
    ones += m[5]
    torch.add(ones, twos, alpha=8, out=made[3])


def _tiled(rows: Tensor) -> Tensor:
    """Return rows [4 r, 4 a, c] as their tiles' places, [4 (column), 4 (row), r, a, c]."""
    return rows.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).permute(3, 1, 0, 2, 4)
