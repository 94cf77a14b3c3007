"""What a request says, whoever made it up: values of the kinds that are wanted, and operations made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kohya_gui.workbench.bench import Wanted
from trainer.ground.errors import DataError
from trainer.pictures.remarks import Box, Remark
from trainer.workbench import operations
from trainer.workbench.operations import Operation

Said = Mapping[str, object]

LONGEST = 100_000
"""Letters of a text."""


def text(said: Said, name: str, default: str = "") -> str:
    """Return a text.

    Raises:
        DataError: it is none, or too long.
    """
    value = said.get(name, default)
    if not isinstance(value, str) or len(value) > LONGEST:
        raise DataError(f"{name}: this is no text of at most {LONGEST:,} letters.", "Reload the page.")
    return value


def whole(said: Said, name: str) -> int | None:
    """Return a whole number, or None where nothing is said. Raises DataError as `text` does."""
    value = said.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{name}: {value!r} is no whole number.", "Write it in digits, such as 3.")
    return value


def share(said: Said, name: str, default: float) -> float:
    """Return a number from 0 to 1. Raises DataError as `text` does."""
    value = said.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{name}: {value!r} is no number from 0 to 1.", "Write one such as 0.35.")
    return float(value)


def yes(said: Said, name: str) -> bool:
    """Return whether something is said to be so."""
    return said.get(name) is True


def texts(said: Said, name: str) -> tuple[str, ...]:
    """Return a list of texts; commas and line ends divide a single text."""
    value = said.get(name, "")
    if isinstance(value, str):
        value = value.replace("\n", ",").split(",")
    if not isinstance(value, Sequence) or not all(isinstance(each, str) and len(each) <= LONGEST for each in value):
        raise DataError(f"{name}: this is no list of texts.", "Reload the page.")
    return tuple(stripped for each in value if (stripped := each.strip()))


def wanted(said: Said) -> Wanted:
    """Return the filter of a request. Raises DataError as `text` does."""
    return Wanted(
        find=text(said, "find").strip(),
        folder=whole(said, "folder"),
        tags=texts(said, "tags"),
        problem=text(said, "problem"),
        bucket=text(said, "bucket"),
        below=whole(said, "below"),
        sort=text(said, "sort"),
    )


def remark(said: Said, before: Remark) -> Remark:
    """Return what is to be remarked of a picture: what a request says, and for the rest what was remarked before."""
    repeats = whole(said, "repeats") if "repeats" in said else before.repeats
    crop = _box(said.get("crop")) if "crop" in said else before.crop
    skip = yes(said, "skip") if "skip" in said else before.skip
    mask = text(said, "mask") if "mask" in said else before.mask
    return Remark(skip=skip, repeats=repeats, crop=crop, mask=mask)


def _box(value: object) -> Box | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 4 and all(type(each) is int for each in value):
        left, top, width, height = (int(each) for each in value)
        if min(left, top) >= 0 and min(width, height) > 0:
            return left, top, width, height
    raise DataError(f"crop: {value!r} is no part of a picture.", "Draw it anew.")


OPERATIONS: Mapping[str, Callable[[Said, Mapping[str, int]], Operation]] = {
    "replace": lambda said, counts: operations.FindReplace(
        text(said, "find"), text(said, "with"), match_case=yes(said, "match_case"), whole_words=yes(said, "whole")
    ),
    "rename": lambda said, counts: operations.RenameTag(text(said, "find").strip(), text(said, "with").strip()),
    "prefix": lambda said, counts: operations.Prefix(text(said, "text")),
    "suffix": lambda said, counts: operations.Suffix(text(said, "text")),
    "trigger": lambda said, counts: operations.TriggerWord(text(said, "text").strip()),
    "add": lambda said, counts: operations.AddTags(texts(said, "text"), first=yes(said, "first")),
    "remove": lambda said, counts: operations.RemoveTags(texts(said, "text")),
    "sort": lambda said, counts: operations.SortTags("count" if said.get("by") == "count" else "name", counts),
    "dedupe": lambda said, counts: operations.Dedupe(),
    "set": lambda said, counts: operations.SetText(text(said, "text")),
    "recode": lambda said, counts: operations.Recode(),
}
"""What can be done to captions, by the name that the page has for it; `counts` are the tags of all captions."""


def operation(said: Said, counts: Mapping[str, int]) -> Operation:
    """Return what is to be done to captions.

    Raises:
        DataError: there is nothing of this name, or it cannot be done so.
    """
    kind = OPERATIONS.get(text(said, "kind"))
    if kind is None:
        raise DataError(
            f"kind: {said.get('kind')!r} is nothing that can be done to captions.", "Choose it in the list."
        )
    return kind(said, counts)
