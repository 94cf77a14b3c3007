"""What a program opens, as the interpreter itself tells it: nothing but regular files, or the open is refused."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_watched: list[tuple[Path, list[Path]]] = []
_hooked: list[bool] = []


@contextmanager
def opened_below(folder: Path) -> Iterator[list[Path]]:
    """Yield a list that grows by each path below `folder` that is opened; opening what is no file fails the test."""
    if not _hooked:
        sys.addaudithook(_audit)  # a hook can't be taken away again
        _hooked.append(True)
    found: list[Path] = []
    _watched.append((folder, found))
    try:
        yield found
    finally:
        _watched.pop()


def _audit(name: str, arguments: tuple[object, ...]) -> None:
    if name != "open" or not _watched or not isinstance(arguments[0], str | bytes):
        return
    path, (folder, found) = Path(os.fsdecode(arguments[0])), _watched[-1]
    if not path.is_relative_to(folder):
        return
    found.append(path)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), f"{path} is no file and was opened"
