"""Widths and heights of pictures, remembered from scan to scan, so that only new and changed files are opened.

A picture is the same as long as its name, length and times of change are. What is remembered lies in the user's cache
folder, a file for each folder of pictures, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import PIL

from trainer.files import cache_folder, write_text

Size = tuple[int, int]

WORTH = 500
"""A folder with fewer pictures is read sooner than it is looked up."""

_FORMAT = f"sizes/1 Pillow {PIL.__version__}"
_SETTLED = 2_000_000_000
"""Nanoseconds for which a file must have been left alone: what is written twice within one tick of the file system's
clock has the same times."""

logger = logging.getLogger(__name__)


class KnownSizes:
    """What is remembered of one folder of pictures. `get` and `put` take a picture's name and its `os.stat`."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.abspath(folder)
        name = hashlib.sha256(self._folder.encode(errors="surrogateescape")).hexdigest()[:32]
        self._path = cache_folder() / "sizes" / f"{name}.json"
        self._before = self._read()
        self._now: dict[str, str] = {}
        self._began = time.time_ns()

    def get(self, name: str, state: os.stat_result) -> Size | None:
        """Return the width and height of a picture, or None where they are not known or the file has changed."""
        known = self._before.get(name, "")
        size, _, stamp = known.partition(" ")
        width, _, height = size.partition("x")
        if stamp != _stamp(state) or not (width.isdecimal() and height.isdecimal()):
            return None
        self._now[name] = known
        return int(width), int(height)

    def put(self, name: str, state: os.stat_result, size: Size) -> None:
        """Remember the width and height of a picture whose state was `state` before it was opened."""
        if max(state.st_mtime_ns, state.st_ctime_ns) < self._began - _SETTLED:
            self._now[name] = f"{size[0]}x{size[1]} {_stamp(state)}"

    def save(self) -> None:
        """Write what was got and put, if anything is new. A folder that cannot be written costs time, not the scan."""
        if self._now == self._before:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({"format": _FORMAT, "folder": self._folder, "pictures": self._now}))
        except (OSError, UnicodeError) as error:
            logger.info("the sizes of the pictures in %s are not remembered: %s", self._folder, error)

    def _read(self) -> dict[str, str]:
        """Return what the file has, each picture's as one text: lists of numbers would take three times as long."""
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            if told["format"] != _FORMAT or told["folder"] != self._folder:
                return {}
            return {name: text for name, text in told["pictures"].items() if isinstance(text, str)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}


def _stamp(state: os.stat_result) -> str:
    return f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
