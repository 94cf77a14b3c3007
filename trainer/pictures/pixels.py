"""Brings a decoded picture to its bucket, and changes its colours where that is asked for.

Scaling is Pillow's LANCZOS.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy
import torch
from PIL import Image

from trainer.pictures.batches import Example
from trainer.pictures.buckets import Placement
from trainer.pictures.decoding import open_picture

RESAMPLING = "lanczos-gap3/1"
"""Names how pixels are made; part of a cached latent's key, so raise it with every change that alters pixels."""

_GAP = 3.0
"""Pictures are first shrunk by whole factors, quickly, down to this many times the final size, then by LANCZOS."""

_DRAFT = 3
"""A JPEG is decoded at a half, quarter or eighth of its size while that is still this many times the final size."""

FILTERS = {
    "": Image.Resampling.LANCZOS,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "box": Image.Resampling.BOX,
}
"""{resize_interpolation: Pillow's filter}."""


def fit(image: Image.Image, placement: Placement, flip: bool, interpolation: str = "") -> torch.Tensor:
    """Return the picture scaled, cut to its bucket and mirrored if `flip`: float32 [channels, height, width], -1 to 1.

    Scaling and cutting are one step, so that a ribbon of a picture never becomes a giant in between. The result is
    that of scaling to `placement.resized` and cutting at (left, top).
    """
    start, top, right, end = _used(image, placement)
    across, down = (right - start) / placement.resized[0], (end - top) / placement.resized[1]
    width, height = placement.bucket
    box = (
        start + placement.left * across,
        top + placement.top * down,
        min(start + (placement.left + width) * across, right),
        min(top + (placement.top + height) * down, end),
    )
    fitted = image.resize(placement.bucket, FILTERS[interpolation], box=box, reducing_gap=_GAP)
    if flip:
        fitted = fitted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(numpy.array(fitted).reshape(height, width, -1))
    return pixels.permute(2, 0, 1).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def _used(image: Image.Image, placement: Placement) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of what of a decoded picture is trained, which may be smaller than its file."""
    part = placement.part
    if part is None:
        return 0, 0, image.width, image.height
    across, down = image.width / part.whole[0], image.height / part.whole[1]
    right, bottom = (part.left + part.width) * across, (part.top + part.height) * down
    return part.left * across, part.top * down, min(right, image.width), min(bottom, image.height)


def load_pixels(example: Example, flip: bool, placement: Placement | None = None) -> torch.Tensor:
    """Return an example's pixels in its bucket: float32 [3, height, width] in [-1, 1].

    `placement` takes the place of its own, as where it is cut at random.

    Raises:
        DataError: the file cannot be decoded, or is not the one that was scanned.
    """
    placement = placement or example.placement
    least = (_DRAFT * placement.resized[0], _DRAFT * placement.resized[1])
    if part := placement.part:
        least = (
            math.ceil(least[0] * part.whole[0] / part.width),
            math.ceil(least[1] * part.whole[1] / part.height),
        )
    image = open_picture(example.picture.path, least, example.picture.size)
    return fit(image, placement, flip, example.treatment.interpolation)


def cut_at_random(placement: Placement, rng: random.Random) -> Placement:
    """Return a placement that is cut anywhere: a draw for the width, then one for the height."""
    surplus = (placement.resized[0] - placement.bucket[0], placement.resized[1] - placement.bucket[1])
    left, top = (rng.randint(0, each) for each in surplus)
    return replace(placement, left=left, top=top)


_COLOURED = 0.33
"""Share of pictures whose colours are changed."""


def change_colours(pixels: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Return pixels, float32 [3, height, width] in [-1, 1], with hue or brightness changed, or as they are.

    With sd-scripts' odds and amounts: of every third picture either the hue is turned by whole steps of 2 degrees up to
    16, or each of its values from 0 to 255 is raised to a power between 0.95 and 1.05.
    """
    if rng.random() > _COLOURED:
        return pixels
    values = pixels.add(1.0).mul(127.5)
    if rng.random() > 0.5:
        turned = _hue_turned(values / 255.0, 2.0 * int(rng.uniform(-8, 8)))
        return turned.mul(2.0).sub(1.0)
    return values.pow(rng.uniform(0.95, 1.05)).clamp(max=255.0).div(127.5).sub(1.0)


def _hue_turned(rgb: torch.Tensor, degrees: float) -> torch.Tensor:
    """Return colours from 0 to 1, [3, ...], with their hue turned; value and saturation stay.

    Smith 1978, "Color Gamut Transform Pairs": hexcone model.
    """
    value, lowest = rgb.amax(dim=0), rgb.amin(dim=0)
    chroma = value - lowest
    red, green, blue = rgb
    divisor = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue = torch.where(
        value == red,
        ((green - blue) / divisor) % 6.0,
        torch.where(value == green, (blue - red) / divisor + 2.0, (red - green) / divisor + 4.0),
    )
    hue = hue + degrees / 60.0
    return torch.stack([value - chroma * _shade((shift + hue) % 6.0) for shift in (5.0, 3.0, 1.0)])


def _shade(sector: torch.Tensor) -> torch.Tensor:
    return torch.minimum(sector, 4.0 - sector).clamp(0.0, 1.0)
