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
from trainer.families.reading.hub import descriptions
from trainer.ground.errors import ModelError

PADDING = "<|endoftext|>"
"""The token that fills up a text."""
HUB_NAME = "Qwen/Qwen3-0.6B-Base"
"""Where its publisher has it."""

_NAMES = ("tokenizer.json", "vocab.json")
"""What the file is called; the first that is there is read. Beside the second lies merges.txt."""
_MERGES = "merges.txt"
_OF_CLIP = b'"a</w>"'
"""A word of CLIP's vocabulary, which marks the ends of words."""
_MOST_BYTES = 1 << 26
_REMEDY = "Choose the tokenizer.json of Qwen3, or leave qwen3_tokenizer_path empty."


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


def find_tokenizer(wanted: str, *beside: Path) -> Path:
    """Return the file with Qwen's vocabulary.

    Args:
        wanted: a file, a folder or a name on the hub; "" for the first of the folders in `beside` that has one, else
            the cache of the hub, or the hub itself, which is asked for some megabytes.

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
        raise ModelError(f"qwen3_tokenizer_path: {wanted} has no {' and no '.join(_NAMES)}.", "Choose another folder.")
    source = wanted or HUB_NAME
    try:
        found = _in(descriptions(source))
    except ModelError as error:
        raise ModelError(
            f"Qwen's vocabulary is neither beside the model nor to be had from {source}: {error.message}",
            "Set qwen3_tokenizer_path to a tokenizer.json of Qwen3, as any program that uses Qwen3 has it.",
        ) from error
    if found is None:
        raise ModelError(f"qwen3_tokenizer_path: {source} has no {' and no '.join(_NAMES)}.", _REMEDY)
    return found


def _in(folder: Path) -> Path | None:
    return next((folder / name for name in _NAMES if _is_qwens(folder / name)), None)


def _is_qwens(path: Path) -> bool:
    """Say whether a file may be Qwen's vocabulary: those of CLIP and T5 often lie in the same folders."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return False
    words = path.read_bytes()
    marked = PADDING.encode() in words if path.name == _NAMES[0] else (path.parent / _MERGES).is_file()
    return marked and _OF_CLIP not in words


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
        made = _of_merges(path) if path.name == _NAMES[1] else Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"Qwen's vocabulary in {path} cannot be read ({str(error)[:200]}).", _REMEDY) from error
    made.no_padding()
    made.no_truncation()
    pad = made.token_to_id(PADDING)
    if pad is None:
        raise ModelError(f"The vocabulary in {path} is not Qwen's: it has no {PADDING}.", _REMEDY)
    if made.get_vocab_size() > rows:
        raise ModelError(
            f"The vocabulary in {path} has {made.get_vocab_size()} tokens, and the text encoder knows {rows}.", _REMEDY
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
