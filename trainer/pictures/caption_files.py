"""Reads the caption file of a picture: which one it is, its lines, and what there is to say of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.ground.errors import DataError
from trainer.ground.paths import TooLarge, read_bytes
from trainer.pictures.encodings import fitting_encoding, utf8_text
from trainer.pictures.findings import Findings, ForeignCaption
from trainer.pictures.sources import Source

LARGEST_CAPTION = 1_000_000
"""Bytes of a caption file."""

_FALLBACK_EXTENSION = {".caption": ".txt"}
_FACE = re.compile(r"(.+)_\d+_\d+_\d+_\d+")
"""A name with the place and size of a face, as sd-scripts' tool for cutting faces writes them."""


def read_caption(source: Source, name: str, findings: Findings) -> str | None:
    """Return the caption's lines, stripped and without blank ones, or None where there is no caption file.

    Raises:
        DataError: the file is not UTF-8 or cannot be read.
    """
    found, usual = caption_file(source, name)
    if found is None:
        findings.missing.setdefault(_instead(source), []).append(name)
        return None
    if not usual:
        findings.other_extension.append(found)
    lines = _lines(os.path.join(source.path, found), findings)
    if not lines:
        findings.empty.append(found)
    elif len(lines) > 1 and not source.wildcards:
        findings.longer.append(found)
    return "\n".join(lines)


def _instead(source: Source) -> str:
    """Return in words what stands for a caption that is not there."""
    if not source.class_tokens:
        return "trained without a text"
    return "class_tokens are used" if source.place else "the folder's name is used"


def caption_file(source: Source, name: str) -> tuple[str | None, bool]:
    """Return the name of the file with a picture's caption, None where there is none, and whether its ending is usual.

    The usual ending is the one that the settings say. A picture cut out by its face may share the whole one's caption.
    """
    usual = usual_extension(source)
    stem = os.path.splitext(name)[0]
    face = _FACE.fullmatch(stem)
    for candidate in (usual, _FALLBACK_EXTENSION.get(usual, ".caption")):
        for of in (stem, face[1]) if face else (stem,):
            if found := source.names.get(of + candidate) or source.names.get((of + candidate).lower()):
                return found, candidate == usual
    return None, True


def usual_extension(source: Source) -> str:
    """Return the ending of caption files that the settings say, with its dot."""
    return source.extension if source.extension.startswith(".") else f".{source.extension}"


def _lines(path: str, findings: Findings) -> list[str]:
    """Return the lines of a caption file; none of one that is not UTF-8, which is refused with all others of its kind.

    Raises:
        DataError: the file cannot be read, or is no caption for its size.
    """
    try:
        content = read_bytes(path, LARGEST_CAPTION)
    except TooLarge as error:
        raise DataError(
            f"caption_extension: {path} has more than {LARGEST_CAPTION:,} bytes, which captions never have.",
            remedy="Remove it, or move it elsewhere.",
        ) from error
    except OSError as error:
        raise DataError(
            f"caption_extension: the caption {path} cannot be read: {error.strerror}.",
            remedy="Check its permissions or remove it.",
        ) from error
    text = utf8_text(content)
    if text is None:
        findings.foreign.append(ForeignCaption(Path(path), fitting_encoding(content)))
        return []
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return [stripped for line in text.split("\n") if (stripped := line.strip())]
