"""Captions as they stand in their files: text, encoding, line ends; and the tags in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.ground.errors import DataError
from trainer.ground.paths import MISSING, TooLarge, read_bytes
from trainer.pictures.caption_files import LARGEST_CAPTION
from trainer.pictures.encodings import fitting_encoding, utf8_text

SEPARATOR = ","

_LINE_ENDS = re.compile("(\r\n|\n|\r)")


@dataclass(frozen=True, slots=True)
class CaptionText:
    """What a caption's file holds: its whole text, "" where no file is `there`; its encoding; sha256 of its bytes."""

    text: str
    encoding: str
    digest: str
    there: bool


def read_caption_text(path: Path) -> CaptionText:
    """Return what is in a caption's file, or in one that is not there yet.

    What is not UTF-8 is read in the encoding that it most likely has.

    Raises:
        DataError: it cannot be read, or is no caption for its size.
    """
    try:
        content = read_bytes(path, LARGEST_CAPTION)
    except MISSING:
        return CaptionText("", "utf-8", "", there=False)
    except TooLarge as error:
        raise DataError(f"{path} has more than {LARGEST_CAPTION:,} bytes, which captions never have.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", "See its permissions.") from error
    return _of_bytes(content)


def _of_bytes(content: bytes) -> CaptionText:
    digest = digest_of(content)
    text = utf8_text(content)
    if text is not None:
        return CaptionText(text, "utf-8", digest, there=True)
    encoding = fitting_encoding(content)
    return CaptionText(content.decode(encoding, "replace").removeprefix("\ufeff"), encoding, digest, there=True)


def digest_of(content: bytes) -> str:
    """Return the hex sha256 of a caption's bytes."""
    return hashlib.sha256(content).hexdigest()


def in_lines(text: str, change: Callable[[str], str]) -> str:
    """Return a text with each line changed that is not blank, or its only one; line ends stay as they are."""
    parts = _LINE_ENDS.split(text)
    lines = range(0, len(parts), 2)
    filled = [index for index in lines if parts[index].strip()] or [0]
    for index in filled:
        parts[index] = change(parts[index])
    return "".join(parts)


def with_body(text: str, body: str) -> str:
    """Return a text with all of it replaced but for the kind of its line ends and the one at its end."""
    ends = _LINE_ENDS.findall(text)
    end = ends[0] if ends else "\n"
    closing = end if ends and text.endswith(end) else ""
    lines = _LINE_ENDS.split(body.rstrip("\r\n"))[::2]
    return end.join(lines) + closing


def body_of(text: str) -> str:
    """Return a text as it is edited: its lines, without the end of the last one."""
    return "\n".join(_LINE_ENDS.split(text.rstrip("\r\n"))[::2])


def tags_of(text: str, separator: str = SEPARATOR) -> list[str]:
    """Return the tags of a caption, line after line, as they are written but for blanks around them."""
    lines = _LINE_ENDS.split(text)[::2]
    return [tag for line in lines for part in line.split(separator) if (tag := part.strip())]


def folded(tag: str) -> str:
    """Return what is equal for tags that are the same: blanks and capitals do not tell them apart."""
    return " ".join(tag.split()).casefold()
