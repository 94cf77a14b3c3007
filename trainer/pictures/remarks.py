"""What was decided about single pictures: `pictures.json`, one in each folder, by file name.

    {"a.png": {"skip": true}, "b.png": {"repeats": 2, "crop": [0, 10, 512, 512], "mask": "masks/b.png"}}

It stands beside the pictures, which are never changed. Nothing in it is guessed: an unknown key or a wrong value is
refused by name.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from filelock import FileLock, Timeout

from trainer.ground.errors import DataError, StateError
from trainer.ground.files import cache_folder, write_text
from trainer.ground.paths import MISSING, read_json

FILE = "pictures.json"

MASKS = "masks"
"""The folder, beside the file, where painted masks are put."""

ALPHA = "alpha"
"""Said of a mask: the picture's own transparency."""

MOST_REPEATS = 1_000_000

Box = tuple[int, int, int, int]
"""(left, top, width, height) in pixels of a picture as it is seen."""

_KEYS = ("skip", "repeats", "crop", "mask")
_WAIT_SECONDS = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Remark:
    """What is said of one picture.

    `skip` leaves it out; `repeats` is how often it is shown in an epoch instead of the folder's repeats; of it only
    `crop` is trained; its loss is weighted by `mask`, a path in the folder, or ALPHA.
    """

    skip: bool = False
    repeats: int | None = None
    crop: Box | None = None
    mask: str = ""

    def __bool__(self) -> bool:
        return self != Remark()

    def to_json(self) -> dict[str, object]:
        """Return what is said of it."""
        told = {"skip": self.skip, "repeats": self.repeats, "crop": self.crop and list(self.crop), "mask": self.mask}
        return {key: value for key, value in told.items() if value}


def read_remarks(folder: Path) -> dict[str, Remark]:
    """Return {file name: what is said of it} of a folder.

    Raises:
        DataError: the file cannot be read, or says something that has no meaning.
    """
    path = folder / FILE
    try:
        told = read_json(path)
    except MISSING:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Repair it, or remove it to train all pictures.") from error
    if not isinstance(told, dict):
        raise DataError(f"{path} must be an object of file names.", 'Write it as {"a.png": {"skip": true}}.')
    return {str(name): _remark(path, str(name), entry) for name, entry in told.items()}


def _remark(path: Path, name: str, entry: object) -> Remark:
    def wrong(key: str, rule: str) -> DataError:
        return DataError(f"{path}: {name}: {key} {rule}.", "Correct it there, or remove it.")

    if not name or name != PurePosixPath(name).name or name != PureWindowsPath(name).name:
        raise wrong("the name", "must be that of a file in this folder, without a path")
    if not isinstance(entry, dict):
        raise wrong("what is said of it", f"must be an object with {', '.join(_KEYS)}")
    for key in entry:
        if key not in _KEYS:
            raise wrong(f"{key!r}", f"is not known; there are {', '.join(_KEYS)}")
    skip, repeats, crop, mask = (entry.get(key) for key in _KEYS)
    if "skip" in entry and not isinstance(skip, bool):
        raise wrong("skip", f"is {skip!r}; it must be true or false")
    if "repeats" in entry and not (type(repeats) is int and 1 <= repeats <= MOST_REPEATS):
        raise wrong("repeats", f"is {repeats!r}; it must be a whole number from 1 to {MOST_REPEATS:,}")
    if "crop" in entry and not _is_box(crop):
        raise wrong("crop", f"is {crop!r}; it must be [left, top, width, height] in pixels, width and height above 0")
    if "mask" in entry and not (isinstance(mask, str) and _is_inside(mask)):
        raise wrong("mask", f"is {mask!r}; it must be {ALPHA!r} or the path of a file in this folder, with /")
    return Remark(bool(skip), repeats, tuple(crop) if crop else None, mask or "")


def _is_box(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 4 and all(type(each) is int for each in value)):
        return False
    left, top, width, height = value
    return left >= 0 and top >= 0 and width > 0 and height > 0


def _is_inside(path: str) -> bool:
    """Say whether a path stays in its folder on every system."""
    windows = PureWindowsPath(path)
    parts = windows.parts
    return bool(parts) and not windows.drive and not windows.root and ".." not in parts and "\0" not in path


def write_remarks(folder: Path, remarks: Mapping[str, Remark]) -> None:
    """Replace what is said of a folder's pictures; where nothing is, the file goes.

    Raises:
        DataError: the folder cannot be written, or a remark has no meaning.
    """
    path = folder / FILE
    told = {name: remark.to_json() for name, remark in sorted(remarks.items()) if remark}
    for name, entry in told.items():
        _remark(path, name, entry)
    try:
        if told:
            lines = ",\n".join(f"  {_json(name)}: {_json(entry)}" for name, entry in told.items())
            write_text(path, f"{{\n{lines}\n}}\n")
        else:
            path.unlink(missing_ok=True)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be written: {reason}.", "See its permissions, and its disk.") from error


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def change_remarks(wanted: Mapping[Path, Remark]) -> dict[Path, Remark]:
    """Say something else of pictures, and return what was said before, which given back undoes it.

    Raises:
        DataError: a file cannot be read or written.
        StateError: somebody else has been writing it for too long.
    """
    return _change({picture: partial(_instead, remark) for picture, remark in wanted.items()})


def amend_remarks(wanted: Mapping[Path, Mapping[str, Any]]) -> dict[Path, Remark]:
    """Say the named things of pictures, {picture: {field of Remark: value}}, and leave what else is said of them.

    Returns and raises as `change_remarks` does.
    """
    return _change({picture: partial(_amended, new) for picture, new in wanted.items()})


def _instead(new: Remark, said: Remark) -> Remark:
    return new


def _amended(new: Mapping[str, Any], said: Remark) -> Remark:
    return replace(said, **new)


def _change(wanted: Mapping[Path, Callable[[Remark], Remark]]) -> dict[Path, Remark]:
    """Make new remarks of what is said of pictures, and return the old ones."""
    folders: dict[Path, list[Path]] = {}
    for picture in wanted:
        folders.setdefault(picture.parent, []).append(picture)
    before: dict[Path, Remark] = {}
    with ExitStack() as stack:
        for folder in sorted(folders):
            stack.enter_context(_lock(folder))
        for folder, pictures in folders.items():
            there = read_remarks(folder)
            before |= {picture: there.get(picture.name, Remark()) for picture in pictures}
            write_remarks(folder, there | {picture.name: wanted[picture](before[picture]) for picture in pictures})
    return before


def _lock(folder: Path) -> AbstractContextManager[object]:
    """Return the held lock of a folder's file; it lies in the user's cache folder, so that nothing is left here.

    Where that cannot be written there is no lock, and whoever writes last is right.
    """
    place = cache_folder() / "locks"
    name = os.path.realpath(folder).encode("utf-8", "surrogateescape").hex()[-120:]
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / f"remarks-{name}.lock", thread_local=False)
        lock.acquire(timeout=_WAIT_SECONDS)
    except Timeout:
        raise StateError(f"{folder / FILE} is being written by another program.", "Try again.") from None
    except OSError as error:
        logger.info("no lock for %s: %s", folder / FILE, error)
        return nullcontext()
    return lock


class Remarks:
    """What is said of all pictures that are met, each folder's file read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, Remark]] = {}
        self._met: dict[Path, set[str]] = {}

    def of(self, picture: Path) -> Remark:
        """Return what is said of a picture.

        Raises:
            DataError: its folder's file cannot be read.
        """
        folder = picture.parent
        self._met.setdefault(folder, set()).add(picture.name)
        return self._in(folder).get(picture.name, Remark())

    def masks(self, folder: Path) -> frozenset[str]:
        """Return the names of files in a folder that are masks of its pictures, and no pictures."""
        return frozenset(each.mask for each in self._in(folder).values() if each.mask and each.mask != ALPHA)

    def _in(self, folder: Path) -> Mapping[str, Remark]:
        if folder not in self._folders:
            self._folders[folder] = read_remarks(folder)
        return self._folders[folder]

    def without_a_picture(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield (file, names) of what is said of pictures that were not met."""
        for folder, remarks in self._folders.items():
            if gone := sorted(remarks.keys() - self._met.get(folder, set()) - self.masks(folder)):
                yield folder / FILE, gone


def summary(remarks: Iterable[Remark]) -> str:
    """Return in words what is said of pictures, "" where nothing is."""
    said = list(remarks)
    counts = {
        "left out": sum(each.skip for each in said),
        "with repeats of their own": sum(each.repeats is not None for each in said),
        "cropped": sum(each.crop is not None for each in said),
        "with a mask of their own": sum(bool(each.mask) for each in said),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
