"""Masks of the loss: which parts of a picture count, from its transparency or from a folder of masks.

A mask is scaled and cut as its picture is, and brought to the latents' size by means over their squares.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import interpolate

from trainer.ground.errors import DataError
from trainer.pictures.batches import Example
from trainer.pictures.buckets import Placement
from trainer.pictures.decoding import decoded, to_rgb
from trainer.pictures.findings import listed
from trainer.pictures.listing import listing
from trainer.pictures.pixels import fit

_KEPT = 2048
"""Masks that are kept in memory; at most 64 KB each."""


def mask_of(example: Example, placement: Placement, flip: bool, size: tuple[int, int]) -> torch.Tensor:
    """Return the mask of an example, float32 [1, height, width] from 0 to 1, at the latents' `size` (height, width).

    What pictures.json says of the picture goes before the folder of masks, and this before the picture's transparency.
    Without any of them all is ones.

    Raises:
        DataError: the file cannot be decoded.
    """
    treatment, picture = example.treatment, example.picture
    if picture.mask is not None:
        path, read = picture.mask, _red
    elif not picture.alpha_mask and treatment.masks is not None:
        path, read = _mask_file(treatment.masks, picture.path), _red
    elif picture.alpha_mask or treatment.alpha_mask:
        path, read = picture.path, _alpha
    else:
        return torch.ones((1, *size))
    return _mask(path, _changed(path), read, placement, flip, size)


def has_mask(example: Example) -> bool:
    """Say whether a picture's loss is weighted: by a mask of its own, or by its transparency."""
    if example.picture.mask is not None or example.picture.alpha_mask:
        return True
    folder = example.treatment.masks
    if folder is not None:
        return example.picture.path.stem in _masks_in(folder, _changed(folder))
    return example.treatment.alpha_mask


@lru_cache(maxsize=_KEPT)
def _mask(
    path: Path,
    changed: int,
    read: Callable[[Image.Image], Image.Image],
    placement: Placement,
    flip: bool,
    size: tuple[int, int],
) -> torch.Tensor:
    """Return a mask; `changed` is the time of its file's last change, so that an old one is not taken for it."""
    pixels = fit(decoded(path, read), placement, flip).add_(1.0).div_(2.0)
    return interpolate(pixels[None], size=size, mode="area")[0]


def _changed(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def check_masks(examples: Iterable[Example]) -> None:
    """See that each picture whose folder has a folder of masks has its mask there.

    Raises:
        DataError: some have none; they are named.
    """
    missing: dict[Path, list[str]] = {}
    for example in examples:
        folder = example.treatment.masks
        if example.picture.mask is not None or example.picture.alpha_mask:
            continue
        if folder is not None and example.picture.path.stem not in _masks_in(folder, _changed(folder)):
            missing.setdefault(folder, []).append(example.picture.path.name)
    for folder, names in missing.items():
        every = list(dict.fromkeys(names))
        raise DataError(
            f"conditioning_data_dir: {folder} has no mask for {len(every)} of the pictures: {listed(every)}.",
            "Add a mask under each picture's name, all white where everything counts.",
        )


def _mask_file(folder: Path, picture: Path) -> Path:
    try:
        return folder / _masks_in(folder, _changed(folder))[picture.stem]
    except KeyError:
        raise DataError(
            f"conditioning_data_dir: {folder} has no mask for {picture.name}.",
            "Add one under the picture's name, all white where everything counts.",
        ) from None


@lru_cache(maxsize=16)
def _masks_in(folder: Path, changed: int) -> dict[str, str]:
    """Return {name without its ending: name} of the pictures in a folder."""
    return {os.path.splitext(name)[0]: name for name in listing(folder).pictures}


def _red(image: Image.Image) -> Image.Image:
    return (image.convert("RGBA") if image.has_transparency_data else to_rgb(image)).getchannel("R")


def _alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")
