"""What is wrong with the pictures of a training, and what one click can do about it.

A remedy is written into pictures.json, or is an operation on captions; no picture is changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from trainer.config import TrainingConfig
from trainer.ground.control import Progress
from trainer.pictures.buckets import Buckets
from trainer.pictures.remarks import ALPHA, Remark, Remarks
from trainer.workbench.album import Album, AlbumFolder, Entry, Index
from trainer.workbench.duplicates import groups
from trainer.workbench.inspection import Inspected, inspect
from trainer.workbench.operations import Operation, Recode, TriggerWord, has_tag
from trainer.workbench.texts import body_of
from trainer.workbench.tokens import TokenLimit


class Kind(StrEnum):
    """What can be wrong."""

    BROKEN = "broken"
    SMALL = "too small"
    DUPLICATE = "near-duplicates"
    BLURRED = "blurred"
    TRANSPARENT = "transparent"
    UNCAPTIONED = "caption missing"
    NOT_UTF8 = "caption not UTF-8"
    TOO_LONG = "caption too long"
    NO_TRIGGER = "trigger word missing"
    UNBALANCED = "folders out of balance"


@dataclass(frozen=True, slots=True)
class Options:
    """What counts as wrong.

    A picture is blurred whose sharpness (see `Inspected`) is below `blur_below`; pictures are near-duplicates of whose
    64 bits of perceptual hash no more than `duplicate_distance` differ, with about the same colours; folders are out of
    balance where one is shown more than `balance` times as often as another. `trigger` is the word that every caption
    should have, `limit` what the model reads of one.
    """

    blur_below: float = 40.0
    duplicate_distance: int = 8
    balance: float = 4.0
    trigger: str = ""
    limit: TokenLimit | None = None


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to do: what is said of pictures in pictures.json, for `amend_remarks`, or operations on captions.

    `of_all` says it of all findings of a kind, where `words` name what only one of them has.
    """

    words: str
    amend: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    operations: tuple[Operation, ...] = ()
    of_all: str = ""

    @property
    def for_all(self) -> str:
        """What it is called for all findings of a kind; those that have it alike have the same."""
        return self.of_all or self.words


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with `pictures`: one, a group of near-duplicates of which the first is best, or a folder.

    `remedies` may be none, where only a person can tell.
    """

    kind: Kind
    pictures: tuple[Path, ...]
    message: str
    remedies: tuple[Remedy, ...] = ()


LEAVE_OUT = "Leave out"


def find_problems(
    album: Album,
    config: TrainingConfig,
    options: Options | None = None,
    progress: Progress | None = None,
    index: Index | None = None,
) -> tuple[Finding, ...]:
    """Return what is wrong with an album's pictures, kind by kind; those that are left out already are passed over.

    Each new or changed picture is decoded once.

    Args:
        index: the captions, where they were read already.

    Raises:
        ConfigError: the bucket settings contradict each other.
        DataError: a pictures.json cannot be read.
        Stopped: raised by `progress(phase, done, total)`; what was found out is remembered for the next time.
    """
    options = options or Options()
    remarks = Remarks()
    entries = [entry for entry in album.entries if not remarks.of(entry.picture).skip]
    if index is None:
        index = Index(album)
        index.read(progress)
    looked = _inspected(album, progress)
    found = [
        *_of_pixels(entries, looked, config, options, remarks),
        *_duplicates(album, entries, looked, options, remarks),
        *_of_captions(entries, index, config, options),
        *_balance(album, [each for each in entries if isinstance(looked[each.number], Inspected)], options, remarks),
    ]
    order = list(Kind)
    return tuple(sorted(found, key=lambda each: order.index(each.kind)))


def _inspected(album: Album, progress: Progress | None) -> dict[int, Inspected | str]:
    found: dict[int, Inspected | str] = {}
    for folder in album.folders:
        mine = album.entries[folder.first : folder.first + folder.count]
        names = {entry.number: str(_within(entry, folder)) for entry in mine}
        seen = inspect(folder.path, list(names.values()), progress, len(found), len(album.entries))
        found |= {number: seen[name] for number, name in names.items()}
    return found


def _within(entry: Entry, folder: AlbumFolder) -> Path:
    try:
        return entry.picture.relative_to(folder.path)
    except ValueError:
        return entry.picture


def _leave_out(*pictures: Path, words: str = LEAVE_OUT, of_all: str = "") -> Remedy:
    return Remedy(words, {picture: {"skip": True} for picture in pictures}, of_all=of_all)


def _of_pixels(
    entries: Sequence[Entry],
    looked: Mapping[int, Inspected | str],
    config: TrainingConfig,
    options: Options,
    remarks: Remarks,
) -> Iterator[Finding]:
    place = cache(Buckets.from_config(config).choose)
    for entry in entries:
        picture, seen = entry.picture, looked[entry.number]
        if isinstance(seen, str):
            yield Finding(Kind.BROKEN, (picture,), f"It cannot be read: {seen}.", (_leave_out(picture),))
            continue
        said = remarks.of(picture)
        size = said.crop[2:] if said.crop else seen.size
        placement = place(size)
        if placement.upscaled:
            words = f"{size[0]}x{size[1]} pixels are enlarged to {placement.resized[0]}x{placement.resized[1]}."
            yield Finding(Kind.SMALL, (picture,), words, (_leave_out(picture),))
        if seen.sharpness < options.blur_below:
            words = f"Nothing in it is sharp: {seen.sharpness:g}, where pictures have {options.blur_below:g} and more."
            yield Finding(Kind.BLURRED, (picture,), words, (_leave_out(picture), *_less_often(picture, said)))
        if seen.transparent and not said.mask:
            yield _transparent(picture, seen, said)


def _less_often(picture: Path, said: Remark) -> Iterator[Remedy]:
    if said.repeats != 1:
        yield Remedy("Show once an epoch", {picture: {"repeats": 1}})


def _transparent(picture: Path, seen: Inspected, said: Remark) -> Finding:
    remedies = [Remedy("Let its transparency count as mask", {picture: {"mask": ALPHA}})]
    if seen.opaque and seen.opaque[2:] != seen.size and not said.crop:
        remedies.append(Remedy("Crop to what is not transparent", {picture: {"crop": seen.opaque}}))
    share = max(1, round(100 * seen.transparent))
    words = f"{share} % of it is transparent, and is trained as white."
    return Finding(Kind.TRANSPARENT, (picture,), words, (*remedies, _leave_out(picture)))


def _duplicates(
    album: Album,
    entries: Sequence[Entry],
    looked: Mapping[int, Inspected | str],
    options: Options,
    remarks: Remarks,
) -> Iterator[Finding]:
    judged = [(entry, seen) for entry in entries if isinstance(seen := looked[entry.number], Inspected)]
    for group in groups([seen for _, seen in judged], options.duplicate_distance):
        members = [judged[place] for place in group]
        members.sort(key=lambda pair: (-pair[1].size[0] * pair[1].size[1], -pair[1].sharpness, pair[0].number))
        pictures = tuple(entry.picture for entry, _ in members)
        called = _names(pictures)
        names = ", ".join(called[:4]) + (" and more" if len(pictures) > 4 else "")
        often = {}
        for entry, _ in members:
            repeats = remarks.of(entry.picture).repeats or album.folders[entry.folder].repeats
            often[entry.picture] = {"repeats": max(1, round(repeats / len(pictures)))}
        rest = "the other" if len(pictures) == 2 else f"the other {len(pictures) - 1}"
        yield Finding(
            Kind.DUPLICATE,
            pictures,
            f"{len(pictures)} pictures show nearly the same: {names}.",
            (
                _leave_out(
                    *pictures[1:],
                    words=f"Keep {called[0]} and leave {rest} out",
                    of_all="Keep the best of each and leave the others out",
                ),
                Remedy("Show each fewer times", often),
            ),
        )


def _names(pictures: Sequence[Path]) -> list[str]:
    """Return what pictures are called, with their folders where names alone would not tell them apart."""
    alone = len({picture.name for picture in pictures}) == len(pictures)
    return [picture.name if alone else f"{picture.parent.name}/{picture.name}" for picture in pictures]


def _of_captions(entries: Sequence[Entry], index: Index, config: TrainingConfig, options: Options) -> Iterator[Finding]:
    for entry in entries:
        text = index.texts.get(entry.number)
        picture = (entry.picture,)
        if entry.number in index.refused:
            yield Finding(Kind.BROKEN, picture, index.refused[entry.number], (_leave_out(entry.picture),))
            continue
        if text is None or not text.strip():
            words = "It has no caption." if text is None else "Its caption is empty."
            yield Finding(Kind.UNCAPTIONED, picture, words, (_leave_out(entry.picture),))
            continue
        if encoding := index.encodings.get(entry.number):
            remedy = Remedy("Convert to UTF-8", operations=(Recode(),))
            yield Finding(Kind.NOT_UTF8, picture, f"Its caption reads as {encoding}.", (remedy,))
        trained = _trained(text, config)
        if options.limit and (tokens := max(map(options.limit.count, trained))) > options.limit.limit:
            words = f"Its caption has {tokens} tokens; the model reads {options.limit.limit} ({options.limit.setting})."
            yield Finding(Kind.TOO_LONG, picture, words, (_leave_out(entry.picture),))
        if options.trigger and not all(_has(line, options.trigger) for line in trained):
            remedy = Remedy(f"Put {options.trigger} first", operations=(TriggerWord(options.trigger),))
            yield Finding(Kind.NO_TRIGGER, picture, f"Its caption has no {options.trigger}.", (remedy,))


def _trained(text: str, config: TrainingConfig) -> list[str]:
    """Return what is trained of a caption: its first line, with wildcards any, and what settings put around each."""
    captions = config.captions
    lines = [stripped for line in body_of(text).split("\n") if (stripped := line.strip())]
    used = lines if captions.enable_wildcard else lines[:1]
    around = ((captions.caption_prefix, line, captions.caption_suffix) for line in used)
    return [" ".join(part for part in parts if part) for parts in around]


def _has(line: str, trigger: str) -> bool:
    """Say whether a line has a word as a tag or, in a sentence, as a word."""
    words = f" {' '.join(line.casefold().replace(',', ' ').split())} "
    return has_tag(line, trigger) or f" {' '.join(trigger.casefold().split())} " in words


def _balance(album: Album, entries: Sequence[Entry], options: Options, remarks: Remarks) -> Iterator[Finding]:
    """Yield each training folder that is shown many times as often as the least shown one.

    The remedy ends well within the bounds, since pictures of the other folders may be left out too.
    """
    samples: dict[int, int] = {}
    members: dict[int, list[Path]] = {}
    for entry in entries:
        folder = album.folders[entry.folder]
        if not folder.regularisation:
            repeats = remarks.of(entry.picture).repeats or folder.repeats
            samples[entry.folder] = samples.get(entry.folder, 0) + repeats
            members.setdefault(entry.folder, []).append(entry.picture)
    if len(samples) < 2:
        return
    least = min(samples, key=samples.__getitem__)
    for number, count in samples.items():
        if count <= options.balance * samples[least]:
            continue
        pictures = members[number]
        fewer = max(1, math.floor(math.sqrt(options.balance) * samples[least] / len(pictures)))
        words = (
            f"{album.folders[number].name} is shown {count:,} times an epoch, "
            f"{album.folders[least].name} {samples[least]:,} times."
        )
        remedies = []
        if fewer * len(pictures) < count:
            times = "once" if fewer == 1 else f"{fewer} times"
            amend = {picture: {"repeats": fewer} for picture in pictures}
            words_of_all = "Show their pictures fewer times"
            remedies.append(Remedy(f"Show each of its pictures {times} an epoch", amend, of_all=words_of_all))
        yield Finding(Kind.UNBALANCED, tuple(pictures), words, tuple(remedies))
