"""Writes that matter: a temporary file beside the target, fsync, rename. A reader sees the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.ground.paths import open_regular

CACHE_VARIABLE = "TRAINER_CACHE"

FULL_DISK = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""What a write fails with where there is no room for it."""

_CHUNK = 1 << 20
_TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.tmp")
"""The names of `temporary_of`."""


def temporary_of(path: Path) -> Path:
    """Return where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def leftovers(folder: Path) -> dict[Path, str]:
    """Return {what a process that is gone was writing into a folder: the name that it was to have}.

    On Windows it is not asked whether a process lives: what it has open cannot be removed there.
    """
    found = {each: _TEMPORARY.fullmatch(each.name) for each in folder.iterdir()}
    return {each: match[1] for each, match in found.items() if match and not _is_running(int(match[2]))}


def _is_running(process: int) -> bool:
    if os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends well, it replaces `path`, else it is removed.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    temporary = temporary_of(path)
    # What lies there is of a killed process, or a link that would be written through.
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # Nobody knows the name that it has meanwhile.
        if error.filename is not None and os.fspath(error.filename) == os.fspath(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file by UTF-8 text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system has folders that can be synced."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the user's folder for what can be made again and may be deleted; the variable TRAINER_CACHE moves it."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if os.name == "nt":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "kohya-lora-trainer"
