"""A folder of pictures that is open in the workbench: what the page shows of it, and which pictures a filter leaves."""

from __future__ import annotations

import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kohya_gui.parts.folders import Folders
from trainer.config import TrainingConfig
from trainer.ground.errors import ConfigError, DataError
from trainer.pictures.buckets import Buckets, Placement
from trainer.pictures.image_headers import EXTENSIONS
from trainer.pictures.remarks import Remark, read_remarks
from trainer.workbench.album import Album, AlbumFolder, Detail, Entry, Index, crop_box, detail
from trainer.workbench.problems import Finding, Kind
from trainer.workbench.statistics import complete, tag_counts
from trainer.workbench.texts import body_of, folded, tags_of

UNCAPTIONED, FOREIGN, SMALL, UNREADABLE = (
    each.value for each in (Kind.UNCAPTIONED, Kind.NOT_UTF8, Kind.SMALL, Kind.BROKEN)
)
EMPTY, LEFT_OUT, REPEATED, CROPPED, MASKED = (
    "caption empty", "left out", "own repeats", "own crop", "has a mask",
)  # fmt: skip
KINDS = (UNCAPTIONED, EMPTY, FOREIGN, SMALL, UNREADABLE, LEFT_OUT, REPEATED, CROPPED, MASKED)
"""What can be shown alone without the search for problems."""

SERIOUS = frozenset({UNCAPTIONED, FOREIGN, SMALL, UNREADABLE})


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which pictures are to be shown, in which order: all that fit each of these."""

    find: str = ""
    folder: int | None = None
    tags: tuple[str, ...] = ()
    problem: str = ""
    bucket: str = ""
    below: int | None = None
    sort: str = ""

    @property
    def needs_all(self) -> bool:
        """Whether captions or sizes of all pictures have to be known for it."""
        sorted_by = self.sort in ("size", "short")
        read = self.problem in (EMPTY, FOREIGN, SMALL, UNREADABLE)
        return bool(self.find or self.tags or self.bucket or self.below or sorted_by or read)


@dataclass(slots=True)
class Bench:
    """An open folder. Pictures are known to the page by their numbers alone.

    `own` says that it is the form's, with its regularisation pictures. `closed` are the numbers of pictures that lead
    out of the folders that the page may use: they are not shown.
    """

    path: str
    config: TrainingConfig
    album: Album
    folders: Folders
    own: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    index: Index = field(init=False)
    buckets: Buckets | None = field(init=False)
    closed: frozenset[int] = field(init=False)
    uncaptioned: set[int] = field(init=False)
    _findings: tuple[Finding, ...] = ()
    _found: Mapping[int, Sequence[Finding]] = field(default_factory=dict)
    ready: threading.Event = field(default_factory=threading.Event)
    changes: int = 0
    _tags: tuple[object, Mapping[str, int]] | None = None
    _there: Mapping[Path, frozenset[str]] = field(init=False)
    _numbers: dict[Path, int] = field(init=False)
    _captions: dict[Path, list[int]] = field(init=False)
    _placements: dict[tuple[int, int], Placement | None] = field(default_factory=dict)
    _remarks: dict[Path, tuple[int, Mapping[str, Remark]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entries = self.album.entries
        self.index = Index(self.album)
        try:
            self.buckets = Buckets.from_config(self.config)
        except ConfigError:  # which is said beside the form
            self.buckets = None
        self.closed = frozenset(_closed(self.album, self.folders))
        self.uncaptioned = {entry.number for entry in entries if not entry.captioned} - self.closed
        self._there = {path: _pictures_in(path) for path in self.album.paths}
        self._numbers = {entry.picture: entry.number for entry in entries}
        self._captions = {}
        for entry in entries:
            self._captions.setdefault(entry.caption, []).append(entry.number)

    # --- pictures by number -----------------------------------------------------------------------------------------

    @property
    def places(self) -> tuple[Path, ...]:
        """The folders that may be used, each once."""
        opened = (each.path for each in self.album.folders if any(number not in self.closed for number in _of(each)))
        return tuple(dict.fromkeys(opened))

    def entry(self, number: object) -> Entry:
        """Return a picture.

        Raises:
            DataError: there is none of this number.
        """
        if type(number) is int and 0 <= number < len(self.album.entries) and number not in self.closed:
            return self.album.entries[number]
        raise DataError("There is no such picture in the open folder.", "Open the folder again.")

    def entries(self, numbers: object) -> list[Entry]:
        """Return pictures. Raises as `entry` does."""
        return [self.entry(number) for number in numbers] if isinstance(numbers, Sequence) else []

    def named(self, folder: int | None, name: str) -> int | None:
        """Return the number of the picture of this name in a folder, None where there is none."""
        if folder is None or not 0 <= folder < len(self.album.folders):
            return None
        found = (each for each in _of(self.album.folders[folder]) if self.album.entries[each].picture.name == name)
        return next((each for each in found if each not in self.closed), None)

    def number_of(self, picture: Path) -> int | None:
        """Return the number of a picture, None where it is not one of these."""
        number = self._numbers.get(picture)
        return None if number in self.closed else number

    def wrote(self, captions: Iterable[Path]) -> None:
        """Captions were written or taken away: they are read again."""
        numbers = [number for path in captions for number in self._captions.get(path, ())]
        for number in numbers:
            there = os.path.lexists(self.album.entries[number].caption)
            (self.uncaptioned.discard if there else self.uncaptioned.add)(number)
        self.index.refresh(numbers)
        self.changes += 1

    def recount(self) -> None:
        """Captions were read: those that are missing are known anew."""
        index = self.index
        there = index.texts.keys() | index.refused.keys()
        self.uncaptioned = {each.number for each in self.album.entries} - there - self.closed

    def remark(self, entry: Entry) -> Remark:
        """Return what is remarked of a picture."""
        return self._remarks_in(entry.picture.parent).get(entry.picture.name, Remark())

    def _remarks_in(self, folder: Path) -> Mapping[str, Remark]:
        try:
            changed = os.stat(folder / "pictures.json").st_mtime_ns
        except OSError:
            return {}
        known = self._remarks.get(folder)
        if known is None or known[0] != changed:
            known = self._remarks[folder] = (changed, read_remarks(folder))
        return known[1]

    # --- what the page shows ----------------------------------------------------------------------------------------

    def rows(self, numbers: object) -> list[dict[str, object]]:
        """Return what there is to show of pictures. Raises as `entry` does."""
        return [self.row(entry) for entry in self.entries(numbers)]

    def row(self, entry: Entry) -> dict[str, object]:
        """Return what there is to show of a picture."""
        seen = detail(entry)
        remark = self.remark(entry)
        placement = self._placement(seen.size)
        box = remark.crop or (crop_box(placement) if placement else None)
        stamp = _stamp(entry.picture)
        return {
            "id": entry.number,
            "name": entry.picture.name,
            "folder": entry.folder,
            "folder_name": self.album.folders[entry.folder].name,
            "caption": body_of(seen.text),
            "missing": entry.number in self.uncaptioned,
            "encoding": "" if seen.encoding in ("utf-8", "") else seen.encoding,
            "size": seen.size,
            "bytes": seen.bytes,
            "bucket": placement.bucket if placement else None,
            "upscaled": bool(placement and placement.upscaled),
            "crop": box,
            "own_crop": remark.crop is not None,
            "skipped": remark.skip,
            "repeats": remark.repeats,
            "masked": bool(remark.mask),
            "small": f"workbench/{self.token}/small/{entry.number}?{stamp}",
            "large": f"workbench/{self.token}/large/{entry.number}?{stamp}",
            "fixed": seen.fixed,
            "wrong": self._wrong(entry, seen, placement),
        }

    def _wrong(self, entry: Entry, seen: Detail, placement: Placement | None) -> list[dict[str, object]]:
        found = {UNREADABLE: f"It cannot be read: {seen.unreadable}."} if seen.unreadable else {}
        if placement and placement.upscaled:
            found[SMALL] = "It is smaller than its bucket, and scaled up."
        if seen.encoding not in ("utf-8", ""):
            found[FOREIGN] = f"Its caption is not UTF-8, it reads as {seen.encoding}."
        for finding in self._found.get(entry.number, ()):
            if finding.kind is Kind.UNBALANCED:  # which is said of a folder
                continue
            found.setdefault(finding.kind.value, finding.message)
        return [{"name": name, "title": title} for name, title in found.items()]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found to be wrong when it was looked for last."""
        return self._findings

    def take_findings(self, findings: Sequence[Finding]) -> None:
        """Take up what was found to be wrong."""
        found: dict[int, list[Finding]] = {}
        for each in findings:
            for path in each.pictures:
                if (number := self.number_of(path)) is not None:
                    found.setdefault(number, []).append(each)
        self._findings, self._found = tuple(findings), found

    def _placement(self, size: tuple[int, int] | None) -> Placement | None:
        """Return how a picture of a size is cut, None where that is not known or the settings contradict each other."""
        if size is None or self.buckets is None:
            return None
        if size not in self._placements:
            self._placements[size] = self.buckets.choose(size)
        return self._placements[size]

    def about(self) -> dict[str, object]:
        """Return what the frame around the pictures shows."""
        shown = [entry for entry in self.album.entries if entry.number not in self.closed]
        return {
            "token": self.token,
            "path": self.path,
            "own": self.own,
            "pictures": len(shown),
            "complete": self.ready.is_set(),
            "folders": [self._folder(number, each) for number, each in enumerate(self.album.folders)],
            "kinds": self._kinds(),
            "buckets": self._buckets(),
            "tags": len(self.tags()),
            "notices": list(self.album.notices),
            "hidden": len(self.closed),
            "otherwise": self._otherwise(),
        }

    def _otherwise(self) -> dict[str, int]:
        """Return how many pictures are gone since the folder was opened, and how many are new."""
        now = {path: _pictures_in(path) for path in self._there}
        gone = sum(len(before - now[path]) for path, before in self._there.items())
        return {"gone": gone, "new": sum(len(now[path] - before) for path, before in self._there.items())}

    def _folder(self, number: int, folder: AlbumFolder) -> dict[str, object]:
        return {
            "number": number,
            "name": folder.name,
            "path": str(folder.path),
            "repeats": folder.repeats,
            "class_tokens": folder.class_tokens,
            "regularisation": folder.regularisation,
            "pictures": sum(each not in self.closed for each in _of(folder)),
        }

    def _kinds(self) -> list[dict[str, object]]:
        listed = [
            {"name": name, "title": name, "count": len(self._of_kind(name)), "serious": name in SERIOUS}
            for name in KINDS
        ]
        known = {each["name"] for each in listed}
        for kind in dict.fromkeys(each.kind for each in self.findings if each.kind.value not in known):
            count = len(self._of_kind(kind.value))
            listed.append({"name": kind.value, "title": kind.value, "count": count, "serious": True})
        return listed

    def _buckets(self) -> list[dict[str, object]]:
        counts = Counter(self._bucket(number) for number in list(self.index.sizes) if number not in self.closed)
        return [{"name": name, "count": count} for name, count in counts.most_common() if name]

    def _bucket(self, number: int) -> str:
        placement = self._placement(self.index.sizes.get(number))
        return f"{placement.bucket[0]}x{placement.bucket[1]}" if placement else ""

    def tags(self) -> Mapping[str, int]:
        """Return the tags of all captions that were read, the most frequent first."""
        state = (self.changes, self.ready.is_set())
        known = self._tags
        if known is None or known[0] != state:
            texts = list(self.index.texts.items())
            known = self._tags = (state, tag_counts(text for number, text in texts if number not in self.closed))
        return known[1]

    def tag_page(self, find: str, most: int) -> dict[str, object]:
        """Return tags to choose from: the most frequent ones, or those that fit what was typed."""
        counts = self.tags()
        listed = complete(counts, find, len(counts)) if find else list(counts.items())
        return {"tags": listed[:most], "more": max(0, len(listed) - most)}

    # --- filters ----------------------------------------------------------------------------------------------------

    def view(self, wanted: Wanted) -> list[int]:
        """Return the numbers of the pictures that are wanted, in their order."""
        if wanted.needs_all:
            self.ready.wait()
        kept = [entry.number for entry in self.album.entries if entry.number not in self.closed]
        for fits in self._tests(wanted):
            kept = [number for number in kept if fits(number)]
        key = self._order(wanted.sort)
        return sorted(kept, key=key) if key else kept

    def _tests(self, wanted: Wanted) -> list[Callable[[int], bool]]:
        texts, sizes, entries = self.index.texts, self.index.sizes, self.album.entries
        tests: list[Callable[[int], bool]] = []
        if wanted.folder is not None:
            tests.append(lambda number: entries[number].folder == wanted.folder)
        if wanted.problem:
            of_kind = self._of_kind(wanted.problem)
            tests.append(lambda number: number in of_kind)
        if wanted.find:
            words = wanted.find.lower()
            tests.append(
                lambda number: words in texts.get(number, "").lower() or words in entries[number].picture.name.lower()
            )
        if wanted.tags:
            tags = set(map(folded, wanted.tags))
            tests.append(lambda number: tags <= set(map(folded, tags_of(texts.get(number, "")))))
        if wanted.bucket:
            tests.append(lambda number: self._bucket(number) == wanted.bucket)
        if wanted.below:
            least = wanted.below
            tests.append(lambda number: number in sizes and min(sizes[number]) < least)
        return tests

    def _order(self, sort: str) -> Callable[[int], int] | None:
        texts, sizes, entries = self.index.texts, self.index.sizes, self.album.entries
        orders: dict[str, Callable[[int], int]] = {
            "size": lambda number: sizes[number][0] * sizes[number][1] if number in sizes else 0,
            "short": lambda number: len(texts.get(number, "")),
            "changed": lambda number: -_stamp(entries[number].caption),
        }
        return orders.get(sort)

    def _of_kind(self, name: str) -> set[int]:
        index, entries = self.index, self.album.entries
        if name == UNCAPTIONED:
            return set(self.uncaptioned)
        if name == EMPTY:
            empty = {number for number, text in list(index.texts.items()) if not text.strip()}
            return empty - self.uncaptioned - self.closed
        if name == SMALL:
            sizes = list(index.sizes.items())
            small = {size for size in {size for _, size in sizes} if (at := self._placement(size)) and at.upscaled}
            return ({number for number, size in sizes if size in small} | self._found_of(SMALL)) - self.closed
        if name == UNREADABLE:
            return set(index.unreadable) - self.closed
        if name == FOREIGN:
            return set(index.encodings) - self.closed
        says: dict[str, Callable[[Remark], object]] = {
            LEFT_OUT: lambda remark: remark.skip,
            REPEATED: lambda remark: remark.repeats,
            CROPPED: lambda remark: remark.crop,
            MASKED: lambda remark: remark.mask,
        }
        if name not in says:
            return self._found_of(name)
        remarks = {folder: self._remarks_in(folder) for folder in {each.picture.parent for each in entries}}
        said_of = (folder / each for folder, said in remarks.items() for each, of in said.items() if says[name](of))
        return {number for path in said_of if (number := self.number_of(path)) is not None}

    def _found_of(self, name: str) -> set[int]:
        return {number for number, found in self._found.items() if any(each.kind.value == name for each in found)}


def _of(folder: AlbumFolder) -> range:
    return range(folder.first, folder.first + folder.count)


def _pictures_in(folder: Path) -> frozenset[str]:
    """Return the names of the pictures in a folder; none of a list of pictures, or of a folder that is gone."""
    try:
        with os.scandir(folder) as found:
            return frozenset(each.name for each in found if each.name.lower().endswith(EXTENSIONS))
    except OSError:
        return frozenset()


def _stamp(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _closed(album: Album, folders: Folders) -> Iterable[int]:
    """Yield the numbers of pictures that lie in, or lead to, places that the page may not use."""
    for folder in album.folders:
        if folders.problem(str(folder.path)):
            yield from _of(folder)
            continue
        try:
            with os.scandir(folder.path) as found:
                links = {each.name for each in found if each.is_symlink()}
        except OSError:  # a list of pictures
            links = set()
        for number in _of(folder):
            entry = album.entries[number]
            led = (path for path in (entry.picture, entry.caption) if path.name in links or path.parent != folder.path)
            if any(folders.problem(str(path)) for path in led):
                yield number
