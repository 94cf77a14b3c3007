"""One rule for every file that the page writes: what is in the way is asked about first, and links are left alone.

A file of this page's making is known by its first line. Any other file, a file that a person may want to keep, and a
folder that is missing are asked about; what is no file is refused.
"""

from __future__ import annotations

import stat
from pathlib import Path

from kohya_gui.form.presets import file_text
from trainer.config import TrainingConfig
from trainer.ground.errors import ConfigError, Problem
from trainer.settings import toml

FIRST_LINE = file_text(TrainingConfig()).splitlines()[0]
_LOOKED_AT = 4096
"""Bytes in which a file says whose it is."""


def question_before(path: Path, text: str, *, keeps_own: bool) -> str:
    """Return what to ask before `text` is written to `path`, or "" where nothing is in the way.

    `keeps_own` says that a file of this page's making is worth asking about too.

    Raises:
        ConfigError: what is there is no file of its own, so that nothing may be written in its place.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        if path.parent.is_dir():
            return ""
        return f"The folder {str(path.parent)!r} is not there yet. It will be made."
    except OSError as error:
        raise _refused(path, f"it cannot be written: {error.strerror or error}.") from None
    if not stat.S_ISREG(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no file"
        raise _refused(path, f"what is there is {what}; choose another name.")
    own = _begins_as_ours(path)
    if own and (not keeps_own or _holds(path, text)):
        return ""
    whose = "" if own else " It is not of this page's making."
    return f"{str(path)!r} is there already.{whose} What it says will be replaced."


def write(path: Path, text: str) -> None:
    """Write a file in one step, and its folder where that is missing. Ask `question_before` first.

    Raises:
        ConfigError: it cannot be written.
    """
    toml.write(path, text)


def _begins_as_ours(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(_LOOKED_AT).decode("utf-8", "replace").startswith(FIRST_LINE)
    except OSError:
        return False


def _holds(path: Path, text: str) -> bool:
    wanted = text.encode()
    try:
        return path.stat().st_size == len(wanted) and path.read_bytes() == wanted
    except OSError:
        return False


def _refused(path: Path, rule: str) -> ConfigError:
    return ConfigError([Problem("", f"{str(path)!r}: {rule}", str(path))])
