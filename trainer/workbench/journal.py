"""What was done to the captions of a folder, written down before it is done: one file for each change of many captions.

    FOLDER/.caption_changes/ID.planned.jsonl   nothing is written yet, in no folder
                            ID.begun.jsonl     being written, or cut off in the middle
                            ID.done.jsonl      stands, and can be taken back
                            ID.undoing.jsonl   being taken back, or cut off in the middle of that
                            ID.undone.jsonl    was taken back, and can be done again until the next change
                            lock               held by whoever writes captions of this folder

A file has a line with the title, then one for each caption with its old bytes and its new text. What state a change is
in is its file's name, so one rename settles it. A change of several folders has the same ID in each.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.ground.errors import DataError, StateError
from trainer.ground.files import leftovers, replacing, sync_folder
from trainer.ground.paths import open_regular

FOLDER = ".caption_changes"
PLANNED, BEGUN, DONE, UNDOING, UNDONE = "planned", "begun", "done", "undoing", "undone"
CUT_OFF = (BEGUN, UNDOING)
"""States in which nobody is at work that a program left behind which was ended."""

KEPT = 50
"""So many changes of a folder can be taken back, one after another."""

_LOCK = "lock"
_ENDING = ".jsonl"
_FORMAT = "caption changes/1"


@dataclass(frozen=True, slots=True)
class Line:
    """One caption of a change: its file's name in the folder, its bytes before (None: no file) and after."""

    name: str
    old: bytes | None
    new: bytes


@dataclass(frozen=True, slots=True)
class Journal:
    """One change in one folder: its file, its number, its state, and when in seconds of the Unix epoch it was begun."""

    path: Path
    id: str
    state: str
    title: str
    when: float
    count: int

    @property
    def folder(self) -> Path:
        """The folder with the captions."""
        return self.path.parent.parent


def new_id(folders: Iterable[Path]) -> str:
    """Return a number that is larger than those of all changes of these folders, whatever the clock says."""
    newest = max((int(each.id) for folder in folders for each in journals(folder)), default=0)
    return f"{max(time.time_ns(), newest + 1):020d}"


def journals(folder: Path) -> list[Journal]:
    """Return the changes of a folder that can be read, the oldest first."""
    try:
        names = sorted(os.listdir(folder / FOLDER))
    except OSError:
        return []
    found = [_journal(folder / FOLDER / name) for name in names if name.endswith(_ENDING) and not name.startswith(".")]
    return [each for each in found if each]


def _journal(path: Path) -> Journal | None:
    number, _, state = path.name.removesuffix(_ENDING).partition(".")
    if not number.isdecimal() or state not in (PLANNED, BEGUN, DONE, UNDOING, UNDONE):
        return None
    try:
        with open_regular(path) as file:
            head = json.loads(file.readline())
        if head["format"] != _FORMAT:
            return None
        return Journal(path, number, state, str(head["title"]), float(head["when"]), int(head["count"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def plan(folder: Path, number: str, title: str, lines: Sequence[Line]) -> Journal:
    """Write down what is going to be done in a folder.

    Raises:
        DataError: the folder cannot be written.
    """
    path = folder / FOLDER / f"{number}.{PLANNED}{_ENDING}"
    now = time.time()
    head = {"format": _FORMAT, "title": title, "when": now, "count": len(lines)}
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for line in (head, *map(_as_json, lines)):
                file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}.", "See its permissions, and the room on its disk."
        ) from error
    return Journal(path, number, PLANNED, title, now, len(lines))


def lines_of(journal: Journal) -> Iterator[Line]:
    """Yield the captions of a change that were to be written, without those that were met changed.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with open_regular(journal.path) as file:
            file.readline()
            told = [json.loads(text) for text in _whole_lines(file)]
        left = {name for each in told for name in each.get("conflicts", ())}
        for each in told:
            if "name" in each and each["name"] not in left:
                yield _from_json(each)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{journal.path} is damaged ({error}), so this change cannot be finished or taken back.",
            f"Remove it; the captions in {journal.folder} stay as they are.",
        ) from error


def _whole_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines; what a killed program was adding behind the last is none."""
    return (line for line in file if line.endswith(b"\n"))


def _as_json(line: Line) -> dict[str, object]:
    return {"name": line.name, **_packed("old", line.old), **_packed("new", line.new)}


def _packed(key: str, content: bytes | None) -> dict[str, object]:
    if content is None:
        return {key: None}
    try:
        return {key: content.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{key}_base64": base64.b64encode(content).decode("ascii")}


def _from_json(told: dict[str, str]) -> Line:
    new = _unpacked(told, "new")
    name = told["name"]
    if new is None or not name or os.path.basename(name) != name:
        raise ValueError(f"{name!r} is no caption of this folder")
    return Line(name, _unpacked(told, "old"), new)


def _unpacked(told: dict[str, str], key: str) -> bytes | None:
    if (packed := told.get(f"{key}_base64")) is not None:
        return base64.b64decode(packed, validate=True)
    return None if told[key] is None else told[key].encode("utf-8")


def settle(journal: Journal, state: str, conflicts: Sequence[str] = ()) -> Journal:
    """Give a change another state; `conflicts` are captions that it left alone, for good.

    Raises:
        DataError: the folder cannot be written.
    """
    path = journal.path.with_name(f"{journal.id}.{state}{_ENDING}")
    try:
        if conflicts:
            with open(journal.path, "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps({"conflicts": list(conflicts)}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        os.replace(journal.path, path)
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(
            f"{journal.folder} cannot be written: {error.strerror or error}.", "See its permissions, and its disk."
        ) from error
    return Journal(path, journal.id, state, journal.title, journal.when, journal.count)


def forget(journal: Journal) -> None:
    """Remove a change that cannot be done again, or was never begun.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        journal.path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{journal.folder} cannot be written: {error.strerror or error}.", "See its permissions."
        ) from error


def forget_undone(folder: Path) -> None:
    """Remove the changes of a folder that were taken back: another change is made in their place."""
    for each in journals(folder):
        if each.state == UNDONE:
            forget(each)


def prune(folder: Path) -> None:
    """Remove the oldest changes beyond KEPT, those never begun, and journals that killed programs were writing."""
    found = journals(folder)
    settled = [each for each in found if each.state == DONE]
    for each in (*settled[:-KEPT], *(each for each in found if each.state == PLANNED)):
        forget(each)
    for temporary in leftovers(folder / FOLDER):
        temporary.unlink(missing_ok=True)


def sweep(journal: Journal) -> None:
    """Remove what a killed program was writing of a change's captions."""
    names = {line.name for line in lines_of(journal)}
    for temporary, name in leftovers(journal.folder).items():
        if name in names:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Keep others from writing captions of these folders.

    Raises:
        StateError: somebody is at it.
        DataError: a folder cannot be written.
    """
    with ExitStack() as stack:
        for folder in sorted(set(folders)):
            stack.enter_context(_lock(folder))
        yield


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    place = folder / FOLDER
    try:
        place.mkdir(exist_ok=True)
        lock = FileLock(place / _LOCK, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise StateError(
            f"Captions in {folder} are being changed by another window or program.", "Wait until that has ended."
        ) from None
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}.", "See its permissions.") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """See that nobody is changing captions of a folder; where nobody ever did, nothing is made for it.

    Raises:
        StateError: somebody is at it.
    """
    if (folder / FOLDER).is_dir():
        with locked([folder]):
            pass
    yield
