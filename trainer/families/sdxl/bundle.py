"""Stable Diffusion XL, loaded (Podell et al. 2023). Text encoding follows sd-scripts (library/strategy_sdxl.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.families.sdxl.facts import FACTS
from trainer.families.text.clip import END
from trainer.families.text.weighted import weigh
from trainer.families.unet.bundle import StableBundle, join_chunks
from trainer.families.unet.facts import TextEncoderFacts

PENULTIMATE = 2
"""SDXL was trained on the last layer but one, so a smaller clip_skip means that one too."""


@dataclass(frozen=True, slots=True)
class PairTokenizer:
    """Turns a prompt into the token ids for each of several text encoders, which fill up chunks differently."""

    tokenizers: tuple[Callable[[str], Tensor], ...]

    def __call__(self, text: str) -> Tensor:
        """Return long [encoders, chunks, 77], or with weights [encoders, 2, chunks, 77]."""
        return torch.stack([tokenizer(text) for tokenizer in self.tokenizers])


class Bundle(StableBundle):
    """The models of one SDXL checkpoint."""

    facts = FACTS

    def make_tokenize(self, chunks: int) -> Callable[[str], Tensor]:
        """Return a picklable callable: text -> token ids for both text encoders, long [2, chunks, 77].

        The second encoder's own tokenizer takes "!" for its padding; sd-scripts' reads it as a word, and so does this.
        """
        return PairTokenizer(tuple(self.tokenizer_for(encoder, chunks) for encoder in self.facts.text_encoders))

    def encode_text(self, token_ids: Tensor) -> dict[str, Tensor]:
        """Encode prompts with both text encoders; differentiable.

        Of each encoder the output of the last layer but one is taken (clip_skip n > 2: the n-th from the end), without
        a layer norm. The second one's last output at the first end token of the first chunk, projected, stands for the
        whole prompt.

        Args:
            token_ids: long [b, 2, c, 77], with weighted captions [b, 2, 2, c, 77].

        Returns:
            {"context": [b, 75 c + 2, width of both], "pooled": [b, width of the second]}
        """
        layer = self._layer
        first, second = self.facts.text_encoders
        ids, weights = self.split_tokens(token_ids[:, 0])
        states, _ = self.hidden_states(first.component, ids, layer)
        parts = [join_chunks(weigh(states, weights))]
        ids, weights = self.split_tokens(token_ids[:, 1])
        states, last = self.hidden_states(second.component, ids, layer)
        context = torch.cat([*parts, join_chunks(weigh(states, weights))], dim=-1)
        ends = (ids[:, 0] == END).int().argmax(dim=-1)
        at_end = last[torch.arange(len(last), device=last.device), 0, ends.to(last.device)]
        projection = self.text_encoder(second.component).get_submodule("text_projection")
        return {"context": context, "pooled": projection(at_end)}

    def idle_layers(self, encoder: TextEncoderFacts) -> int:
        """Return how many of a text encoder's last layers nothing is taken from: none, where they are pooled."""
        return 0 if encoder.projected else self._layer - 1

    @property
    def _layer(self) -> int:
        return max(self._clip_skip, PENULTIMATE)

    def conditions(self, text: Mapping[str, Tensor], sizes: Tensor | None) -> dict[str, Any]:
        """Return the pooled prompt and the sizes, as the UNet takes them.

        Raises:
            ValueError: there are no sizes.
        """
        if sizes is None:
            raise ValueError("SDXL predicts with the sizes of the pictures")
        return {"text_embeds": text["pooled"].to(self.device, self.dtype), "time_ids": sizes.to(self.device)}
