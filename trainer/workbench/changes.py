"""Captions changed as a transaction: a preview of every change, then all of them, each file in one step, and back.

Before the first caption is written, a journal in its folder says what every caption was and what it is to be. A kill at
any moment leaves each caption whole, the old one or the new one; the next start finds the journal, tells which are
which, and finishes or takes back. A file that is not what it was in the preview is told and left alone. What was taken
back can be done again, one change after another, until another change is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.ground.control import Progress
from trainer.ground.errors import DataError, StateError
from trainer.pictures.caption_files import LARGEST_CAPTION
from trainer.workbench import journal
from trainer.workbench.album import Entry
from trainer.workbench.journal import Journal, Line
from trainer.workbench.operations import Operation, Recode, SetText
from trainer.workbench.texts import CaptionText, digest_of, read_caption_text
from trainer.workbench.writing import CHANGED, content_of, why, write

PREVIEWING, WRITING = "previewing captions", "writing captions"
UNDOING, REDOING = "taking captions back", "changing captions again"

_GONE = "is not there any more"


@dataclass(frozen=True, slots=True)
class Change:
    """One caption: the text of its file before (None: there is none) and after; it becomes UTF-8.

    `encoding` is the one it has, `digest` the sha256 of its bytes.
    """

    picture: Path
    caption: Path
    old: str | None
    new: str
    encoding: str
    digest: str


@dataclass(frozen=True, slots=True)
class Preview:
    """Every change that is going to be made. `refused` holds (caption, why) of those that cannot be."""

    title: str
    changes: tuple[Change, ...]
    unchanged: int = 0
    refused: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What was written, or taken back: captions `done`, and `conflicts` (caption, why it was left alone)."""

    title: str
    done: tuple[Path, ...]
    conflicts: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A change that stands: when it was made, in seconds of the Unix epoch, and how many captions it is about."""

    id: str
    title: str
    when: float
    count: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A change that was cut off: captions that have their `done` text already, those `pending`, and `foreign` ones.

    A foreign one has neither the old nor the new text. `undoing` says that the change was being taken back, so that
    "done" means the old text.
    """

    id: str
    title: str
    when: float
    undoing: bool
    done: tuple[Path, ...]
    pending: tuple[Path, ...]
    foreign: tuple[Path, ...]
    journals: tuple[Journal, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that it is about."""
        return tuple(each.folder for each in self.journals)


def preview(entries: Iterable[Entry], operations: Sequence[Operation], progress: Progress | None = None) -> Preview:
    """Return what operations, one after another, would make of captions. Nothing is written.

    Raises:
        Stopped: raised by `progress(phase, done, total)`.
    """
    title = "; ".join(each.words for each in operations)
    recoding = any(isinstance(each, Recode) for each in operations)

    def changed(entry: Entry, text: str) -> str:
        for operation in operations:
            text = operation.apply(text)
        return text

    return _preview(title, list(entries), changed, recoding, progress)


def preview_texts(title: str, texts: Mapping[Entry, str], progress: Progress | None = None) -> Preview:
    """Return what writing a text for each picture would change, as `preview` does."""
    return _preview(title, list(texts), lambda entry, text: SetText(texts[entry]).apply(text), False, progress)


def _preview(
    title: str,
    entries: Sequence[Entry],
    changed: Callable[[Entry, str], str],
    recoding: bool,
    progress: Progress | None,
) -> Preview:
    changes: dict[Path, Change] = {}
    refused: list[tuple[Path, str]] = []
    unchanged = 0
    for number, entry in enumerate(entries):
        if progress:
            progress(PREVIEWING, number, len(entries))
        try:
            change = _change(entry, changed, recoding)
        except DataError as error:
            refused.append((entry.caption, str(error)))
            continue
        if change is None:
            unchanged += 1
        elif (other := changes.get(entry.caption)) and other.new != change.new:
            refused.append((entry.caption, f"{entry.picture.name} shares it with {other.picture.name}"))
        else:
            changes.setdefault(entry.caption, change)
    return Preview(title, tuple(changes.values()), unchanged, tuple(refused))


def _change(entry: Entry, changed: Callable[[Entry, str], str], recoding: bool) -> Change | None:
    """Return what changes of a caption; None where nothing does.

    Raises:
        DataError: it cannot be read, is a link to a file elsewhere, or would be too long; or its picture is gone.
    """
    if not os.path.lexists(entry.picture):
        raise DataError(f"{entry.picture.name} {_GONE}.", "Open the folder again.")
    if entry.listed is not None:
        raise DataError(f"The caption of {entry.picture.name} is in a list of pictures.", "Change it in that file.")
    if os.path.islink(entry.caption):
        words = f"{entry.caption} is a link to another file; nothing is written through links."
        raise DataError(words, "Put a copy there.")
    found = read_caption_text(entry.caption)
    new = changed(entry, found.text)
    if len(new.encode("utf-8", "surrogatepass")) > LARGEST_CAPTION:
        raise DataError(f"{entry.caption} would have more than {LARGEST_CAPTION:,} bytes, which captions never have.")
    try:
        new.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"The text for {entry.caption.name} holds half a character.", "Write it anew.") from None
    if new == found.text and not (recoding and found.encoding != "utf-8"):
        return None
    return _of_text(entry, found, new)


def _of_text(entry: Entry, found: CaptionText, new: str) -> Change:
    old = found.text if found.there else None
    return Change(entry.picture, entry.caption, old, new, found.encoding, found.digest)


def apply(planned: Preview, progress: Progress | None = None) -> Applied:
    """Write what a preview shows, file by file, each in one step.

    Raises:
        StateError: an earlier change of these folders was cut off, or they are being changed by somebody else.
        DataError: a folder cannot be written; nothing was changed then.
        Stopped: raised by `progress(phase, done, total)` between two files; see `unfinished`.
    """
    if not planned.changes:
        return Applied(planned.title, ())
    folders: dict[Path, list[Change]] = {}
    for change in planned.changes:
        folders.setdefault(change.caption.parent, []).append(change)
    with journal.locked(folders):
        _require_finished(folders)
        conflicts: list[tuple[Path, str]] = []
        number = journal.new_id(folders)
        journals = []
        try:
            for folder, changes in folders.items():
                journal.prune(folder)
                if lines := _lines(changes, conflicts):
                    journals.append(journal.plan(folder, number, planned.title, lines))
        except DataError:
            for each in journals:
                journal.forget(each)
            raise
        for folder in folders:
            journal.forget_undone(folder)
        begun = [journal.settle(each, journal.BEGUN) for each in journals]
        done = write(begun, progress, WRITING, conflicts, back=False)
        return Applied(planned.title, tuple(done), tuple(conflicts))


def _lines(changes: Iterable[Change], conflicts: list[tuple[Path, str]]) -> list[Line]:
    """Return what is to be written of captions that are what they were in the preview; note the others."""
    found = []
    for change in changes:
        if not os.path.lexists(change.picture):
            conflicts.append((change.caption, f"its picture {_GONE}"))
            continue
        try:
            old = content_of(change.caption)
        except OSError as error:
            conflicts.append((change.caption, why(error)))
            continue
        if (digest_of(old) if old is not None else "") != change.digest:
            conflicts.append((change.caption, CHANGED))
        else:
            found.append(Line(change.caption.name, old, change.new.encode("utf-8")))
    return found


def _require_finished(folders: Iterable[Path]) -> None:
    for folder in folders:
        cut_off = [each for each in journal.journals(folder) if each.state in journal.CUT_OFF]
        if cut_off:
            raise StateError(
                f"A change of captions in {folder} was cut off: {cut_off[0].title}.", "Finish it or take it back first."
            )


def history(folders: Iterable[Path]) -> tuple[Record, ...]:
    """Return the changes of these folders that stand, the newest first."""
    return _in_state(journal.DONE, folders)


def _in_state(state: str, folders: Iterable[Path]) -> tuple[Record, ...]:
    found: dict[str, Record] = {}
    for folder in dict.fromkeys(folders):
        for each in journal.journals(folder):
            if each.state == state:
                count = found[each.id].count if each.id in found else 0
                found[each.id] = Record(each.id, each.title, each.when, count + each.count)
    return tuple(sorted(found.values(), key=lambda each: each.id, reverse=True))


def last_change(folders: Iterable[Path]) -> Record | None:
    """Return what `undo` would take back."""
    return next(iter(history(folders)), None)


def last_undone(folders: Iterable[Path]) -> Record | None:
    """Return what `redo` would do again: of the changes that were taken back the one that was made first.

    Where a later change stands in one of the folders, there is none.
    """
    every = tuple(dict.fromkeys(folders))
    standing, undone = last_change(every), _in_state(journal.UNDONE, every)
    return undone[-1] if undone and not (standing and standing.id > undone[-1].id) else None


def undo(folders: Iterable[Path], progress: Progress | None = None) -> Applied | None:
    """Take back the newest change of these folders that stands; None where there is none.

    A caption that was changed afterwards is told and left alone.

    Raises:
        StateError, DataError, Stopped: as `apply` does.
    """
    every = tuple(dict.fromkeys(folders))
    newest = last_change(every)
    if newest is None:
        return None
    return _turn(every, newest, progress, back=True)


def redo(folders: Iterable[Path], progress: Progress | None = None) -> Applied | None:
    """Do again what `last_undone` returns; None where there is nothing.

    A caption that was changed meanwhile is told and left alone.

    Raises:
        StateError, DataError, Stopped: as `apply` does.
    """
    every = tuple(dict.fromkeys(folders))
    undone = last_undone(every)
    return _turn(every, undone, progress, back=False) if undone else None


def _turn(folders: Sequence[Path], record: Record, progress: Progress | None, *, back: bool) -> Applied:
    """Take a change that stands back, or do one again that was taken back."""
    before, between = (journal.DONE, journal.UNDOING) if back else (journal.UNDONE, journal.BEGUN)
    mine = [each for each in _of_id(folders, record.id) if each.state == before]
    places = [each.folder for each in mine]
    with journal.locked(places):
        _require_finished(places)
        turning = [journal.settle(each, between) for each in mine]
        conflicts: list[tuple[Path, str]] = []
        done = write(turning, progress, UNDOING if back else REDOING, conflicts, back=back)
    return Applied(record.title, tuple(done), tuple(conflicts))


def _of_id(folders: Iterable[Path], number: str) -> list[Journal]:
    return [each for folder in folders for each in journal.journals(folder) if each.id == number]


def unfinished(folders: Iterable[Path]) -> tuple[Unfinished, ...]:
    """Return the changes of these folders that were cut off, the oldest first, as their captions are now.

    One that somebody is making now is none.

    Raises:
        DataError: a journal is damaged.
    """
    every = tuple(dict.fromkeys(folders))
    cut_off = [each for folder in every for each in journal.journals(folder) if each.state in journal.CUT_OFF]
    found = [_cut_off(_of_id(every, number)) for number in sorted({each.id for each in cut_off})]
    return tuple(each for each in found if each)


def _cut_off(journals: Sequence[Journal]) -> Unfinished | None:
    """Return a change that was cut off, None where somebody is at it; what only lacks its last word is settled here."""
    try:
        with journal.locked(each.folder for each in journals):
            if any(each.state == journal.PLANNED for each in journals):
                for each in journals:
                    journal.forget(each)
                return None
            found = _unfinished(journals)
            if not (found.pending or found.foreign):
                write(journals, None, WRITING, [], back=found.undoing)
                return None
            return found
    except StateError:
        return None


def _unfinished(journals: Sequence[Journal]) -> Unfinished:
    undoing = any(each.state == journal.UNDOING for each in journals)
    done: list[Path] = []
    pending: list[Path] = []
    foreign: list[Path] = []
    for each in journals:
        for line in journal.lines_of(each):
            path = each.folder / line.name
            before, after = (line.new, line.old) if undoing else (line.old, line.new)
            try:
                content = content_of(path)
            except OSError:
                foreign.append(path)
                continue
            (done if content == after else pending if content == before else foreign).append(path)
    first = journals[0]
    return Unfinished(
        first.id, first.title, first.when, undoing, tuple(done), tuple(pending), tuple(foreign), tuple(journals)
    )


def finish(cut_off: Unfinished, progress: Progress | None = None) -> Applied:
    """Go on with a change that was cut off, or with taking it back where that was cut off.

    Raises:
        StateError, DataError, Stopped: as `apply` does.
    """
    return _go_on(cut_off, progress, back=cut_off.undoing)


def take_back(cut_off: Unfinished, progress: Progress | None = None) -> Applied:
    """Bring the captions of a change that was cut off to what they were before it; after an undo, to what it undid.

    Raises:
        StateError, DataError, Stopped: as `apply` does.
    """
    return _go_on(cut_off, progress, back=not cut_off.undoing)


def _go_on(cut_off: Unfinished, progress: Progress | None, *, back: bool) -> Applied:
    with journal.locked(cut_off.folders):
        still = _of_id(cut_off.folders, cut_off.id)
        for each in still:
            journal.sweep(each)
            journal.prune(each.folder)
        conflicts: list[tuple[Path, str]] = []
        done = write(still, progress, UNDOING if back else WRITING, conflicts, back=back)
    return Applied(cut_off.title, tuple(done), tuple(conflicts))
