"""Paths as people write them, and files that are opened because someone named them.

One text is judged and opened: what `normalised` returns. Whatever a path names, only a regular file is opened, and no
more of it is read than its kind can have: a pipe, a device or a file without an end would hold the program for ever.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_PATH = 4000
"""Bytes of a path; no system opens longer ones."""

MOST_TEXT = 1_000_000
"""Bytes of a text that a person wrote: settings, prompts, a caption."""

MOST_RECORD = 64 << 20
"""Bytes of a table that a program wrote, such as the report on a folder of a hundred thousand pictures."""

MISSING = (FileNotFoundError, NotADirectoryError)
"""What is raised where a path leads to nothing."""

_KINDS = (
    (stat.S_ISFIFO, "it is a pipe and no file"),
    (stat.S_ISSOCK, "it is a socket and no file"),
    (stat.S_ISCHR, "it is a device and no file"),
    (stat.S_ISBLK, "it is a device and no file"),
)


class TooLarge(OSError):
    """A file has more bytes than anything of its kind."""


def normalised(text: str) -> str:
    """Return a path as the user meant it: without blanks and the quotes of "copy as path" around it, with ~ expanded.

    Raises:
        ValueError: the rest holds a control character, or is longer than any system opens.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    text = text.strip('"').strip()
    if any(ord(character) < ord(" ") for character in text):
        raise ValueError(
            "the path holds a control character. In TOML a backslash inside double quotes is an escape: "
            "write the path in single quotes, or with forward slashes"
        )
    if len(os.fsencode(text)) > LONGEST_PATH:
        raise ValueError(f"a path must not be longer than {LONGEST_PATH} bytes")
    return os.path.expanduser(text) if text.startswith("~") else text


def open_regular(path: str | Path, most: int | None = None) -> BinaryIO:
    """Open a file to read its bytes; what it is and how long it is are looked at before.

    Raises:
        TooLarge: it has more than `most` bytes.
        OSError: it is missing, may not be read, or is no regular file.
    """
    _refuse(path, os.stat(path), most)
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115  the caller closes it
    try:
        # What has taken its place since the look.
        _refuse(path, os.fstat(file.fileno()), most)
    except OSError:
        file.close()
        raise
    return file


def read_bytes(path: str | Path, most: int) -> bytes:
    """Return what is in a regular file of `most` bytes or less. Raises as `open_regular` does."""
    with open_regular(path, most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _too_large(path, most)
    return content


def read_text(path: str | Path, most: int) -> str:
    """Return the UTF-8 text, with or without a mark, of a regular file of `most` bytes or less.

    Raises:
        OSError: as `open_regular` does.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: str | Path, most: int = MOST_RECORD) -> Any:
    """Return the document of a JSON file.

    Raises:
        OSError: as `open_regular` does.
        ValueError: it is no JSON, too deep, or has a number without bounds.
    """
    try:
        return json.loads(read_text(path, most), parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is no number that can be used")
    return number


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for whoever has the other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse(path: str | Path, state: os.stat_result, most: int | None) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_kind, words in _KINDS:
        if is_kind(state.st_mode):
            raise OSError(errno.EINVAL, words, str(path))
    if most is not None and state.st_size > most:
        raise _too_large(path, most)


def _too_large(path: str | Path, most: int) -> TooLarge:
    return TooLarge(errno.EINVAL, f"it has more than {most:,} bytes", str(path))
