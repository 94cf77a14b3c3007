"""Puts captions in the place of others: many beside their files, flushed together, then each by one rename.

A file that is not what was expected is left alone. Whoever is killed leaves each caption whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from trainer.ground.control import Progress
from trainer.ground.errors import DataError
from trainer.ground.files import sync_folder, temporary_of
from trainer.ground.paths import MISSING, read_bytes
from trainer.pictures.caption_files import LARGEST_CAPTION
from trainer.workbench import journal
from trainer.workbench.journal import Journal, Line

_AT_ONCE = 64
"""Captions that are written beside their files before these are replaced: flushing many costs little more than one."""

CHANGED = "it has changed since the preview"
CHANGED_SINCE = "it has changed since"


def content_of(path: Path) -> bytes | None:
    """Return a caption's bytes, None where there is no file. Raises OSError where it cannot be read."""
    if os.path.islink(path):
        raise OSError("it is a link to another file")
    try:
        return read_bytes(path, LARGEST_CAPTION)
    except MISSING:
        return None


def why(error: OSError) -> str:
    """Return in words why a caption cannot be written."""
    return f"it cannot be written: {error.strerror or error}"


class _Changed(Exception):
    """A caption is not what it was."""


@dataclass(slots=True)
class _Staged:
    """One caption on its way: `expected` bytes in its file, None for no file, and what is to take their place.

    `temporary` holds that, beside the file; None where the file is to go.
    """

    path: Path
    expected: bytes | None
    temporary: Path | None


def _stage(path: Path, expected: bytes | None, wanted: bytes | None) -> _Staged:
    """Write what is to take a caption's place beside it.

    Raises:
        _Changed: something else than `expected` is there.
        OSError: it cannot be written.
    """
    if content_of(path) != expected:
        raise _Changed
    if wanted is None:
        return _Staged(path, expected, None)
    temporary = temporary_of(path)
    # What lies there is of a killed process, or a link that would be written through.
    temporary.unlink(missing_ok=True)
    try:
        temporary.write_bytes(wanted)
        if expected is not None:
            shutil.copymode(path, temporary)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return _Staged(path, expected, temporary)


def _flush(staged: _Staged) -> None:
    if staged.temporary:
        with open(staged.temporary, "rb+") as file:
            os.fsync(file.fileno())


def _commit(staged: _Staged) -> None:
    """Put what was staged in a caption's place, in one step.

    Raises:
        _Changed: something else than was expected is there.
        OSError: it cannot be written.
    """
    if content_of(staged.path) != staged.expected:
        raise _Changed
    if staged.temporary:
        os.replace(staged.temporary, staged.path)
    else:
        staged.path.unlink()


@dataclass(slots=True)
class _Writing:
    """The captions of one journal being written, or taken `back`: those `done`, and those `left` alone with the reason.

    `tell` is told, before each file is replaced, of how many the work is over.
    """

    folder: Path
    back: bool
    tell: Callable[[int], None]
    done: list[Path] = field(default_factory=list)
    left: list[tuple[Path, str]] = field(default_factory=list)

    def work(self, lines: Sequence[Line]) -> None:
        """Write some captions: all beside their files, then flushed, which is quick for many, then put in place.

        Raises:
            DataError: the folder is gone.
        """
        staged: list[_Staged] = []
        flushed: list[_Staged] = []
        try:
            for line in lines:
                expected, wanted = (line.new, line.old) if self.back else (line.old, line.new)
                self._guarded(self.folder / line.name, partial(self._begin, staged, line.name, expected, wanted))
            for each in staged:
                self._guarded(each.path, partial(self._flush, each, flushed))
            for each in flushed:
                self.tell(len(self.done) + len(self.left))
                self._guarded(each.path, partial(self._end, each))
            if flushed:
                sync_folder(self.folder)
        except OSError as error:
            raise DataError(
                f"{self.folder} cannot be written: {error.strerror or error}.", "Is its disk there?"
            ) from error
        finally:
            for each in staged:
                if each.temporary:
                    each.temporary.unlink(missing_ok=True)

    def _begin(self, staged: list[_Staged], name: str, expected: bytes | None, wanted: bytes | None) -> None:
        path = self.folder / name
        if content_of(path) == wanted:
            self.done.append(path)
        else:
            staged.append(_stage(path, expected, wanted))

    def _flush(self, staged: _Staged, flushed: list[_Staged]) -> None:
        _flush(staged)
        flushed.append(staged)

    def _end(self, staged: _Staged) -> None:
        _commit(staged)
        self.done.append(staged.path)

    def _guarded(self, path: Path, work: Callable[[], None]) -> None:
        """Do something with a caption; what cannot be done is noted."""
        try:
            work()
        except _Changed:
            self.left.append((path, CHANGED_SINCE if self.back else CHANGED))
        except OSError as error:
            self.left.append((path, why(error)))


def write(
    begun: Sequence[Journal],
    progress: Progress | None,
    phase: str,
    conflicts: list[tuple[Path, str]],
    *,
    back: bool,
) -> list[Path]:
    """Bring the captions of journals to their new text, or `back` to the old one, and settle the journals.

    What was left alone is no part of the change from then on.
    """
    done: list[Path] = []
    total = sum(each.count for each in begun)
    for each in begun:
        before = len(done) + len(conflicts)

        writing = _Writing(each.folder, back, partial(_tell, progress, phase, before, total))
        lines = list(journal.lines_of(each))
        for start in range(0, len(lines), _AT_ONCE):
            writing.work(lines[start : start + _AT_ONCE])
        journal.settle(each, journal.UNDONE if back else journal.DONE, [path.name for path, _ in writing.left])
        done += writing.done
        conflicts += writing.left
    if progress:
        progress(phase, total, total)
    return done


def _tell(progress: Progress | None, phase: str, before: int, total: int, more: int) -> None:
    if progress:
        progress(phase, before + more, total)
