"""Texts as a model's encoders take them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram

from trainer.families.bundle import Bundle
from trainer.families.text.tokens import Tokens


def tokens_of(bundle: Bundle, *texts: str) -> Tokens:
    """Return a batch of texts, tokenized for every encoder."""
    each = [bundle.tokenize(text) for text in texts]
    return {
        encoder: {name: torch.stack([one[encoder][name] for one in each]) for name in taken}
        for encoder, taken in each[0].items()
    }


def vocabulary() -> Tokenizer:
    """Return a small vocabulary of T5's kind: letters, and a few words."""
    words = ["tok", "class", "tag", "red", "big", "cat", "photo", "of", "a"]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in words), *map(chr, range(33, 127))]
    made = Tokenizer(Unigram([(piece, -float(n > 2) * len(piece) ** -1) for n, piece in enumerate(pieces)], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return made
