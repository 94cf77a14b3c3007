"""Widths and heights of a folder's pictures, found out once: of large folders only new and changed files are opened."""

from __future__ import annotations

import os
from pathlib import Path

import PIL

from trainer.pictures.header_cache import WORTH, HeaderCache
from trainer.pictures.image_headers import read_size

_KIND = f"sizes, Pillow {PIL.__version__}"

Size = tuple[int, int]


class Sizes:
    """The sizes of the pictures in `folder`, of which there are `count`."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._known = HeaderCache(_KIND, folder) if count >= WORTH else None

    def of(self, name: str) -> tuple[Size, int]:
        """Return ((width, height) as `read_size` finds it, the file's bytes).

        Raises:
            UNREADABLE: as `read_size` does.
        """
        path = self._folder / name
        state = os.stat(path)
        size = _size_in(self._known.get(name, state)) if self._known else None
        if size is None:
            size = read_size(path)
            if self._known:
                self._known.put(name, state, f"{size[0]}x{size[1]}")
        return size, state.st_size

    def save(self) -> None:
        """Remember what was found out."""
        if self._known:
            self._known.save()


def _size_in(text: str | None) -> Size | None:
    """Return the width and height that are written as 64x48."""
    width, _, height = (text or "").partition("x")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else None
