"""CLIP's tokens: the vocabulary without a download, and prompts of more than 75 tokens."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from trainer.ground.errors import ModelError

LENGTH = 75
"""Tokens of text in one chunk, between its first and its last."""
VOCABULARY = 49408
BEGIN, END = 49406, 49407
_PROBE = "a photo of a cat"
_PROBE_IDS = [320, 1125, 539, 320, 2368]

_PACKAGE, _MERGES_FILE = "openai-clip", "bpe_simple_vocab_16e6.txt.gz"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_MERGES = VOCABULARY - 2 * 256 - len(_SPECIAL)


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """Turns a prompt into the token ids of its chunks. Picklable, without state, safe in threads and workers.

    `chunks` is 1, 2 or 3 for max_token_length 75, 150 or 225. As sd-scripts has it (library/strategy_base.py), the
    text is cut after every 75 tokens, wherever that is, and every chunk is framed and padded by itself. `pad` is the
    token id that fills up a chunk behind its end token.
    """

    tokenizer: CLIPTokenizer
    chunks: int
    pad: int = END

    def __call__(self, text: str) -> dict[str, Tensor]:
        """Return {"ids": long [chunks, 77]}; what does not fit is cut off."""
        # verbose=False: without it transformers warns of every text that is longer than one chunk.
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        parts = (ids[start : start + LENGTH] for start in range(0, self.chunks * LENGTH, LENGTH))
        return {"ids": torch.tensor([[BEGIN, *part, END, *[self.pad] * (LENGTH - len(part))] for part in parts])}


def load_tokenizer(folder: Path | None, *, exclamation_is_padding: bool = False) -> CLIPTokenizer:
    """Load the tokenizer of a diffusers folder where it has one, else CLIP's own; see `clip_tokenizer`.

    Raises:
        ModelError: the folder's tokenizer is not CLIP's.
    """
    if folder is None or not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        return clip_tokenizer(exclamation_is_padding)
    remedy = f"Remove the folder {folder} to use CLIP's own vocabulary."
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"The tokenizer in {folder} cannot be read ({error}).", remedy) from error
    # With parts missing, transformers builds a tokenizer of two tokens without a word.
    if len(tokenizer) != VOCABULARY or tokenizer(_PROBE, add_special_tokens=False)["input_ids"] != _PROBE_IDS:
        raise ModelError(f"The tokenizer in {folder} has {len(tokenizer)} tokens and is not CLIP's.", remedy)
    return tokenizer


@cache
def clip_tokenizer(exclamation_is_padding: bool = False) -> CLIPTokenizer:
    """Build CLIP's tokenizer from the vocabulary that the package openai-clip carries (Radford et al. 2021).

    The file lists merges of byte pairs; the vocabulary is the 256 byte symbols, the same at a word's end, one entry for
    each merge, and the two special tokens. With `exclamation_is_padding` every "!" of a text becomes the padding
    token 0, as in the tokenizer that Stable Diffusion 2 is published with.
    """
    lines = gzip.decompress(_merges_path().read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : _MERGES + 1]]
    symbols = _byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(merge) for merge in merges), *_SPECIAL]
    vocabulary = {word: number for number, word in enumerate(words)}
    padding = {"pad_token": "!"} if exclamation_is_padding else {}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH + 2, **padding)


def _merges_path() -> Path:
    try:
        files = metadata.files(_PACKAGE) or []
        return Path(str(next(file for file in files if file.name == _MERGES_FILE).locate()))
    except (metadata.PackageNotFoundError, StopIteration) as error:
        raise ModelError(
            f"CLIP's vocabulary is missing: the package {_PACKAGE} is not installed.", f"Run: pip install {_PACKAGE}"
        ) from error


def _byte_symbols() -> list[str]:
    """Return the printable characters that stand for the 256 bytes, in the order of CLIP's vocabulary.

    Printable bytes stand for themselves and come first; the others take characters from 256 on (GPT-2's scheme).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + others))]
