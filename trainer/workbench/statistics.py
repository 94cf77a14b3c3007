"""Tags in numbers: how many pictures have each, and which are meant by their first letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from trainer.workbench.texts import SEPARATOR, folded, tags_of


def tag_counts(texts: Iterable[str], separator: str = SEPARATOR) -> dict[str, int]:
    """Return {tag: number of captions that have it}, the most frequent first, then by name.

    Tags that differ in capitals or blanks alone are one, written as most have it.
    """
    spellings: dict[str, Counter[str]] = {}
    for text in texts:
        seen: dict[str, str] = {}
        for tag in tags_of(text, separator):
            seen.setdefault(folded(tag), tag)
        for same, tag in seen.items():
            spellings.setdefault(same, Counter())[tag] += 1
    counts = {max(each, key=lambda tag: (each[tag], tag)): each.total() for each in spellings.values()}
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], folded(pair[0]))))


def complete(counts: Mapping[str, int], start: str, most: int = 10) -> list[tuple[str, int]]:
    """Return the (tag, count) that letters may mean: first tags that begin so, then those of which a word does, then
    those that hold them; within each the most frequent first.
    """
    wanted = folded(start)
    if not wanted:
        return list(counts.items())[:most]
    ranked = [(rank, tag, count) for tag, count in counts.items() if (rank := _rank(folded(tag), wanted)) is not None]
    ranked.sort(key=lambda each: (each[0], -each[2], folded(each[1])))
    return [(tag, count) for _, tag, count in ranked[:most]]


def _rank(tag: str, wanted: str) -> int | None:
    if tag.startswith(wanted):
        return 0
    if f" {wanted}" in tag.replace("_", " "):
        return 1
    return 2 if wanted in tag else None
