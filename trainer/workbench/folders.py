"""Repeats and classes of folders, which their names say (N_class): renamed by one step, and back."""

from __future__ import annotations

import os
import re
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
    """A folder as it is, and as it is to be; the other way round it is undone."""

    old: Path
    new: Path

    @property
    def back(self) -> Rename:
        """What undoes it."""
        return Rename(self.new, self.old)


def plan_rename(folder: Path, repeats: int, class_tokens: str) -> Rename:
    """Return how a numbered folder is renamed to say other repeats or another class.

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
    new = folder.with_name(name)
    _require_free(folder, new)
    return Rename(folder, new)


def _require_free(old: Path, new: Path) -> None:
    """Refuse a name that something else has; on some systems capitals do not tell names apart."""
    if os.path.lexists(new) and not (old.exists() and new.exists() and os.path.samefile(old, new)):
        raise DataError(f"{new} is there already.", "Choose other repeats or another class.")


def rename(planned: Rename) -> Path:
    """Rename a folder in one step and return its new path.

    Raises:
        DataError: it is gone, its new name is taken, it does not stay where it is, or it cannot be renamed.
        StateError: its captions are being changed.
    """
    old, new = planned.old, planned.new
    if old.parent != new.parent or new.name in ("", ".", ".."):
        raise DataError(f"{old} cannot become {new}: a folder stays where it is.")
    if not old.is_dir() or old.is_symlink():
        raise DataError(f"{old} is not there any more.", "Look through the folders again.")
    _require_free(old, new)
    with journal.unused(old):
        try:
            os.rename(old, new)
        except OSError as error:
            raise DataError(
                f"{old} cannot be renamed to {new.name}: {error.strerror or error}.",
                "See whether a program has it open.",
            ) from error
    return new
