"""Masks painted over pictures: kept in a folder beside them, and read by the loss as pictures.json says."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from trainer.ground.errors import DataError
from trainer.ground.files import replacing
from trainer.pictures.decoding import decoded
from trainer.pictures.image_headers import UNREADABLE, read_size
from trainer.pictures.remarks import ALPHA, MASKS, Remark, amend_remarks, read_remarks


def save_mask(picture: Path, mask: Image.Image) -> Remark:
    """Keep a mask of a picture, and return what was said of the picture before, for `change_remarks` to undo it.

    White counts in the loss, black does not; of a transparent mask what is transparent counts as black. It is kept in
    the picture's size, whatever size it was painted in. What is kept already stays: undone, it counts again.

    Raises:
        DataError: the picture cannot be read, or the folder cannot be written.
    """
    folder = picture.parent / MASKS
    if os.path.islink(folder):
        raise DataError(f"{folder} is a link; no masks are written through it.", "Put a folder there.")
    try:
        size = read_size(picture)
        folder.mkdir(exist_ok=True)
        name = _free_name(folder, picture)
        with replacing(folder / name) as temporary:
            grey(mask).resize(size, Image.Resampling.BILINEAR).save(temporary, "PNG")
    except UNREADABLE as error:
        raise DataError(f"The mask of {picture} cannot be kept: {error}.", "See its folder's permissions.") from error
    return amend_remarks({picture: {"mask": f"{MASKS}/{name}"}})[picture]


def _free_name(folder: Path, picture: Path) -> str:
    """Return a name that nothing has yet; pictures that differ in their endings alone have masks of their own."""
    number, name = 1, f"{picture.name}.png"
    while os.path.lexists(folder / name):
        number += 1
        name = f"{picture.name}.{number}.png"
    return name


def grey(mask: Image.Image) -> Image.Image:
    """Return a mask in mode L, on black."""
    if not mask.has_transparency_data:
        return mask.convert("L")
    rgba = mask.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")


def mask_for(picture: Path) -> Image.Image | None:
    """Return the mask that is said of a picture, mode L, in the picture's size; None where none is.

    Raises:
        DataError: the picture, its mask or pictures.json cannot be read.
    """
    said = read_remarks(picture.parent).get(picture.name, Remark()).mask
    if not said:
        return None
    if said == ALPHA:
        return decoded(picture, _alpha)
    try:
        size = read_size(picture)
    except UNREADABLE as error:
        raise DataError(f"The picture {picture} cannot be read: {error}.") from error
    mask = decoded(picture.parent / said, grey)
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def _alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")
