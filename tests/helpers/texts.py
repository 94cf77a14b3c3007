"""Texts as a model's encoders take them."""

from __future__ import annotations

import torch

from trainer.families.bundle import Bundle
from trainer.families.text.tokens import Tokens


def tokens_of(bundle: Bundle, *texts: str) -> Tokens:
    """Return a batch of texts, tokenized for every encoder."""
    each = [bundle.tokenize(text) for text in texts]
    return {
        encoder: {name: torch.stack([one[encoder][name] for one in each]) for name in taken}
        for encoder, taken in each[0].items()
    }
