"""What text encoders take of a text: for each of them its own token ids, in its own length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

EncoderTokens: TypeAlias = Mapping[str, Tensor]
"""What one text encoder takes: "ids", and "mask" or "weights" of the same shape where it has a use for them."""

Tokens: TypeAlias = Mapping[str, EncoderTokens]
"""{component: what that text encoder takes}."""


@dataclass(frozen=True, slots=True)
class Tokenizers:
    """Turns a text into what each text encoder takes of it. Picklable, without state, safe in threads and workers."""

    encoders: Mapping[str, Callable[[str], EncoderTokens]]

    def __call__(self, text: str) -> dict[str, EncoderTokens]:
        """Return {component: tensors without a batch dimension}."""
        return {component: tokenizer(text) for component, tokenizer in self.encoders.items()}


def as_batch(tokens: Tokens) -> Tokens:
    """Return the tokens of one text as a batch of one."""
    return {name: {key: value.unsqueeze(0) for key, value in each.items()} for name, each in tokens.items()}
