"""Stable Diffusion XL, loaded (Podell et al. 2023). Text encoding follows sd-scripts (library/strategy_sdxl.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.families.sdxl.facts import FACTS
from trainer.families.stable.bundle import StableBundle, join_chunks
from trainer.families.tokens import END, PromptTokenizer

PENULTIMATE = 2
"""SDXL was trained on the last layer but one, so a smaller clip_skip means that one too."""


@dataclass(frozen=True, slots=True)
class PairTokenizer:
    """Turns a prompt into the token ids for each of several text encoders, which fill up chunks differently."""

    tokenizers: tuple[PromptTokenizer, ...]

    def __call__(self, text: str) -> Tensor:
        """Return long [encoders, chunks, 77]."""
        return torch.stack([tokenizer(text) for tokenizer in self.tokenizers])


class Bundle(StableBundle):
    """The models of one SDXL checkpoint."""

    facts = FACTS

    def make_tokenize(self, chunks: int) -> Callable[[str], Tensor]:
        """Return a picklable callable: text -> token ids for both text encoders, long [2, chunks, 77].

        The second encoder's own tokenizer takes "!" for its padding; sd-scripts' reads it as a word, and so does this.
        """
        pads = (encoder.pad for encoder in self.facts.text_encoders)
        return PairTokenizer(tuple(PromptTokenizer(self.tokenizer, chunks, pad) for pad in pads))

    def encode_text(self, token_ids: Tensor) -> dict[str, Tensor]:
        """Encode prompts with both text encoders; differentiable.

        Of each encoder the output of the last layer but one is taken (clip_skip n > 2: the n-th from the end), without
        a layer norm. The second one's last output at the first end token of the first chunk, projected, stands for the
        whole prompt.

        Args:
            token_ids: long [b, 2, c, 77].

        Returns:
            {"context": [b, 75 c + 2, width of both], "pooled": [b, width of the second]}
        """
        layer = max(self._clip_skip, PENULTIMATE)
        first, second = self.facts.text_encoders
        states, _ = self.hidden_states(first.component, token_ids[:, 0], layer)
        more, last = self.hidden_states(second.component, token_ids[:, 1], layer)
        context = torch.cat([join_chunks(states), join_chunks(more)], dim=-1)
        ends = (token_ids[:, 1, 0] == END).int().argmax(dim=-1)
        at_end = last[torch.arange(len(last), device=last.device), 0, ends.to(last.device)]
        projection = self.text_encoder(second.component).get_submodule("text_projection")
        return {"context": context, "pooled": projection(at_end)}

    def conditions(self, text: Mapping[str, Tensor], sizes: Tensor | None) -> dict[str, Any]:
        """Return the pooled prompt and the sizes, as the UNet takes them.

        Raises:
            ValueError: there are no sizes.
        """
        if sizes is None:
            raise ValueError("SDXL predicts with the sizes of the pictures")
        return {"text_embeds": text["pooled"].to(self.device, self.dtype), "time_ids": sizes.to(self.device)}
