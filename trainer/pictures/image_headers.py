"""What a picture file says about itself before it is decoded: its size, its orientation, whether all of it is there.

Reading headers keeps the scan of thousands of pictures within a second or two. A file whose end looks cut off is
decoded to find out, so that a torn download is found here and not in the middle of training.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

# Importing a plugin is what makes Pillow know its format; all of them together would take longer than the scan.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from trainer.ground.paths import open_regular

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JXL", "HEIF")
"""Pillow's names of the formats that are tried. A list, so that a file's contents cannot summon an obscure decoder."""

_OF_PHONES = (".heic", ".heif")
_READS_PHONES = find_spec("pillow_heif") is not None

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jxl"),
    *(_OF_PHONES if _READS_PHONES else ()),
)

FOREIGN_EXTENSIONS = (
    *(() if _READS_PHONES else _OF_PHONES),
    *(".jp2", ".psd", ".tga", ".svg", ".raw", ".cr2", ".nef", ".arw", ".dng"),
)
"""Pictures that are not read; named in a notice because their owner would otherwise miss them silently."""

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow's decoders raise for broken files. They were written by many hands; the list is wide on purpose."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def why_foreign(extension: str) -> str:
    """Return why pictures of one of FOREIGN_EXTENSIONS are not read, and the way out."""
    if extension in _OF_PHONES:
        return f"reading {extension} needs the package pillow-heif (pip install pillow-heif)"
    return f"{extension} is not read; save it as png, jpg or webp"


@cache
def prepare_pillow() -> None:
    """Teach Pillow the formats that need a package of their own, and let it be quiet about large pictures.

    It still refuses giants. Done once, for good: changing warnings back and forth is not safe among threads.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    if find_spec("pillow_jxl"):
        import_module("pillow_jxl")
    if _READS_PHONES:
        import_module("pillow_heif").register_heif_opener()


def open_header(file: BinaryIO) -> Image.Image:
    """Return the picture in `file`, not decoded yet. Raises one of UNREADABLE where there is none."""
    prepare_pillow()
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def read_size(path: Path) -> tuple[int, int]:
    """Return a picture's (width, height) in pixels as it is seen, EXIF rotation applied.

    Raises:
        UNREADABLE: the file is no picture, is damaged, is cut off, or is larger than Pillow thinks safe.
    """
    with open_regular(path) as file, open_header(file) as image:
        width, height = size_as_seen(image, file)
        if not _is_whole(image, file):
            image.load()
    if width < 1 or height < 1:
        raise ValueError("it has no pixels")
    return width, height


def why_unreadable(path: Path, error: BaseException) -> str:
    """Return in words why a picture could not be read, of what was raised."""
    if isinstance(error, Image.UnidentifiedImageError):
        if path.suffix.lower() == ".jxl":
            return "reading JPEG XL needs the package pillow-jxl-plugin"
        return "not a picture, or damaged" if path.stat().st_size else "the file is empty"
    return str(error) or type(error).__name__


def size_as_seen(image: Image.Image, file: BinaryIO) -> tuple[int, int]:
    """Return (width, height) after EXIF rotation of a picture that was opened from `file` and not decoded yet."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns TIFFs itself when it decodes them; whether `size` says so beforehand depends on its version.
        width, height = image.tag_v2[256], image.tag_v2[257]
        turned = image.tag_v2.get(274) in TURNED
    else:
        width, height = image.size
        turned = orientation(image, file) in TURNED
    return (height, width) if turned else (width, height)


def orientation(image: Image.Image, file: BinaryIO) -> int:
    """Return the EXIF orientation, 1 to 8, still to be applied to a picture that was opened from `file`."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1
    if image.format == "PNG" and not _has_late_text(file):
        # Pillow's PNG class decodes the whole picture in search of a late EXIF chunk; there is none here.
        exif = Image.Image.getexif(image)
    else:
        exif = image.getexif()
    value = exif.get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_whole(image: Image.Image, file: BinaryIO) -> bool:
    """True when the file certainly does not end early; False when only decoding can tell."""
    size = os.fstat(file.fileno()).st_size
    check = _WHOLE.get(image.format or "")
    if check is None and isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_is_whole(image, size)
    return check is not None and check(file, size)


def _png_chunks(file: BinaryIO, size: int) -> list[bytes]:
    """Return the types of a PNG's chunks in order; a cut-off file's list does not end with IEND."""
    start = file.tell()
    types, position = [], 8
    while position + 12 <= size:
        file.seek(position)
        length, name = struct.unpack(">I4s", file.read(8))
        position += 12 + length
        if position > size:
            break
        types.append(name)
        if name == b"IEND":
            break
    file.seek(start)
    return types


def _has_late_text(file: BinaryIO) -> bool:
    types = _png_chunks(file, os.fstat(file.fileno()).st_size)
    after = types[types.index(b"IDAT") :] if b"IDAT" in types else []
    return any(name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") for name in after)


def _png_is_whole(file: BinaryIO, size: int) -> bool:
    return _png_chunks(file, size)[-1:] == [b"IEND"]


def _jpeg_is_whole(file: BinaryIO, size: int) -> bool:
    """True when the end marker is there; phones write other things after it, so the whole file may be searched."""
    start = file.tell()
    file.seek(max(0, size - 2))
    whole = file.read() == b"\xff\xd9"
    if not whole:
        file.seek(0)
        data = file.read()
        # A thumbnail inside has an end marker too, but it comes before the picture's own start of scan.
        whole = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    file.seek(start)
    return whole


def _riff_is_whole(file: BinaryIO, size: int) -> bool:
    start = file.tell()
    file.seek(4)
    (length,) = struct.unpack("<I", file.read(4))
    file.seek(start)
    return length + 8 <= size


def _gif_is_whole(file: BinaryIO, size: int) -> bool:
    start = file.tell()
    file.seek(max(0, size - 1))
    whole = file.read() == b";"
    file.seek(start)
    return whole


def _avif_is_whole(file: BinaryIO, size: int) -> bool:
    """True when the outermost boxes add up to the file's size."""
    start, position = file.tell(), 0
    while position + 8 <= size:
        file.seek(position)
        length, _ = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8).ljust(8, b"\0"))
        if length == 0:
            position = size
        elif length < 8:
            break
        else:
            position += length
    file.seek(start)
    return position == size


def _tiff_is_whole(image: TiffImagePlugin.TiffImageFile, size: int) -> bool:
    tags = image.tag_v2
    for offsets, lengths in ((273, 279), (324, 325)):
        if offsets in tags and lengths in tags:
            return all(start + count <= size for start, count in zip(tags[offsets], tags[lengths], strict=True))
    return False


_WHOLE = {
    "PNG": _png_is_whole,
    "JPEG": _jpeg_is_whole,
    "MPO": _jpeg_is_whole,
    "WEBP": _riff_is_whole,
    "GIF": _gif_is_whole,
    "AVIF": _avif_is_whole,
    "HEIF": _avif_is_whole,
}
