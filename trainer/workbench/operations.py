"""What can be done to captions, many at once: each operation makes a new text of an old one and knows no file.

Operations on tags work on each line by itself and leave the rest of the text as it stands: the order, the blanks after
commas, the ends of lines.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from trainer.ground.errors import DataError
from trainer.workbench.texts import SEPARATOR, folded, in_lines, tags_of, with_body

MOST_TEXT = 10_000
"""Characters of what is looked for, put in place of something, or added."""

BY_NAME, BY_COUNT = "name", "count"


class Operation(ABC):
    """One change of a caption's text. A new one is a class, and a line in OPERATIONS."""

    title: ClassVar[str]
    """What it is called."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What is done, for previews and the history."""

    @abstractmethod
    def apply(self, text: str) -> str:
        """Return the new text of a caption's file."""


def _require(value: str, what: str, *, line: bool = True) -> None:
    """Refuse a text that is empty, too long, or has several lines.

    Raises:
        DataError: it is.
    """
    if not value:
        raise DataError(f"{what} is empty.", "Write what it is to be.")
    _limit(value, what, line=line)


def _limit(value: str, what: str, *, line: bool = True) -> None:
    if len(value) > MOST_TEXT:
        raise DataError(f"{what} has {len(value):,} characters; {MOST_TEXT:,} are the most.")
    if line and ("\n" in value or "\r" in value):
        raise DataError(f"{what} has several lines.", "Write it in one.")


def _require_tags(tags: Sequence[str], what: str, separator: str) -> None:
    if not tags:
        raise DataError(f"{what}: none is given.", "Name at least one.")
    for tag in tags:
        _require(tag.strip(), what)
        if separator in tag:
            raise DataError(f"{what}: {tag!r} holds the sign {separator!r}, which parts tags.", "Give each by itself.")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


@dataclass(frozen=True, slots=True)
class FindReplace(Operation):
    """A text replaced wherever it stands; with `whole_words` only where no letter or digit touches it."""

    title = "Find and replace"
    find: str
    replace: str
    match_case: bool = True
    whole_words: bool = False

    def __post_init__(self) -> None:
        _require(self.find, "Find")
        _limit(self.replace, "Replace")

    @property
    def words(self) -> str:
        return f"{_short(self.find)} replaced by {_short(self.replace)}"

    def apply(self, text: str) -> str:
        pattern = re.escape(self.find)
        if self.whole_words:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        found = re.compile(pattern, 0 if self.match_case else re.IGNORECASE)
        return in_lines(text, lambda line: found.sub(lambda _: self.replace, line))


@dataclass(frozen=True, slots=True)
class Prefix(Operation):
    """A text put before each line, as it is written."""

    title = "Put in front"
    text: str

    def __post_init__(self) -> None:
        _require(self.text, "Prefix")

    @property
    def words(self) -> str:
        return f"{_short(self.text)} put in front"

    def apply(self, text: str) -> str:
        return in_lines(text, lambda line: self.text + line)


@dataclass(frozen=True, slots=True)
class Suffix(Operation):
    """A text put after each line, as it is written."""

    title = "Put at the end"
    text: str

    def __post_init__(self) -> None:
        _require(self.text, "Suffix")

    @property
    def words(self) -> str:
        return f"{_short(self.text)} put at the end"

    def apply(self, text: str) -> str:
        return in_lines(text, lambda line: line + self.text)


@dataclass(frozen=True, slots=True)
class TagOperation(Operation):
    """An operation on the parts of each line between separators, which keep the blanks around them."""

    def apply(self, text: str) -> str:
        return in_lines(text, self._line)

    def _line(self, line: str) -> str:
        before = line.split(self.parting)
        parts = self.change(before)
        if parts == before:
            return line
        if parts and before and parts[0] is not before[0]:
            parts = [parts[0].lstrip(), *parts[1:]]
        return self.parting.join(parts)

    @property
    @abstractmethod
    def parting(self) -> str:
        """What parts tags."""

    @abstractmethod
    def change(self, parts: list[str]) -> list[str]:
        """Return the new parts of a line."""


def _blank(parts: Sequence[str]) -> str:
    """Return what stands between a separator and the next tag in this line: a blank, unless no tag has one."""
    following = [part for part in parts[1:] if part.strip()]
    return "" if following and not any(part[:1].isspace() for part in following) else " "


def _with_first(parts: list[str], tags: Sequence[str]) -> list[str]:
    blank, rest = _blank(parts), [*parts]
    if not any(part.strip() for part in rest):
        rest = []
    elif rest:
        rest[0] = blank + rest[0].lstrip()
    return [tags[0], *(blank + tag for tag in tags[1:]), *rest]


def _with_last(parts: list[str], tags: Sequence[str]) -> list[str]:
    blank, rest = _blank(parts), [*parts]
    while rest and not rest[-1].strip():
        rest.pop()
    if not rest:
        return [tags[0], *(blank + tag for tag in tags[1:])]
    rest[-1] = rest[-1].rstrip()
    return [*rest, *(blank + tag for tag in tags)]


@dataclass(frozen=True, slots=True)
class TriggerWord(TagOperation):
    """A word as the first tag; where it is a tag already, that moves to the front."""

    title = "Trigger word first"
    word: str
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        _require_tags((self.word,), "Trigger word", self.separator)

    @property
    def words(self) -> str:
        return f"trigger word {_short(self.word)} put first"

    @property
    def parting(self) -> str:
        return self.separator

    def change(self, parts: list[str]) -> list[str]:
        wanted = folded(self.word)
        if parts and folded(parts[0]) == wanted:
            return parts
        rest = [part for part in parts if folded(part) != wanted]
        return _with_first(rest, (self.word.strip(),))


@dataclass(frozen=True, slots=True)
class RemoveTags(TagOperation):
    """Tags taken out wherever they stand, in capitals or not."""

    title = "Remove tags"
    tags: tuple[str, ...]
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        _require_tags(self.tags, "Tags to remove", self.separator)

    @property
    def words(self) -> str:
        return f"{_listed(self.tags)} removed"

    @property
    def parting(self) -> str:
        return self.separator

    def change(self, parts: list[str]) -> list[str]:
        unwanted = {folded(tag) for tag in self.tags}
        return [part for part in parts if folded(part) not in unwanted]


@dataclass(frozen=True, slots=True)
class AddTags(TagOperation):
    """Tags added at the end, or `first`; those that a line has already are not added again."""

    title = "Add tags"
    tags: tuple[str, ...]
    first: bool = False
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        _require_tags(self.tags, "Tags to add", self.separator)

    @property
    def words(self) -> str:
        return f"{_listed(self.tags)} added"

    @property
    def parting(self) -> str:
        return self.separator

    def change(self, parts: list[str]) -> list[str]:
        there = {folded(part) for part in parts}
        new = [tag.strip() for tag in dict.fromkeys(self.tags) if folded(tag) not in there]
        if not new:
            return parts
        return _with_first(parts, new) if self.first else _with_last(parts, new)


@dataclass(frozen=True, slots=True)
class RenameTag(TagOperation):
    """A tag written otherwise, not parts of others; a line keeps one of two tags that become equal."""

    title = "Rename a tag"
    old: str
    new: str
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        _require_tags((self.old,), "Tag", self.separator)
        _require_tags((self.new,), "New name", self.separator)

    @property
    def words(self) -> str:
        return f"{_short(self.old)} renamed to {_short(self.new)}"

    @property
    def parting(self) -> str:
        return self.separator

    def change(self, parts: list[str]) -> list[str]:
        old, new = folded(self.old), folded(self.new)
        found: list[str] = []
        there = old != new and any(folded(part) == new for part in parts)
        for part in parts:
            if folded(part) != old:
                found.append(part)
            elif not there:
                found.append(part.replace(part.strip(), self.new.strip()))
                there = old != new
        return found


@dataclass(frozen=True, slots=True)
class SortTags(TagOperation):
    """Tags in the order of their names, or the most frequent in `counts` first; the first `keep` stay in front."""

    title = "Sort tags"
    by: str = BY_NAME
    counts: Mapping[str, int] = field(default_factory=dict)
    keep: int = 0
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        if self.by not in (BY_NAME, BY_COUNT):
            raise DataError(f"Tags cannot be sorted by {self.by!r}.", f"Choose {BY_NAME} or {BY_COUNT}.")
        if self.keep < 0:
            raise DataError(f"The number of tags that stay in front is {self.keep}.", "Give 0 or more.")

    @property
    def words(self) -> str:
        return f"tags sorted by {self.by}"

    @property
    def parting(self) -> str:
        return self.separator

    def change(self, parts: list[str]) -> list[str]:
        tags = [part.strip() for part in parts if part.strip()]
        counts: dict[str, int] = {}
        if self.by == BY_COUNT:
            for tag, count in self.counts.items():
                counts[folded(tag)] = counts.get(folded(tag), 0) + count
        rest = sorted(tags[self.keep :], key=lambda tag: (-counts.get(folded(tag), 0), folded(tag)))
        ordered = [*tags[: self.keep], *rest]
        if ordered == tags:
            return parts
        blank = _blank(parts)
        return [*ordered[:1], *(blank + tag for tag in ordered[1:])]


@dataclass(frozen=True, slots=True)
class Dedupe(TagOperation):
    """Of tags that are the same the first is kept, and nothing between two separators taken out."""

    title = "Remove doubles"
    separator: str = SEPARATOR

    @property
    def words(self) -> str:
        return "doubles removed"

    @property
    def parting(self) -> str:
        return self.separator

    def change(self, parts: list[str]) -> list[str]:
        seen: set[str] = set()
        found = []
        for part in parts:
            tag = folded(part)
            if tag and tag not in seen:
                seen.add(tag)
                found.append(part)
        return found


@dataclass(frozen=True, slots=True)
class SetText(Operation):
    """All of the text, as it was written by hand or by a captioner."""

    title = "Write"
    text: str

    @property
    def words(self) -> str:
        return "written anew"

    def apply(self, text: str) -> str:
        return with_body(text, self.text)


@dataclass(frozen=True, slots=True)
class Recode(Operation):
    """The same text as UTF-8."""

    title = "Convert to UTF-8"

    @property
    def words(self) -> str:
        return "converted to UTF-8"

    def apply(self, text: str) -> str:
        return text


OPERATIONS: tuple[type[Operation], ...] = (
    FindReplace,
    Prefix,
    Suffix,
    TriggerWord,
    AddTags,
    RemoveTags,
    RenameTag,
    SortTags,
    Dedupe,
    Recode,
    SetText,
)


def _listed(tags: Sequence[str]) -> str:
    shown = ", ".join(_short(tag) for tag in tags[:3])
    return f"{shown} and {len(tags) - 3} more" if len(tags) > 3 else shown


def has_tag(text: str, tag: str, separator: str = SEPARATOR) -> bool:
    """Say whether a caption has a tag, in capitals or not."""
    return folded(tag) in {folded(each) for each in tags_of(text, separator)}
