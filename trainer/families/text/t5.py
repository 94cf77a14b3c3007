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

from trainer.families.text.vocabulary import Vocabulary
from trainer.ground.errors import ModelError

PAD, END, UNKNOWN = 0, 1, 2
VOCABULARY = Vocabulary("T5", "t5_tokenizer_path", ("tokenizer.json", "spiece.model"), "google/t5-v1_1-xxl")

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


@lru_cache(maxsize=4)
def load_tokenizer(path: Path) -> Tokenizer:
    """Read T5's vocabulary from a `tokenizer.json` or a `spiece.model`.

    Raises:
        ModelError: the file is none, or its vocabulary is not T5's.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too long to be one")
        content = path.read_bytes()
        made = Tokenizer.from_buffer(content) if content.lstrip()[:1] == b"{" else _of_pieces(content)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"T5's vocabulary in {path} cannot be read ({str(error)[:200]}).", VOCABULARY.remedy
        ) from error
    made.no_padding()
    made.no_truncation()
    if (made.token_to_id("<pad>"), made.token_to_id("</s>"), made.token_to_id("<unk>")) != (PAD, END, UNKNOWN):
        raise ModelError(f"The vocabulary in {path} is not T5's: its first tokens are others.", VOCABULARY.remedy)
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
