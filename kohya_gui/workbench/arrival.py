"""A file that is sent to the page: taken in beside what it becomes, and then judged by the engine."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from kohya_gui.parts.folders import Folders
from kohya_gui.workbench.workbench import Answer
from trainer.ground.errors import DataError
from trainer.workbench.uploads import receive

MOST_FILE = 16 << 30
"""Bytes of one file, such as a zip with the pictures of a training."""

LONGEST_NAME = 255

_PREFIX = ".arriving-"
_DAY_SECONDS = 86_400


class Arrival:
    """One file on its way into a folder, which is made where it is missing.

    Raises:
        Refused: the page may not write there.
        DataError: the folder cannot be made, or is none.
    """

    def __init__(self, folders: Folders, into: str) -> None:
        if not into.strip():
            raise DataError("The folder is not named yet.", "Write the folder that the pictures are to go into.")
        self._folders, self._folder = folders, folders.check(into)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _clear(self._folder)
            # In the same folder there is surely room for it, or else none for its pictures either.
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, prefix=_PREFIX)  # noqa: SIM115  close()
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        self._bytes = 0

    def take(self, part: bytes) -> None:
        """Take in some more of it. Raises DataError where it is too large, or there is no room."""
        self._bytes += len(part)
        if self._bytes > MOST_FILE:
            raise DataError(f"A file must not have more than {MOST_FILE >> 30} GB.", "Send it in parts.")
        try:
            self._file.write(part)
        except OSError as error:
            raise _unwritable(self._folder, error) from None

    def end(self, name: str) -> Answer:
        """Put it in its place; returns the names that were written, and those that were refused with the reason."""
        if not name or len(name) > LONGEST_NAME:
            raise DataError("The file has no name that can be used.", "Rename it, and send it again.")
        self._file.flush()
        done = receive([(Path(self._file.name), name)], self._folder, self._folders.roots)
        written = [path.name for path in done.written]
        return {"folder": str(self._folder), "written": written, "refused": [list(each) for each in done.refused]}

    def close(self) -> None:
        """Let go of what was taken in."""
        self._file.close()


def _clear(folder: Path) -> None:
    """Remove what a process that is gone had taken in: it would have ended within a day."""
    for left in folder.glob(f"{_PREFIX}*"):
        if time.time() - left.lstat().st_mtime > _DAY_SECONDS:
            left.unlink()


def _unwritable(folder: Path, error: OSError) -> DataError:
    words = f"{str(folder)!r} cannot be written: {error.strerror or error}."
    return DataError(words, "Choose another folder, or make room on the disk.")
