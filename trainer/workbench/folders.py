"""Repeats and classes of folders, which their names say (N_class): renamed by one step, also into another, and back."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.ground.errors import DataError
from trainer.pictures.remarks import MOST_REPEATS
from trainer.pictures.scan import split_name
from trainer.workbench import journal

_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/]')
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Rename:
    """A folder as it is, and as it is to be; the other way round it is undone.

    `makes` is the folder that is made for it, `removes` the one that is empty then and goes.
    """

    old: Path
    new: Path
    makes: Path | None = None
    removes: Path | None = None

    @property
    def back(self) -> Rename:
        """What undoes it."""
        return Rename(self.new, self.old, self.removes, self.makes)


def plan_rename(folder: Path, repeats: int, class_tokens: str, into: Path | None = None) -> Rename:
    """Return how a numbered folder is renamed to say other repeats or another class.

    Args:
        into: the folder that it is to lie in, made where it is missing; None for the one that it lies in.

    Raises:
        DataError: it is no numbered folder, or the new name cannot be used.
    """
    if split_name(folder.name) is None or folder.is_symlink() or not folder.is_dir():
        raise DataError(
            f"{folder} is no folder named N_class, whose name says its repeats.",
            "Its pictures' repeats can be said of each of them instead.",
        )
    if not 1 <= repeats <= MOST_REPEATS:
        raise DataError(f"Repeats of {folder.name} are {repeats}; they must be from 1 to {MOST_REPEATS:,}.")
    words = class_tokens.strip()
    if _FORBIDDEN.search(words) or words.endswith("."):
        raise DataError(f"The class {class_tokens!r} holds a sign that names of folders cannot have.", "Leave it out.")
    name = f"{repeats}_{words}"
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        raise DataError(f"The name {name[:40]!r}... is longer than {_LONGEST_NAME} bytes.", "Shorten the class.")
    place = into or folder.parent
    if os.path.lexists(place) and not place.is_dir():
        raise DataError(f"{place} is no folder.", "Give it another name.")
    new = place / name
    _require_free(folder, new)
    return Rename(folder, new, None if place.is_dir() else place)


def _require_free(old: Path, new: Path) -> None:
    """Refuse a name that something else has; on some systems capitals do not tell names apart."""
    if os.path.lexists(new) and not (old.exists() and new.exists() and os.path.samefile(old, new)):
        raise DataError(f"{new} is there already.", "Choose other repeats or another class.")


def rename(planned: Rename) -> Path:
    """Rename a folder in one step and return its new path.

    Raises:
        DataError: it is gone, its new name is taken, or it cannot be renamed.
        StateError: its captions are being changed.
    """
    old, new = planned.old, planned.new
    if not old.is_dir() or old.is_symlink():
        raise DataError(f"{old} is not there any more.", "Look through the folders again.")
    _require_free(old, new)
    with journal.unused(old):
        try:
            if planned.makes:
                planned.makes.mkdir(exist_ok=True)
            os.rename(old, new)
        except OSError as error:
            _remove_empty(planned.makes)
            raise DataError(
                f"{old} cannot become {new}: {error.strerror or error}.",
                "See whether a program has it open, and whether both are on one disk.",
            ) from error
    _remove_empty(planned.removes)
    return new


def _remove_empty(folder: Path | None) -> None:
    """Remove a folder that was made here; where something lies in it by now, it stays."""
    if folder:
        with suppress(OSError):
            folder.rmdir()
