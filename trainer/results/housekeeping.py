"""What is done with runs that have ended: renamed, deleted, their files copied to where another program finds them."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.config.values import parse_file_name
from trainer.ground.errors import StateError
from trainer.ground.files import replacing, write_text
from trainer.planning.timetable import LORA_SUFFIX
from trainer.results.run_folder import RunFolder
from trainer.results.run_record import MOST_NOTES, NOTES, is_held


def rename(folder: RunFolder, name: str) -> RunFolder:
    """Give a run and its LoRA files another name, and return where it is now.

    Raises:
        StateError: it is under way, the name cannot be one, or is taken.
    """
    _refuse_held(folder)
    try:
        name = str(parse_file_name(name))
    except ValueError as error:
        raise StateError(f"The run cannot be called {name!r}.", f"{error}.") from None
    new = RunFolder(folder.output_dir, name)
    if not name or name == folder.output_name:
        raise StateError("The run has that name already." if name else "The run needs a name.", "Write another one.")
    if new.exists() or new.path.exists():
        raise StateError(f"There is a run or a LoRA named {name!r} already.", "Choose another name.")
    with _said("renamed", folder):
        for path in list(folder.all_files()):
            os.replace(path, path.with_name(name + path.name.removeprefix(folder.output_name)))
        os.replace(folder.path, new.path)
        settings = new.config.read_text(encoding="utf-8")
        renamed = re.sub(r"(?m)^output_name\s*=.*$", lambda _: f'output_name = "{name}"', settings, count=1)
        write_text(new.config, renamed)
    return new


def delete(folder: RunFolder, *, files: bool) -> None:
    """Remove a run's folder, with `files` its LoRA files too.

    Raises:
        StateError: it is under way, or cannot be removed.
    """
    _refuse_held(folder)
    with _said("deleted", folder):
        if os.path.islink(folder.path):
            raise StateError(f"{str(folder.path)!r} is a link and no run's folder.", "Remove it by hand.")
        for path in list(folder.all_files()) if files else ():
            path.unlink()
        shutil.rmtree(folder.path)


def copy_file(path: Path, target: Path) -> Path:
    """Copy a LoRA into a folder, at once or not at all, and return where it is.

    Raises:
        StateError: the folder is not there or cannot be written, or another file has the name.
    """
    if path.suffix != LORA_SUFFIX or not path.is_file():
        raise StateError(f"{path.name!r} is no LoRA file of this run.", "Look at the list again.")
    copy = target / path.name
    try:
        if copy.exists():
            if filecmp.cmp(path, copy, shallow=False):
                return copy
            raise StateError(f"{str(copy)!r} is there already, and is another file.", "Rename or remove it first.")
        if not target.is_dir():
            raise StateError(f"The folder {str(target)!r} does not exist.", "Choose the LoRA folder of your program.")
        with replacing(copy) as temporary:
            shutil.copyfile(path, temporary)
    except OSError as error:
        reason = error.strerror or error
        raise StateError(f"{str(copy)!r} cannot be written ({reason}).", "Choose another folder.") from error
    return copy


def write_notes(folder: RunFolder, text: str) -> None:
    """Keep what a person wrote about a run.

    Raises:
        StateError: it is too long, or cannot be written.
    """
    if len(text.encode("utf-8", "replace")) > MOST_NOTES:
        raise StateError(f"Notes have at most {MOST_NOTES:,} bytes.", "Write less.")
    with _said("noted", folder):
        write_text(folder.path / NOTES, text)


def _refuse_held(folder: RunFolder) -> None:
    if is_held(folder):
        raise StateError(f"The run {folder.output_name!r} is under way.", "Stop it first.")


@contextmanager
def _said(done: str, folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"The run {folder.output_name!r} cannot be {done} ({reason})."
        raise StateError(message, "See who else has it open.") from error
