"""What tools refuse before they begin, said of the argument that it is about. Torch-free."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer.ground.errors import ConfigError, ModelError, Problem
from trainer.settings.problems import shown

SUFFIX = ".safetensors"
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


def check_target(save_to: str, sources: Sequence[str], overwrite: bool, *, folder: bool = False) -> Path:
    """Return where to write, having seen that it can be done and that no source is lost by it.

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
        if real == source or (source.is_dir() and source in real.parents):
            raise refusal("save_to", save_to, "this is what is read from; choose another name")
    if os.path.lexists(path) and not (overwrite and os.path.isfile(path) and not folder):
        way_out = "choose another name" if folder else "choose another name, or add --overwrite for a file"
        raise refusal("save_to", save_to, f"something is there already; {way_out}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise refusal("save_to", save_to, f"nothing can be written there ({error.strerror or error})") from error
    return path


def check_room(target: Path, size: int) -> None:
    """See that a disk has room for a file of `size` bytes.

    Raises:
        ConfigError: it has not.
    """
    free = shutil.disk_usage(target.parent).free
    if free < size:
        said = f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free on that disk"
        raise refusal("save_to", str(target), said)
