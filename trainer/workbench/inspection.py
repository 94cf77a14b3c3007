"""What there is to know of a picture's pixels to judge it: how sharp it is, what of it is transparent, what it shows.

Each picture is decoded once, small, and what was found is remembered as long as its file stays the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy
from PIL import Image

from trainer.ground.control import Progress
from trainer.ground.paths import open_regular
from trainer.pictures.decoding import to_rgb
from trainer.pictures.header_cache import HeaderCache
from trainer.pictures.image_headers import TURNED, UNREADABLE, open_header, orientation, size_as_seen, why_unreadable
from trainer.pictures.remarks import Box

SIDE = 512
"""Pixels of the longer side at which sharpness is measured; nothing is enlarged."""

COLOURS = 8
"""Squares of a picture, along each side, whose mean colours are kept."""

LOOKING = "looking at pictures"

_KIND = "inspection/2"
_SHARPEST = 99.5
_FREQUENCIES, _HASHED_SIDE = 8, 32
_COSINES = 2 * numpy.cos(
    numpy.pi / (2 * _HASHED_SIDE) * numpy.outer(range(_FREQUENCIES), range(1, 2 * _HASHED_SIDE, 2))
)
"""The first eight rows of the discrete cosine transform of 32 numbers (type II)."""
_THREADS = 4
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Inspected:
    """One picture.

    `size` is (width, height) as seen. `sharpness` is how much a pixel differs from its neighbours' mean, times four,
    of 255, where it does most (but for half a percent). `transparent` is the share of its pixels that are not opaque,
    `opaque` the box around the others. `hash` is its 64-bit perceptual hash in hex, `colours` are mean colours of
    8 x 8 parts, in hex.
    """

    size: tuple[int, int]
    sharpness: float
    transparent: float
    opaque: Box | None
    hash: str
    colours: str


def inspect(
    folder: Path, names: Sequence[str], progress: Progress | None = None, before: int = 0, total: int = 0
) -> dict[str, Inspected | str]:
    """Return {name: what was found, or why the picture cannot be read} of pictures in a folder.

    Args:
        progress: told of (phase, `before` + number, `total`); what it raises, such as Stopped, passes through, and what
            was found out by then is remembered.
    """
    known = HeaderCache(_KIND, folder)
    found: dict[str, Inspected | str] = {}
    waiting: list[str] = []
    try:
        for name in names:
            remembered = _remembered(known, folder, name)
            if remembered is None:
                waiting.append(name)
            else:
                found[name] = remembered
        for name, state, each in _looked_at(folder, waiting):
            if progress:
                progress(LOOKING, before + len(found), total)
            found[name] = each
            if isinstance(each, Inspected) and state is not None:
                known.put(name, state, json.dumps(asdict(each), separators=(",", ":")))
    finally:
        known.save()
    return {name: found[name] for name in names}


def _remembered(known: HeaderCache, folder: Path, name: str) -> Inspected | None:
    try:
        text = known.get(name, os.stat(folder / name))
        told = json.loads(text) if text else None
        if told is None:
            return None
        box = told.pop("opaque")
        size = told.pop("size")
        return Inspected(size=(int(size[0]), int(size[1])), opaque=tuple(box) if box else None, **told)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _looked_at(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, os.stat_result | None, Inspected | str]]:
    """Yield each picture as it was found; threads decode a few at once, and no more is held than they work on."""
    upcoming = iter(names)
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="inspection") as threads:
        while group := list(islice(upcoming, _AT_ONCE)):
            yield from threads.map(lambda name: (name, *_look(folder / name)), group)


def _look(path: Path) -> tuple[os.stat_result | None, Inspected | str]:
    state = None
    try:
        state = os.stat(path)
        return state, look_at(path)
    except UNREADABLE as error:
        try:
            return state, why_unreadable(path, error)
        except OSError as gone:
            return state, str(gone)


def look_at(path: Path) -> Inspected:
    """Return what there is to know of a picture's pixels.

    Raises:
        UNREADABLE: it cannot be decoded.
    """
    with open_regular(path) as file, open_header(file) as image:
        size = size_as_seen(image, file)
        turned = orientation(image, file)
        image.draft(None, (SIDE * 2, SIDE * 2))
        image.load()
        clear, opaque = _transparency(image, size, turned)
        colour = to_rgb(image)
    if max(colour.size) > SIDE:
        colour.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    grey = colour.convert("L")
    colours = colour.resize((COLOURS, COLOURS), Image.Resampling.BOX).tobytes().hex()
    return Inspected(size, _sharpness(grey), clear, opaque, perceptual_hash(grey), colours)


def perceptual_hash(grey: Image.Image) -> str:
    """Return 64 bits in hex: which of a picture's lowest 8 x 8 frequencies are above their median.

    After Krawetz 2011, "Looks Like It"; the bits are those of the package ImageHash's `phash`. Frequencies that only
    rounding tells from others, such as those of one colour alone, count as equal.
    """
    pixels = numpy.asarray(grey.resize((_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.LANCZOS), dtype=numpy.float64)
    found = (_COSINES @ pixels @ _COSINES.T).round(6)
    return numpy.packbits(found > numpy.median(found)).tobytes().hex()


def _sharpness(grey: Image.Image) -> float:
    """Return the 99.5th percentile of the absolute Laplacian."""
    values = numpy.asarray(grey, dtype=numpy.float32)
    if min(values.shape) < 3:
        return 0.0
    middle = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return round(float(numpy.percentile(numpy.abs(4.0 * middle - around), _SHARPEST)), 1)


def _transparency(image: Image.Image, size: tuple[int, int], turned: int) -> tuple[float, Box | None]:
    """Return the share of pixels that are not opaque, and the box around those that are not wholly transparent."""
    if not image.has_transparency_data:
        return 0.0, None
    alpha = image.convert("RGBA").getchannel("A")
    counts = alpha.histogram()
    share = 1.0 - counts[255] / max(1, sum(counts))
    box = alpha.getbbox()
    # Which way a turned picture's box lies is seldom worth saying; it is then left unsaid.
    if not share or box is None or turned != 1 or alpha.size != size or turned in TURNED:
        return round(share, 4), None
    left, top, right, bottom = box
    return round(share, 4), (left, top, right - left, bottom - top)
