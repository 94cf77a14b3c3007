"""Which encoding a caption has that is not UTF-8, told from its bytes, and its rewriting.

A guess from a few words is no proof, so it is offered and never used unasked. Each candidate is judged by how much of
what it makes of the bytes is what people write in it: the common letters of its script, in the places where they stand.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks; the longer ones first, since one begins with another."""

_LONE_HIGH_BYTE = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
_HIGH_BYTE = re.compile(rb"[\x80-\xff]")
_WESTERN = re.compile("[À-ÖØ-öø-ÿŒœŠšŽžŸ‘’“”–—…«»€°©®]")
_CYRILLIC_WORD = re.compile(r"\b[А-ЯЁ]?[а-яё]+\b|\b[А-ЯЁ]+\b")


def _share(text: str, fits: Callable[[str], bool]) -> float:
    """Return the share of the characters beyond ASCII that fit."""
    beyond = [character for character in text if character > "\x7f"]
    return sum(map(fits, beyond)) / len(beyond) if beyond else 0.0


def _japanese(text: str) -> float:
    """Kana, and characters whose first byte is that of the common half of JIS X 0208."""
    return _share(text, lambda each: "\u3041" <= each <= "\u30ff" or _first_byte(each, "cp932", 0x81, 0x97))


def _korean(text: str) -> float:
    return _share(text, lambda each: "\uac00" <= each <= "\ud7a3" and _first_byte(each, "cp949", 0xB0, 0xC8))


def _chinese(text: str) -> float:
    """Characters of the first level of GB 2312, which are 99 % of any text, and its punctuation."""
    return _share(text, lambda each: _first_byte(each, "gb18030", 0xB0, 0xD7) or each in "，。、；：？！“”（）《》")


def _cyrillic(text: str) -> float:
    """Letters in words that are small but for their first, or all large."""
    within = {index for word in _CYRILLIC_WORD.finditer(text) for index in range(*word.span())}
    beyond = [index for index, character in enumerate(text) if character > "\x7f"]
    return sum(index in within for index in beyond) / len(beyond) if beyond else 0.0


def _western(text: str) -> float:
    return _share(text, lambda each: _WESTERN.fullmatch(each) is not None)


def _first_byte(character: str, encoding: str, low: int, high: int) -> bool:
    try:
        return low <= character.encode(encoding)[0] <= high
    except UnicodeEncodeError:
        return False


_CANDIDATES: Mapping[str, Callable[[str], float]] = {
    "cp932": _japanese,
    "cp949": _korean,
    "gb18030": _chinese,
    "cp1251": _cyrillic,
    "cp1252": _western,
}
"""Windows' encodings in Japan, Korea, China, Eastern and Western Europe; of equally good ones the first is taken."""


def utf8_text(content: bytes) -> str | None:
    """Return the text of UTF-8 bytes without a byte-order mark, or None where they are something else.

    UTF-16 of Latin letters is valid UTF-8 too, of letters with zero characters between them.
    """
    try:
        return None if _has_many_zeros(content) else content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _has_many_zeros(content: bytes) -> bool:
    return content.count(0) * 4 > len(content)


def fitting_encoding(content: bytes) -> str:
    """Return the name of the encoding that bytes which are not UTF-8 most likely have, as Python knows it."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding
    if _has_many_zeros(content):
        return "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    scores = {encoding: _CANDIDATES[encoding](text) for encoding, text in _decoded(content)}
    # Accented letters stand alone among plain ones; the letters of other scripts stand together.
    if "cp1252" in scores and len(_LONE_HIGH_BYTE.findall(content)) * 2 > len(_HIGH_BYTE.findall(content)):
        scores["cp1252"] *= 2
    return max(scores, key=scores.__getitem__, default="latin-1")


def _decoded(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the encodings that can read the bytes, and what they read."""
    for encoding in _CANDIDATES:
        try:
            yield encoding, content.decode(encoding)
        except UnicodeDecodeError:
            continue


def as_utf8(content: bytes, encoding: str) -> bytes:
    """Return the text of `content` as UTF-8 without a byte-order mark.

    Raises:
        UnicodeDecodeError: the bytes are not of this encoding.
    """
    return content.decode(encoding).removeprefix("\ufeff").encode("utf-8")
