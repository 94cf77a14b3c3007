"""Small versions of pictures, made when they are asked for and kept in the user's cache folder, which stays bounded.

One is found by the picture's path, length and time of change, so an old one is never shown for a new picture. Nothing
is held in memory.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.ground.errors import DataError
from trainer.ground.files import cache_folder
from trainer.ground.paths import read_bytes
from trainer.pictures.decoding import decoded, to_rgb

SIDE, LARGE_SIDE = 256, 1600
"""Pixels of the longer side in a grid, and of one picture looked at by itself; nothing is enlarged."""

MOST_BYTES = 256 << 20

_FOLDER = "thumbnails"
_MOST_ONE = 4 << 20
_QUALITY = 82
_JPEG = b"\xff\xd8"
_LOOK_EVERY = 200
_LEAVES = 0.8


@dataclass(frozen=True, slots=True)
class Shown:
    """An encoded picture, and its media type."""

    body: bytes
    media_type: str


class Thumbnails:
    """Makes and keeps small versions of pictures in `folder`, of `most_bytes` together. Safe in threads."""

    def __init__(self, folder: Path | None = None, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most = most_bytes
        self._made = 0
        self._lock = threading.Lock()

    def of(self, path: Path, side: int = SIDE) -> Shown:
        """Return a picture of which no side is longer than `side` pixels, turned as it is seen.

        Raises:
            DataError: the picture is gone or cannot be decoded.
        """
        try:
            state = os.stat(path)
        except OSError as error:
            raise DataError(f"The picture {path} cannot be read: {error.strerror}.") from error
        told = f"{os.path.abspath(path)}\0{state.st_size}\0{state.st_mtime_ns}\0{side}"
        name = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        kept = self._place / name[:2] / name
        try:
            body = read_bytes(kept, _MOST_ONE)
            # The time says when it was last of use.
            os.utime(kept)
        except OSError:
            body = b""
        if _is_whole(body):
            return Shown(body, _type_of(body))
        made = view(path, side)
        self._keep(kept, made.body)
        return made

    @property
    def _place(self) -> Path:
        return self._folder or cache_folder() / _FOLDER

    def _keep(self, path: Path, body: bytes) -> None:
        """Keep one; where the folder cannot be written, it is made again the next time.

        It is not flushed to the disk, which would take longer than making it: a torn one is seen when it is read.
        """
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(body)
            os.replace(temporary, path)
        with self._lock:
            self._made += 1
            if self._made % _LOOK_EVERY == 1:
                self._make_room()

    def _make_room(self) -> None:
        """Remove what has not been of use for longest, until a part of the room is free again."""
        kept = []
        for root, _, names in os.walk(self._place):
            for name in names:
                with suppress(OSError):
                    state = os.stat(os.path.join(root, name))
                    kept.append((state.st_mtime_ns, state.st_size, os.path.join(root, name)))
        total = sum(size for _, size, _ in kept)
        if total <= self._most:
            return
        for _, size, path in sorted(kept):
            if total <= _LEAVES * self._most:
                break
            with suppress(OSError):
                os.unlink(path)
                total -= size


def view(path: Path, side: int = LARGE_SIDE) -> Shown:
    """Return a picture of which no side is longer than `side` pixels: a JPEG, or a WebP where it is transparent.

    Raises:
        DataError: it is gone or cannot be decoded.
    """
    image = decoded(path, _plain, (side, side))
    image.thumbnail((side, side), reducing_gap=2.0)
    buffer = io.BytesIO()
    if image.mode == "RGBA":
        image.save(buffer, "WEBP", quality=_QUALITY, method=2)
    else:
        image.save(buffer, "JPEG", quality=_QUALITY)
    body = buffer.getvalue()
    return Shown(body, _type_of(body))


def _plain(image: Image.Image) -> Image.Image:
    """Return a decoded picture in mode RGB, or RGBA where something of it is transparent."""
    if image.has_transparency_data and image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGBA")
    return to_rgb(image)


def _is_whole(body: bytes) -> bool:
    """Say whether an encoded picture has its beginning and its end."""
    if body.startswith(b"RIFF"):
        return len(body) == 8 + int.from_bytes(body[4:8], "little")
    return body.startswith(_JPEG) and body.endswith(b"\xff\xd9")


def _type_of(body: bytes) -> str:
    return "image/jpeg" if body.startswith(_JPEG) else "image/webp"
