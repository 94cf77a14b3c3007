"""What tools refuse before they begin, said of the argument that it is about. Torch-free."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.ground.errors import ConfigError, ModelError, Problem
from trainer.ground.files import leftovers
from trainer.settings.problems import shown
from trainer.tools.tool import Desk

SUFFIX = ".safetensors"
_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
PRECISIONS = ("fp16", "bf16", "float")


@contextmanager
def about(argument: str, value: str = "") -> Iterator[None]:
    """Say of `argument` what is wrong with the file that it names.

    Raises:
        ConfigError: in place of a ModelError.
    """
    try:
        yield
    except ModelError as error:
        raise ConfigError([Problem(argument, error.message, value)]) from error


def refusal(argument: str, value: str, reason: str) -> ConfigError:
    """Return the error of an argument whose value cannot be used."""
    return ConfigError([Problem(argument, f"{shown(value)} cannot be used: {reason}.", value)])


def check_target(desk: Desk, save_to: str, sources: Sequence[str], overwrite: bool, *, folder: bool = False) -> Path:
    """Return where to write, having seen that it can be done and that no source is lost by it.

    What is left there of an earlier writing of the same that was killed is removed; of others it is told.

    Args:
        folder: what is written is a folder, which is never put in the place of another.

    Raises:
        ConfigError: it names a source or something inside or around one, something that is there already, no
            .safetensors file, or no writable folder.
    """
    path = Path(save_to)
    if not folder and path.suffix != SUFFIX:
        raise refusal("save_to", save_to, f"the name must end in {SUFFIX}")
    real = Path(os.path.realpath(path))
    for source in map(Path, map(os.path.realpath, sources)):
        if real == source or _is_same(real, source) or (source.is_dir() and source in real.parents):
            raise refusal("save_to", save_to, "this is what is read from; choose another name")
    if os.path.lexists(path) and not (overwrite and os.path.isfile(path) and not folder):
        way_out = "choose another name" if folder else "choose another name, or add --overwrite for a file"
        raise refusal("save_to", save_to, f"something is there already; {way_out}")
    if os.path.isfile(path) and not path.stat().st_mode & _WRITE:
        raise refusal("save_to", save_to, "the file there is read-only; choose another name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise refusal("save_to", save_to, f"nothing can be written there ({error.strerror or error})") from error
    _clear(desk, path)
    return path


def _is_same(one: Path, other: Path) -> bool:
    """Say whether two paths are of one file, such as those that differ by capital letters on some systems."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _clear(desk: Desk, target: Path) -> None:
    if not os.access(target.parent, os.R_OK):
        return
    for left, name in leftovers(target.parent).items():
        if name != target.name:
            desk.note(f"Note: {left} was left by a process that was killed while it wrote {name}; it can be deleted.")
            continue
        desk.note(f"Note: {left} is removed; it was left by a process that was killed while it wrote {name}.")
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(PermissionError):  # on Windows: it is being written
                left.unlink(missing_ok=True)


def check_room(target: Path, size: int) -> None:
    """See that a disk has room for a file of `size` bytes.

    Raises:
        ConfigError: it has not.
    """
    free = shutil.disk_usage(target.parent).free
    if free < size:
        said = f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free on that disk"
        raise refusal("save_to", str(target), said)
