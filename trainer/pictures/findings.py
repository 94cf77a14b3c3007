"""What a scan comes upon on its way, and its words: what was left out, what is missing, which folder was meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.ground.errors import DataError
from trainer.pictures.listing import Listing
from trainer.pictures.remarks import FILE, Remarks
from trainer.settings.wording import PROGRAM

NAMED = 20
"""A notice about what was left out names so many for each reason."""

_CAPTIONS_NAMED = 8
_TXT = ".txt"
"""The ending that `recode` takes where none is named."""
_FEW = 5


@dataclass(frozen=True, slots=True)
class ForeignCaption:
    """A caption that is not UTF-8, and the encoding that it most likely has."""

    path: Path
    encoding: str


@dataclass(slots=True)
class Findings:
    """What there is to say about the pictures, gathered on the way."""

    notices: list[str] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)
    other_extension: list[str] = field(default_factory=list)
    foreign: list[ForeignCaption] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    skipped: list[Path] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Remarks)

    def take(self, found: Listing) -> Listing:
        """Note what of a folder cannot be used, and return the folder."""
        self.unreadable += found.left_out
        self.hidden += [short(found.path / name) for name in found.hidden]
        self.others += found.others
        return found

    def summaries(self) -> Iterator[str]:
        """Yield what was left out and how captions are used."""
        yield from left_out(self.unreadable)
        if self.hidden:
            yield f"Left out, as their names begin with a dot: {pictures(len(self.hidden))}: {listed(self.hidden)}."
        if self.others:
            kinds = ", ".join(f"{ending} ({count})" for ending, count in self.others.most_common(_FEW))
            yield f"Left out {files(self.others.total())} of kinds that are no pictures: {kinds}."
        if self.skipped:
            skipped = listed([short(path) for path in self.skipped])
            yield f"Left out, as {FILE} says: {pictures(len(self.skipped))}: {skipped}."
        for path, names in self.remarks.without_a_picture():
            yield f"{short(path)} speaks of pictures that are not there: {listed(names)}."
        for instead, names in self.missing.items():
            yield f"No caption for {pictures(len(names))}, {instead}: {listed(names)}."
        if self.empty:
            yield f"Empty captions, trained without a text: {listed(self.empty)}."
        if self.longer:
            yield f"Only the first line is used (enable_wildcard picks any line) of: {listed(self.longer)}."
        if self.other_extension:
            yield f"Captions with the other usual extension are used: {listed(self.other_extension)}."


def left_out(unreadable: Iterable[tuple[Path, str]]) -> Iterator[str]:
    """Yield a line for each reason for which something was left out: how much it is, and the names of the first."""
    reasons: dict[str, list[str]] = {}
    for path, reason in unreadable:
        reasons.setdefault(reason, []).append(short(path))
    for reason, names in reasons.items():
        count = f"{len(names)} entries, " if len(names) > 1 else ""
        yield f"Left out {count}{listed(names, NAMED)}: {reason}."


def lie_deeper(root: Path, found: Sequence[Listing]) -> str:
    """Return the notice of pictures in folders where the layout has none."""
    count = sum(len(each.pictures) for each in found)
    where = listed([f"{_below(root, each.path)} ({len(each.pictures)})" for each in found])
    return (
        f"{root}: {pictures(count)} in folders inside other folders not used: {where}. "
        "Move them up, or into numbered folders of their own."
    )


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def refuse_foreign(captions: Sequence[ForeignCaption]) -> None:
    """Refuse captions that are not UTF-8, all of them at once, by the encodings that they most likely have.

    Raises:
        DataError: there are any.
    """
    if not captions:
        return
    if len(captions) == 1:
        (only,) = captions
        what = f"the caption {only.path} is not UTF-8 text; it reads as {only.encoding}."
    else:
        names: dict[str, list[str]] = {}
        for each in captions:
            names.setdefault(each.encoding, []).append(short(each.path))
        reads = "; ".join(
            f"{len(group)} read as {encoding}: {listed(group, _CAPTIONS_NAMED)}" for encoding, group in names.items()
        )
        what = f"{len(captions)} captions are not UTF-8 text; {reads}."
    endings = sorted({each.path.suffix for each in captions})
    commands = [
        f"{PROGRAM} recode FOLDER" + ("" if ending == _TXT else f" --caption_extension {ending}") for ending in endings
    ]
    raise DataError(
        f"caption_extension: {what}",
        f"Save them as UTF-8 in a text editor, or all at once: {' and '.join(commands)}.",
    )


def short(path: Path) -> str:
    """Return a path's folder and name."""
    return "/".join(path.parts[-2:])


def listed(names: Sequence[str], most: int = _FEW) -> str:
    """Return the first names and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def pictures(count: int) -> str:
    """Return a number of pictures in words."""
    return "1 picture" if count == 1 else f"{count} pictures"


def files(count: int) -> str:
    """Return a number of files in words."""
    return "1 file" if count == 1 else f"{count} files"
