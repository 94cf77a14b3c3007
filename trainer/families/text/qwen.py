"""Qwen's tokens: its vocabulary from wherever it lies, and texts in one length (Yang et al. 2025, "Qwen3")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2Tokenizer

from trainer.families.reading.configs import read_json
from trainer.families.text.vocabulary import Vocabulary
from trainer.ground.errors import ModelError

PADDING = "<|endoftext|>"
"""The token that fills up a text."""

_WHOLE, _WORDS, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
"""What the file is called, or the two that lie beside one another."""
_OF_CLIP = b'"a</w>"'
"""A word of CLIP's vocabulary, which marks the ends of words."""
_MOST_BYTES = 1 << 26


def _is_qwens(path: Path) -> bool:
    """Say whether a file may be Qwen's vocabulary: those of CLIP and T5 often lie in the same folders."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return False
    words = path.read_bytes()
    marked = PADDING.encode() in words if path.name == _WHOLE else (path.parent / _MERGES).is_file()
    return marked and _OF_CLIP not in words


VOCABULARY = Vocabulary("Qwen3", "qwen3_tokenizer_path", (_WHOLE, _WORDS), "Qwen/Qwen3-0.6B-Base", _is_qwens)


@dataclass(frozen=True, slots=True)
class QwenTokenizer:
    """Turns a text into token ids, filled up to `length`. Picklable, without state, safe in threads and workers."""

    tokenizer: Tokenizer
    length: int
    pad: int

    def __call__(self, text: str) -> dict[str, Tensor]:
        """Return {"ids": long [length], "mask": bool [length], the text's}; what does not fit is cut off."""
        taken = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.length]
        ids = torch.full((self.length,), self.pad)
        ids[: len(taken)] = torch.tensor(taken, dtype=torch.long)
        return {"ids": ids, "mask": torch.arange(self.length) < len(taken)}


@lru_cache(maxsize=2)
def load_tokenizer(path: Path, rows: int) -> QwenTokenizer:
    """Read Qwen's vocabulary from a `tokenizer.json`, or a `vocab.json` with its `merges.txt`; of texts in no length.

    Args:
        rows: how many tokens the text encoder knows.

    Raises:
        ModelError: the file is none, or its vocabulary does not belong to such a text encoder.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too long to be one")
        made = _of_merges(path) if path.name == _WORDS else Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Qwen's vocabulary in {path} cannot be read ({str(error)[:200]}).", VOCABULARY.remedy
        ) from error
    made.no_padding()
    made.no_truncation()
    pad = made.token_to_id(PADDING)
    if pad is None:
        raise ModelError(f"The vocabulary in {path} is not Qwen's: it has no {PADDING}.", VOCABULARY.remedy)
    if made.get_vocab_size() > rows:
        raise ModelError(
            f"The vocabulary in {path} has {made.get_vocab_size()} tokens, and the text encoder knows {rows}.",
            VOCABULARY.remedy,
        )
    return QwenTokenizer(made, 0, pad)


def _of_merges(path: Path) -> Tokenizer:
    """Make a tokenizer of byte pairs.

    Raises:
        ValueError: the lists don't belong together.
    """
    lines = (path.parent / _MERGES).read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        made: Tokenizer = Qwen2Tokenizer(vocab=read_json(path), merges=merges).backend_tokenizer
    except (TypeError, KeyError) as error:
        raise ValueError(f"its lists don't belong together: {error}") from error
    return made
