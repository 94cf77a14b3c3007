"""What lies in a folder, each entry once: files, folders, and what is left out of a training, with the reason.

A folder is never entered through a link but where the layout leads there, so links in circles do no harm.
"""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.pictures.image_headers import EXTENSIONS, FOREIGN_EXTENSIONS, why_foreign
from trainer.pictures.remarks import FILE, MASKS

MOST_ENTRIES = 100_000
"""So many entries of folders beyond the layout are looked at; whoever chose a whole disk does not wait for all."""

COMPANIONS = frozenset(
    {"", ".txt", ".caption", ".json", ".jsonl", ".npz", ".safetensors", ".toml", ".csv", ".md", ".ini", ".db", ".html"}
)
"""Endings of what usually lies beside pictures and is missed by nobody."""

NOWHERE = "a link that leads nowhere; its drive may be missing"
NO_FILE = "no regular file"


@dataclass(slots=True)
class Listing:
    """One folder: `pictures` sorted, `names` of all files by their own and their lower-case form, `folders` sorted.

    `left_out` holds (path, reason) of entries that are no files, lead nowhere, or are pictures of kinds not read;
    `hidden` are pictures whose names begin with a dot, `others` counts files that are neither pictures nor usual beside
    them, by ending.
    """

    path: Path
    pictures: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def entries(self) -> int:
        """How much there is."""
        return len(self.names) + len(self.folders) + len(self.left_out) + len(self.hidden)


def listing(folder: Path) -> Listing:
    """Return what lies in `folder`. One that cannot be opened is left out of itself."""
    found = Listing(folder)
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.left_out.append((folder, f"the folder cannot be opened: {error.strerror}"))
        return found
    for entry in ordered:
        _add(found, entry)
    if FILE in found.names:
        found.folders = [name for name in found.folders if name != MASKS]
    found.names |= {name.lower(): name for name in found.names if name.lower() not in found.names}
    return found


def _add(found: Listing, entry: os.DirEntry[str]) -> None:
    name, extension = entry.name, os.path.splitext(entry.name)[1].lower()
    if name.startswith("."):
        if extension in EXTENSIONS:
            found.hidden.append(name)
    elif (reason := _why_not_a_file(entry)) == _FOLDER:
        found.folders.append(name)
    elif reason:
        found.left_out.append((found.path / name, reason))
    else:
        found.names[name] = name
        if extension in EXTENSIONS:
            found.pictures.append(name)
        elif extension in FOREIGN_EXTENSIONS:
            found.left_out.append((found.path / name, why_foreign(extension)))
        elif extension not in COMPANIONS:
            found.others[extension] += 1


_FOLDER = "a folder"


def _why_not_a_file(entry: os.DirEntry[str]) -> str:
    """Return "" for a file, also by way of a link; else what it is."""
    try:
        if entry.is_file():
            return ""
        if entry.is_dir():
            return _FOLDER
        mode = entry.stat(follow_symlinks=False).st_mode
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"
    return NOWHERE if stat.S_ISLNK(mode) else f"{NO_FILE}, but {_kind(entry)}"


def _kind(entry: os.DirEntry[str]) -> str:
    """Return what an entry is that is neither a file nor a folder."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return "something else"
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")


def deeper(folders: Iterable[Path], known: Iterable[Path]) -> Iterator[Listing]:
    """Yield the folders with pictures below `folders`, at any depth, but no folder that is among `known`.

    Ends after MOST_ENTRIES entries.
    """
    seen = {None, *(_identity(path) for path in known)}
    pending, entries = deque(folders), 0
    while pending and entries < MOST_ENTRIES:
        path = pending.popleft()
        identity = _identity(path)
        if identity in seen or os.path.islink(path):
            continue
        seen.add(identity)
        found = listing(path)
        entries += found.entries
        pending += [path / name for name in found.folders]
        if found.pictures:
            yield found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_dev, state.st_ino)
