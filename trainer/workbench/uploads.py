"""Pictures, captions and zip archives taken into a folder that the owner allows. What comes in is not trusted.

Only pictures that Pillow knows and captions are kept, under names that mean the same on every system, inside the
folder, and never over what is there. Archives are unpacked file by file with everything counted as it is written, so
what their headers promise does not matter.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

from trainer.ground.control import Progress
from trainer.ground.errors import DataError
from trainer.ground.files import replacing
from trainer.ground.paths import open_regular
from trainer.pictures.caption_files import LARGEST_CAPTION
from trainer.pictures.image_headers import (
    EXTENSIONS,
    FOREIGN_EXTENSIONS,
    UNREADABLE,
    read_size,
    why_foreign,
    why_unreadable,
)

RECEIVING = "receiving files"

CAPTIONS = (".txt", ".caption")
ARCHIVE = ".zip"

MOST_FILES = 20_000
MOST_PICTURE = 256 << 20
MOST_TOTAL = 16 << 30
"""Files of one upload, bytes of a picture, bytes of all files as they are written."""

_LEFT_FREE = 1 << 30
"""Bytes of the disk that an upload leaves to others."""

_MOST_DEPTH = 4
_LONGEST_NAME = 200
_CHUNK = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_OF_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")

_END, _LOCATOR, _END_64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_END_BYTES = 22 + 0xFFFF


@dataclass(frozen=True, slots=True)
class Received:
    """The files `written`, and (name, why) of those `refused`."""

    written: tuple[Path, ...]
    refused: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """Why one file is not taken."""


class _Full(_Refused):
    """Why no further file is taken."""


@dataclass(slots=True)
class _Desk:
    """One upload: where it goes, what was taken so far, and how many bytes may still be written."""

    folder: Path
    room: int
    written: list[Path] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    files: int = 0


def receive(
    files: Sequence[Path | tuple[Path, str]],
    folder: Path,
    allowed: Iterable[Path],
    progress: Progress | None = None,
) -> Received:
    """Take files into `folder`, which is made if it is not there. What is there already stays as it is.

    Args:
        files: where each lies now, with the name that it had where it comes from, if that is another.
        allowed: the folders that may be written into.

    Raises:
        DataError: the folder leads out of the allowed ones, or cannot be written.
        Stopped: raised by `progress(phase, done, total)` between two files; what was taken by then stays.
    """
    place = Path(os.path.realpath(folder))
    roots = [Path(os.path.realpath(root)) for root in allowed]
    if not any(place.is_relative_to(root) for root in roots):
        named = ", ".join(map(str, roots)) or "none"
        raise DataError(f"{folder} is outside the folders that may be written ({named}).", "Choose one of those.")
    try:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free - _LEFT_FREE
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}.", "Choose another folder.") from error
    desk = _Desk(place, max(0, min(MOST_TOTAL, free)))
    named_files = [each if isinstance(each, tuple) else (each, each.name) for each in files]
    for number, (path, name) in enumerate(named_files):
        if progress:
            progress(RECEIVING, number, len(named_files))
        try:
            _take(path, name, desk, progress)
        except _Full as error:
            desk.refused.append((name, f"{error}; nothing after it was taken"))
            break
        except _Refused as error:
            desk.refused.append((name, str(error)))
        except OSError as error:
            desk.refused.append((name, f"it cannot be read: {error.strerror or error}"))
    if progress:
        progress(RECEIVING, len(named_files), len(named_files))
    return Received(tuple(desk.written), tuple(desk.refused))


def _take(path: Path, name: str, desk: _Desk, progress: Progress | None) -> None:
    """Take one file that was uploaded.

    Raises:
        _Refused, OSError: it is not taken.
    """
    own = re.split(r"[/\\]", name)[-1]
    if own.lower().endswith(ARCHIVE):
        with open_regular(path) as file:
            _unpack(file, own, desk, progress)
        return
    with open_regular(path) as file:
        _write(file, (_checked(own),), desk)


def _unpack(file: BinaryIO, archive: str, desk: _Desk, progress: Progress | None) -> None:
    """Take each file of an archive; those refused are named with it.

    Raises:
        _Refused: it is no archive that can be unpacked, or has too many files.
    """
    try:
        if _count(file) > MOST_FILES:
            raise _Refused(f"it has more than {MOST_FILES:,} files")
        with zipfile.ZipFile(file) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for number, member in enumerate(members):
                if progress:
                    progress(RECEIVING, number, len(members))
                _take_member(opened, member, archive, desk)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise _Refused(f"it is no zip archive that can be read: {error}") from error


def _take_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: str, desk: _Desk) -> None:
    name = member.filename
    if any(part in _OF_SYSTEMS or part.startswith("._") for part in name.split("/")):
        return
    try:
        mode = member.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise _Refused("it is a link or no file")
        if member.flag_bits & 0x1:
            raise _Refused("it needs a password")
        if member.compress_type not in _METHODS:
            raise _Refused("it is packed in a way that is not unpacked here; use plain zip")
        parts = _parts(name)
        with opened.open(member) as file:
            _write(file, parts, desk)
    except _Full:
        raise
    except _Refused as error:
        desk.refused.append((f"{archive}: {name[:_LONGEST_NAME]}", str(error)))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        desk.refused.append((f"{archive}: {name[:_LONGEST_NAME]}", f"it cannot be unpacked: {error}"))


def _count(file: BinaryIO) -> int:
    """Return how many files the end of a zip archive says that it has, before the list of them is read into memory."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _END_BYTES - 20)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise _Refused("it is no zip archive")
    (count,) = struct.unpack_from("<H", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:
        (offset,) = struct.unpack_from("<Q", tail, at - 12)
        file.seek(min(offset, size))
        record = file.read(56)
        if record[:4] == _END_64 and len(record) == 56:
            (count,) = struct.unpack_from("<Q", record, 32)
    (length,) = struct.unpack_from("<L", tail, at + 12)
    # A list that is longer than its files can need hides more of them than it says.
    if length != 0xFFFFFFFF and length > MOST_FILES * 1024:
        raise _Refused("its list of files is too long")
    file.seek(0)
    return int(count)


def _parts(name: str) -> tuple[str, ...]:
    """Return the folders and the name of a file in an archive.

    Raises:
        _Refused: it leads elsewhere, or a part of it is no name on some system.
    """
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise _Refused("its path leads out of the folder")
    parts = [part for part in parts if part not in ("", ".")]
    if not parts or len(parts) > _MOST_DEPTH:
        raise _Refused(f"it lies more than {_MOST_DEPTH - 1} folders deep")
    return tuple(_checked(part) for part in parts)


def _checked(name: str) -> str:
    """Return a name that is one on every system.

    Raises:
        _Refused: it is not.
    """
    if (
        not name
        or _FORBIDDEN.search(name)
        or name.startswith(".")
        or name != name.rstrip(" .")
        or name != name.lstrip()
    ):
        raise _Refused(f"{name!r} is no name for a file on every system; rename it")
    if _RESERVED.fullmatch(name):
        raise _Refused(f"{name!r} is a name that Windows keeps for itself; rename it")
    try:
        if len(name.encode("utf-8")) > _LONGEST_NAME:
            raise _Refused(f"its name is longer than {_LONGEST_NAME} bytes")
    except UnicodeEncodeError:
        raise _Refused("its name is no text") from None
    return name


def _write(file: IO[bytes], parts: tuple[str, ...], desk: _Desk) -> None:
    """Write one picture or caption into the folder.

    Raises:
        _Refused: it is neither, is too large, or is there already.
    """
    ending = os.path.splitext(parts[-1])[1].lower()
    if ending in FOREIGN_EXTENSIONS:
        raise _Refused(why_foreign(ending))
    if ending not in (*EXTENSIONS, *CAPTIONS):
        raise _Refused("it is neither a picture nor a caption (.txt, .caption)")
    if desk.files >= MOST_FILES:
        raise _Full(f"an upload has at most {MOST_FILES:,} files")
    path = desk.folder.joinpath(*parts)
    if not Path(os.path.realpath(path.parent)).is_relative_to(desk.folder):
        raise _Refused("its folder is a link that leads elsewhere")
    if os.path.lexists(path):
        raise _Refused("a file of this name is there already; it was left as it is")
    new = [each for each in path.parents if each.is_relative_to(desk.folder) and not each.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            with open(temporary, "wb") as target:
                for chunk in _limited(file, MOST_PICTURE if ending in EXTENSIONS else LARGEST_CAPTION, desk):
                    target.write(chunk)
            if ending in EXTENSIONS:
                _require_picture(temporary)
            if os.path.lexists(path):
                raise _Refused("a file of this name is there already; it was left as it is")
    finally:
        for each in new:
            # Folders that nothing came into go again.
            with suppress(OSError):
                each.rmdir()
    desk.files += 1
    desk.written.append(path)


def _limited(file: IO[bytes], most: int, desk: _Desk) -> Iterator[bytes]:
    """Yield a file's bytes, all of which count.

    Raises:
        _Refused: there are more than `most`, or than there is room for.
    """
    taken = 0
    while chunk := file.read(_CHUNK):
        taken += len(chunk)
        desk.room -= len(chunk)
        if taken > most:
            raise _Refused(f"it has more than {most:,} bytes")
        if desk.room < 0:
            raise _Full("there is no room for more, on the disk or in one upload")
        yield chunk


def _require_picture(path: Path) -> None:
    try:
        read_size(path)
    except UNREADABLE as error:
        raise _Refused(why_unreadable(path, error)) from error
