"""Decodes a picture as it is seen: EXIF rotation applied, its first frame, in RGB or as whoever asks wants it.

Transparency comes on white; palettes, CMYK, grey and 16 bits are converted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy
from PIL import Image

from trainer.ground.errors import DataError
from trainer.ground.paths import open_regular
from trainer.pictures.buckets import Size
from trainer.pictures.image_headers import UNREADABLE, open_header, orientation, size_as_seen

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(path: Path, least: Size | None = None, expected: Size | None = None) -> Image.Image:
    """Return the picture as it is seen, mode RGB, decoded.

    Args:
        least: width and height in pixels that are enough; a JPEG larger than this may come smaller than its file says,
            never below it.
        expected: the size that the scan found.

    Raises:
        DataError: the file is gone, cannot be decoded, or is not the one that was scanned.
    """
    try:
        with open_regular(path) as file:
            return _decode(file, path, least, expected)
    except FileNotFoundError as error:
        raise DataError(
            f"train_data_dir: the picture {path} is not there any more.",
            remedy="Put it, its folder or its drive back under the old name, then resume.",
        ) from error
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"train_data_dir: the picture {path} cannot be decoded: {reason}.",
            remedy="Repair it, save it anew, or take it out of the folder.",
        ) from error


def decoded(path: Path, convert: Callable[[Image.Image], Image.Image], least: Size | None = None) -> Image.Image:
    """Return what `convert` makes of a picture as it is seen, whole; a JPEG may come smaller, never below `least`.

    Raises:
        DataError: the file is gone or cannot be decoded.
    """
    try:
        with open_regular(path) as file:
            return _decode(file, path, least, None, convert)
    except UNREADABLE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"The picture {path} cannot be decoded: {reason}.", "Repair it, or save it anew.") from error


def _decode(
    file: BinaryIO,
    path: Path,
    least: Size | None,
    expected: Size | None,
    convert: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    image = open_header(file)
    turn, seen = orientation(image, file), size_as_seen(image, file)
    if expected is not None and seen != expected:
        raise DataError(
            f"train_data_dir: the picture {path} is {seen[0]}x{seen[1]} pixels but was {expected[0]}x{expected[1]} "
            "when the folder was scanned.",
            remedy="Resume, and leave the folder as it is while training.",
        )
    if least is not None:
        image.draft(None, least if seen == image.size else (least[1], least[0]))
    image.load()
    made = (convert or to_rgb)(image)
    return made.transpose(_TURNS[turn]) if turn in _TURNS else made


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded picture in mode RGB with transparency on white and deeper pixels scaled to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image, image.info.get("transparency"))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image, transparent: object = None) -> Image.Image:
    """Return a picture of one deep channel in mode L; Pillow's own conversion would cut values off at 255.

    Integers are taken as 16 bits, floats as 0 to 1 unless they exceed it. With a value that means transparency, as
    PNG's tRNS names one, the mode is LA: in eight bits others would be equal to it.
    """
    values = numpy.asarray(image).astype(numpy.float64)
    if image.mode == "F":
        scale = 1.0 if values.max(initial=0.0) > 1.0 else 255.0
    else:
        scale = 1.0 / 257.0
    scaled = numpy.nan_to_num(values * scale).round().clip(0, 255)
    grey = Image.fromarray(scaled.astype(numpy.uint8))
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(numpy.where(values == transparent, 0, 255).astype(numpy.uint8)))
    return grey
