"""The pictures of a training as they lie in their folders: names at once, sizes and captions when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainingConfig, load_config
from trainer.ground.control import Progress
from trainer.ground.errors import DataError
from trainer.pictures.buckets import Placement, Size
from trainer.pictures.caption_files import caption_file, usual_extension
from trainer.pictures.findings import Findings
from trainer.pictures.image_headers import UNREADABLE, read_size, why_unreadable
from trainer.pictures.scan import sources_of, without_masks
from trainer.pictures.sizes import Sizes
from trainer.pictures.sources import Source
from trainer.workbench.texts import CaptionText, read_caption_text

READING = "looking through pictures"

GONE = "it is not there any more"


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: its `number` in the album, its `folder`'s number, and the file with its caption.

    `caption` is the file that is there or, where `captioned` is false, the one that would be made. Pictures of a list
    have their captions there: `listed` is then the text, and nothing is written.
    """

    number: int
    picture: Path
    folder: int
    caption: Path
    captioned: bool
    listed: str | None = None


@dataclass(frozen=True, slots=True)
class AlbumFolder:
    """A folder or list of pictures; its entries are those of the album from `first` on, `count` of them."""

    path: Path
    name: str
    repeats: int
    class_tokens: str
    regularisation: bool
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Album:
    """All pictures that settings name, in the order of the folders, and what there is to say of the folders."""

    folders: tuple[AlbumFolder, ...]
    entries: tuple[Entry, ...]
    notices: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders' paths."""
        return tuple(folder.path for folder in self.folders)


@dataclass(frozen=True, slots=True)
class Detail:
    """What one picture holds: `size` (width, height) as seen, or why it is `unreadable`; the file is `bytes` long.

    `text` is its caption; `fixed` says why that cannot be written, or not even read.
    """

    size: Size | None
    unreadable: str
    text: str
    encoding: str
    bytes: int
    fixed: str = ""


def open_album(config: TrainingConfig) -> Album:
    """Return the pictures that the dataset settings name, each folder once; no picture and no caption is opened.

    Raises:
        ConfigError, DataError: as the scan does where there are no such folders or nothing in them.
    """
    findings = Findings()
    folders: list[AlbumFolder] = []
    entries: list[Entry] = []
    seen = set()
    for source in sources_of(config, findings):
        place = (os.path.realpath(source.path), source.name)
        if place in seen:
            continue
        seen.add(place)
        source = without_masks(source, findings)
        first = len(entries)
        entries += [_entry(source, name, first + index, len(folders)) for index, name in enumerate(source.files)]
        folders.append(_folder(source, first, len(source.files)))
    return Album(tuple(folders), tuple(entries), (*findings.notices, *findings.summaries()))


def open_folder(folder: Path, caption_extension: str = ".txt") -> Album:
    """Return the pictures in one folder, or in the numbered folders in it. Raises as `open_album` does."""
    return open_album(load_config(overrides={"train_data_dir": str(folder), "caption_extension": caption_extension}))


def _folder(source: Source, first: int, count: int) -> AlbumFolder:
    return AlbumFolder(
        path=source.path,
        name=source.title,
        repeats=source.repeats,
        class_tokens=source.class_tokens,
        regularisation=source.regularisation,
        first=first,
        count=count,
    )


def _entry(source: Source, name: str, number: int, folder: int) -> Entry:
    picture = source.path / name
    if source.captions is not None:
        return Entry(
            number, picture, folder, picture.with_suffix(usual_extension(source)), False, source.captions[name]
        )
    found, _ = caption_file(source, name)
    caption = source.path / (found or os.path.splitext(name)[0] + usual_extension(source))
    return Entry(number, picture, folder, caption, found is not None)


def caption_of(entry: Entry) -> str:
    """Return a picture's caption as it is written, "" where there is none.

    Raises:
        DataError: its file cannot be read.
    """
    return entry.listed if entry.listed is not None else read_caption_text(entry.caption).text


def detail(entry: Entry) -> Detail:
    """Return what one picture holds, read now."""
    size, unreadable, length = None, "", 0
    try:
        length = entry.picture.stat().st_size
        size = read_size(entry.picture)
    except UNREADABLE as error:
        unreadable = _why(entry.picture, error)
    if entry.listed is not None:
        words = "Its caption stands in a list of pictures. Change it in that file."
        return Detail(size, unreadable, entry.listed, "utf-8", length, words)
    try:
        caption = read_caption_text(entry.caption)
    except DataError as error:
        return Detail(size, unreadable, "", "utf-8", length, str(error))
    linked = os.path.islink(entry.caption)
    words = f"{entry.caption.name} is a link to another file; nothing is written through links." if linked else ""
    return Detail(size, unreadable, caption.text, caption.encoding, length, words)


def _why(path: Path, error: BaseException) -> str:
    if not os.path.lexists(path):
        return GONE
    try:
        return why_unreadable(path, error)
    except OSError as failed:
        return failed.strerror or str(failed)


class Index:
    """The sizes and captions of an album by the entries' numbers. Read again, it opens only what has changed.

    `unreadable` says why pictures, and `refused` why captions cannot be read; `encodings` names the encoding of each
    caption that is not UTF-8.
    """

    def __init__(self, album: Album) -> None:
        self.album = album
        self.sizes: dict[int, Size] = {}
        self.texts: dict[int, str] = {}
        self.unreadable: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self.encodings: dict[int, str] = {}
        self._stamps: dict[int, tuple[int, int]] = {}

    def read(self, progress: Progress | None = None) -> None:
        """Read all.

        Raises:
            Stopped: raised by `progress(phase, done, total)`; what was read by then stays.
        """
        total = len(self.album.entries)
        for folder in self.album.folders:
            sizes = Sizes(folder.path, folder.count)
            try:
                for entry in self.album.entries[folder.first : folder.first + folder.count]:
                    if progress:
                        progress(READING, entry.number, total)
                    self._read_size(entry, sizes)
                    self._read_text(entry)
            finally:
                sizes.save()
        if progress:
            progress(READING, total, total)

    def refresh(self, numbers: Iterable[int]) -> None:
        """Read the captions of these entries again."""
        for number in numbers:
            self._stamps.pop(number, None)
            self._read_text(self.album.entries[number])

    def _read_size(self, entry: Entry, sizes: Sizes) -> None:
        try:
            folder = self.album.folders[entry.folder].path
            self.sizes[entry.number], _ = sizes.of(os.path.relpath(entry.picture, folder))
            self.unreadable.pop(entry.number, None)
        except UNREADABLE as error:
            self.sizes.pop(entry.number, None)
            self.unreadable[entry.number] = _why(entry.picture, error)

    def _read_text(self, entry: Entry) -> None:
        number = entry.number
        stamp = (0, 0) if entry.listed is not None else _stamp(entry.caption)
        if number in self._stamps and self._stamps[number] == stamp:
            return
        self._stamps[number] = stamp
        for known in (self.texts, self.refused, self.encodings):
            known.pop(number, None)
        if entry.listed is not None:
            self.texts[number] = entry.listed
            return
        try:
            found = read_caption_text(entry.caption)
        except DataError as error:
            self.refused[number] = error.message
            return
        self._keep(number, found)

    def _keep(self, number: int, found: CaptionText) -> None:
        if found.there:
            self.texts[number] = found.text
        if found.encoding != "utf-8":
            self.encodings[number] = found.encoding


def _stamp(path: Path) -> tuple[int, int]:
    """Return (bytes, time of the last change in nanoseconds) of a file; (-1, 0) where there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return (-1, 0)
    return (state.st_size, state.st_mtime_ns)


def crop_box(placement: Placement) -> tuple[float, float, float, float]:
    """Return (left, top, width, height) of what of a picture is trained, in pixels of the picture as seen."""
    across = placement.original[0] / placement.resized[0]
    down = placement.original[1] / placement.resized[1]
    left, top = placement.left * across, placement.top * down
    width = min(placement.bucket[0] * across, placement.original[0] - left)
    height = min(placement.bucket[1] * down, placement.original[1] - top)
    return left, top, width, height
