"""SDXL's size conditioning: six numbers that say how a picture was scaled and cut (Podell et al. 2023, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.families.conditions import Conditions, Placed, Size

Numbers = tuple[int, int, int, int, int, int]
"""Height and width of the original, top and left of the cut, height and width trained."""


class SizeConditions(Conditions):
    """{"sizes": long [6]}."""

    def of_picture(self, placement: Placed, flipped: bool) -> Mapping[str, Tensor]:
        return {"sizes": torch.tensor(size_numbers(placement, flipped), dtype=torch.int64)}

    def of_sample(self, size: Size, guidance: float) -> Mapping[str, Tensor]:
        width, height = size
        return {"sizes": torch.tensor([height, width, 0, 0, height, width], dtype=torch.int64)}


def size_numbers(placement: Placed, flipped: bool) -> Numbers:
    """Return the six numbers of a picture; of a mirrored one the cut is mirrored too."""
    (original_width, original_height), (width, height) = placement.original, placement.bucket
    left, top, right, _ = crop(placement.original, placement.bucket)
    if flipped:
        left = width - right
    return (original_height, original_width, int(top), int(left), height, width)


def crop(original: Size, bucket: Size) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the cut, as models were tuned with it.

    sd-scripts takes it from the unrounded size that fits INSIDE the bucket (`BucketManager.get_crop_ltrb`), so it is
    not the cut made in pixels.
    """
    width, height = bucket
    ratio = original[0] / original[1]
    inner_width, inner_height = (height * ratio, height) if width / height > ratio else (width, width / ratio)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height
