"""Which files the page may touch: those below the folders that were named when the program was started."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.ground.paths import normalised

MODEL_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class Listing:
    """What one folder holds, for the folder dialog. `parent` is None at the top of what may be seen."""

    path: Path
    parent: Path | None
    folders: tuple[str, ...]
    files: tuple[str, ...]
    more: bool


class Refused(Exception):
    """A path that the page may not touch; the text says why and what to do."""


class Folders:
    """The allowed folders. A path counts by where it really leads; hidden folders below them stay closed."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self.roots = tuple(dict.fromkeys(Path(os.path.abspath(root)) for root in roots))
        self._real = tuple(root.resolve() for root in self.roots)

    def check(self, text: str | Path) -> Path:
        """Return the absolute path that `text` means, to the engine too.

        Raises:
            Refused: it leads out of the allowed folders or into a hidden one.
        """
        try:
            path = Path(os.path.abspath(normalised(str(text))))
        except ValueError as error:
            raise Refused(f"{error}.") from None
        # The words first: only to look at //server/share would already send this computer's login there.
        if not _below(path, (*self.roots, *self._real)) or not _below(path.resolve(), self._real):
            allowed = ", ".join(str(root) for root in self.roots)
            raise Refused(
                f"{str(path)!r} is outside the folders that the page may use ({allowed}). "
                f"To allow it, start the program with --allow {_suggestion(path)!r}."
            )
        return path

    def problem(self, text: str) -> str:
        """Return why a path may not be used, or an empty text."""
        try:
            self.check(text)
        except Refused as refusal:
            return str(refusal)
        return ""

    def listing(self, text: str, endings: tuple[str, ...] = ()) -> Listing:
        """Return what the folder holds: its folders, and its files with one of `endings`.

        Raises:
            Refused: it may not be listed, or is no folder.
        """
        path = self.check(text)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name.lower())
        except OSError as error:
            raise Refused(f"{str(path)!r} cannot be listed: {error.strerror or error}.") from None
        seen = [entry for entry in entries if not entry.name.startswith(".")]
        folders = [entry.name for entry in seen if _is_folder(entry)]
        files = [entry.name for entry in seen if entry.name.lower().endswith(endings)] if endings else []
        files = [name for name in files if name not in set(folders)]
        parent = path.parent if not self.problem(str(path.parent)) and path.parent != path else None
        more = len(folders) > MOST_ENTRIES or len(files) > MOST_ENTRIES
        return Listing(path, parent, tuple(folders[:MOST_ENTRIES]), tuple(files[:MOST_ENTRIES]), more)

    def nearest(self, text: str) -> Path:
        """Return the folder to open a dialog at: that of `text`, or the nearest above it that is there and allowed."""
        try:
            path = self.check(text) if text else self.roots[0]
        except Refused:
            return self.roots[0]
        while not path.is_dir() and path != path.parent:
            path = path.parent
        return path if not self.problem(str(path)) else self.roots[0]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _below(path: Path, roots: tuple[Path, ...]) -> bool:
    for root in roots:
        if path.is_relative_to(root) and not any(part.startswith(".") for part in path.relative_to(root).parts):
            return True
    return False


def _suggestion(path: Path) -> str:
    return str(path if path.is_dir() else path.parent)
