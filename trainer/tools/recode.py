"""Make captions UTF-8, which are in another encoding."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.config.values import parse_extension
from trainer.ground.errors import ConfigError, DataError, Problem
from trainer.ground.files import replacing
from trainer.ground.paths import TooLarge, read_bytes
from trainer.pictures.caption_files import LARGEST_CAPTION
from trainer.pictures.encodings import as_utf8, fitting_encoding, utf8_text
from trainer.pictures.listing import deeper, listing
from trainer.settings.problems import shown
from trainer.settings.section import Show, argument
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool


def parse_encoding(value: object) -> object:
    """Return an encoding's name. Raises ValueError where Python knows none of this name."""
    try:
        return codecs.lookup(value).name if isinstance(value, str) and value else value
    except LookupError:
        raise ValueError("it must be the name of an encoding, such as cp1252 or shift_jis") from None


class RecodeArguments(Arguments):
    """Which captions."""

    folder: str = argument(..., Show("Folder", widget="folder"))
    """A folder of pictures and captions; its subfolders are looked through too."""

    caption_extension: str = argument(".txt", Show("Caption file ending"), parse=parse_extension)
    """The ending of caption files."""

    encoding: str = argument("", Show("Encoding"), parse=parse_encoding)
    """The encoding that the captions have; left out, it is told from each caption's own bytes."""

    dry_run: bool = argument(False, Show("Only say it"))
    """Say what would be done, and change nothing."""


class Recode(Tool[RecodeArguments]):
    """Writes captions of pictures anew that are not UTF-8, each in one step, and says which and from what."""

    name = "recode"
    title = "Recode captions"
    on_page = True
    help = "write captions that have another encoding anew as UTF-8"
    arguments = RecodeArguments
    positional = {"folder": "FOLDER"}

    def run(self, arguments: RecodeArguments, desk: Desk) -> int:
        root = Path(os.path.realpath(arguments.folder))
        if not os.path.isdir(root):
            raise ConfigError(
                [Problem("folder", f"{shown(arguments.folder)} is no folder; name one.", arguments.folder)]
            )
        captions = list(captions_in(root, arguments.caption_extension))
        progress, changed = desk.progress(), 0
        for done, path in enumerate(captions):
            progress("reading captions", done, len(captions))
            if encoding := recode(path, arguments.encoding, write=not arguments.dry_run):
                desk.say(f"{path.relative_to(root).as_posix()}: {encoding}")
                changed += 1
        verb = "would be made" if arguments.dry_run else "made"
        desk.say(f"{changed} of {len(captions)} captions {verb} UTF-8.")
        return COMPLETED


def captions_in(root: Path, extension: str) -> Iterator[Path]:
    """Yield the caption files with this ending that belong to pictures in `root` and below."""
    first = (root, *(Path(os.path.realpath(root / name)) for name in listing(root).folders))
    for found in deeper(first, ()):
        for name in found.pictures:
            caption = f"{os.path.splitext(name)[0]}{extension}"
            if match := found.names.get(caption) or found.names.get(caption.lower()):
                yield found.path / match


def recode(path: Path, encoding: str, *, write: bool) -> str:
    """Make a caption UTF-8 and return the encoding that it had, "" where it is UTF-8 already.

    Raises:
        DataError: it cannot be read or written, is no caption for its size, or is not in the encoding that was named.
    """
    try:
        content = read_bytes(path, LARGEST_CAPTION)
        if utf8_text(content) is not None:
            return ""
        had = encoding or fitting_encoding(content)
        text = as_utf8(content, had)
        if write:
            with replacing(path) as temporary:
                temporary.write_bytes(text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not text in {error.encoding}: byte {error.start} cannot be read.",
            "Leave the encoding out, and each caption's own bytes say it.",
        ) from error
    except TooLarge as error:
        raise DataError(f"{path} has more than {LARGEST_CAPTION:,} bytes, which captions never have.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be made UTF-8: {error.strerror or error}.", "See its permissions.") from error
    return had
