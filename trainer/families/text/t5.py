"""T5's tokens: its vocabulary from wherever it lies, and texts in one length (Raffel et al. 2020).

Two kinds of file hold the vocabulary: `tokenizer.json` of the library tokenizers, and `spiece.model` of SentencePiece,
a message of Protocol Buffers (Kudo & Richardson 2018), of which the pieces and the rules for characters are taken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram
from torch import Tensor

from trainer.families.reading.hub import descriptions
from trainer.ground.errors import ModelError

PAD, END, UNKNOWN = 0, 1, 2
NAMES = ("tokenizer.json", "spiece.model")
"""What the file is called; the first that is there is read."""
HUB_NAME = "google/t5-v1_1-xxl"
"""Where its publisher has it."""

_MOST_BYTES = 1 << 26
_PIECES, _NORMALIZER, _CHARACTERS = 1, 3, 2
"""Numbers of the message's fields: the pieces, the rules for characters, and of those the compiled table."""


@dataclass(frozen=True, slots=True)
class T5Tokenizer:
    """Turns a text into token ids, an end behind them, filled up to `length`. Picklable, safe in threads and workers.

    `masked`: it says which tokens are the text's.
    """

    tokenizer: Tokenizer
    length: int
    masked: bool

    def __call__(self, text: str) -> dict[str, Tensor]:
        """Return {"ids": long [length]}, and {"mask": bool [length]} where it is asked for; the rest is cut off."""
        taken = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.length - 1]
        ids = torch.full((self.length,), PAD)
        ids[: len(taken) + 1] = torch.tensor([*taken, END])
        return {"ids": ids, "mask": torch.arange(self.length) <= len(taken)} if self.masked else {"ids": ids}


def find_tokenizer(wanted: str, *beside: Path) -> Path:
    """Return the file with T5's vocabulary.

    Args:
        wanted: a file, a folder or a name on the hub; "" for the first of the folders in `beside` that has one, else
            the cache of the hub, or the hub itself, which is asked for a megabyte.

    Raises:
        ModelError: there is none.
    """
    if wanted and Path(wanted).is_file():
        return Path(wanted)
    folders = [Path(wanted)] if wanted and Path(wanted).is_dir() else [] if wanted else [*beside]
    for folder in folders:
        if found := _in(folder):
            return found
    if wanted and folders:
        raise ModelError(f"t5_tokenizer_path: {wanted} has no {' and no '.join(NAMES)}.", "Choose another folder.")
    try:
        found = _in(descriptions(wanted or HUB_NAME))
    except ModelError as error:
        raise ModelError(
            f"T5's vocabulary is neither beside the model nor to be had from {wanted or HUB_NAME}: {error.message}",
            "Set t5_tokenizer_path to a tokenizer.json or spiece.model of T5, as any program that uses T5 XXL has it.",
        ) from error
    if found is None:
        raise ModelError(
            f"t5_tokenizer_path: {wanted or HUB_NAME} has no {' and no '.join(NAMES)}.",
            "Set it to a tokenizer.json or spiece.model of T5.",
        )
    return found


def _in(folder: Path) -> Path | None:
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


@lru_cache(maxsize=4)
def load_tokenizer(path: Path) -> Tokenizer:
    """Read T5's vocabulary from a `tokenizer.json` or a `spiece.model`.

    Raises:
        ModelError: the file is none, or its vocabulary is not T5's.
    """
    remedy = "Choose the tokenizer.json or spiece.model of T5, or leave t5_tokenizer_path empty."
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too long to be one")
        content = path.read_bytes()
        made = Tokenizer.from_buffer(content) if content.lstrip()[:1] == b"{" else _of_pieces(content)
    except (OSError, ValueError) as error:
        raise ModelError(f"T5's vocabulary in {path} cannot be read ({str(error)[:200]}).", remedy) from error
    made.no_padding()
    made.no_truncation()
    if (made.token_to_id("<pad>"), made.token_to_id("</s>"), made.token_to_id("<unk>")) != (PAD, END, UNKNOWN):
        raise ModelError(f"The vocabulary in {path} is not T5's: its first tokens are others.", remedy)
    return made


def _of_pieces(content: bytes) -> Tokenizer:
    """Make a tokenizer of a SentencePiece model with unigrams.

    Raises:
        ValueError: it is none.
    """
    pieces, table = [], b""
    for number, value in _fields(content):
        if number == _PIECES and isinstance(value, bytes):
            fields = dict(_fields(value))
            name, score = fields.get(1), fields.get(2, 0.0)
            if not isinstance(name, bytes) or isinstance(score, bytes):
                raise ValueError("a piece of it is none")
            pieces.append((name.decode("utf-8"), score))
        elif number == _NORMALIZER and isinstance(value, bytes):
            found = dict(_fields(value)).get(_CHARACTERS, b"")
            table = found if isinstance(found, bytes) else b""
    if len(pieces) <= UNKNOWN:
        raise ValueError("it has no pieces")
    if table and (len(table) < 4 or not 0 < struct.unpack_from("<I", table)[0] <= len(table) - 4):
        raise ValueError("its rules for characters are damaged")
    made = Tokenizer(Unigram(pieces, unk_id=UNKNOWN, byte_fallback=False))
    if table:
        made.normalizer = normalizers.Precompiled(table)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    return made


def _fields(message: bytes) -> Iterator[tuple[int, bytes | float]]:
    """Yield number and value of the fields of a message of Protocol Buffers: texts as bytes, numbers as such.

    Raises:
        ValueError: it is cut short, or no such message.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, float(value)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            if place + size > len(message):
                raise ValueError("it is cut short")
            yield number, struct.unpack_from("<d" if kind == 1 else "<f", message, place)[0]
            place += size
        elif kind == 2:
            length, place = _varint(message, place)
            if place + length > len(message):
                raise ValueError("it is cut short")
            yield number, message[place : place + length]
            place += length
        else:
            raise ValueError("it is no vocabulary of SentencePiece")


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 64:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("it is cut short")
