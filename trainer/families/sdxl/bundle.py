"""Stable Diffusion XL, loaded (Podell et al. 2023). Text encoding follows sd-scripts (library/strategy_sdxl.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.families.sdxl.facts import FACTS
from trainer.families.sdxl.sizes import SizeConditions
from trainer.families.text.clip import END
from trainer.families.text.tokens import Tokens
from trainer.families.text.weighted import weigh
from trainer.families.unet.bundle import StableBundle, join_chunks
from trainer.families.unet.facts import TextEncoderFacts

PENULTIMATE = 2
"""SDXL was trained on the last layer but one, so a smaller clip_skip means that one too."""


class Bundle(StableBundle):
    """The models of one SDXL checkpoint."""

    facts = FACTS

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """Encode prompts with both text encoders; differentiable.

        Of each encoder the output of the last layer but one is taken (clip_skip n > 2: the n-th from the end), without
        a layer norm. The second one's last output at the first end token of the first chunk, projected, stands for the
        whole prompt.

        Args:
            tokens: for each encoder ids, long [b, c, 77], and with weighted captions their weights.

        Returns:
            {"context": [b, 75 c + 2, width of both], "pooled": [b, width of the second]}
        """
        first, second = (each.component for each in self.facts.text_encoders)
        states, _ = self.hidden_states(first, tokens[first]["ids"], self._layer)
        parts = [join_chunks(weigh(states, tokens[first].get("weights")))]
        ids = tokens[second]["ids"]
        states, last = self.hidden_states(second, ids, self._layer)
        context = torch.cat([*parts, join_chunks(weigh(states, tokens[second].get("weights")))], dim=-1)
        ends = (ids[:, 0] == END).int().argmax(dim=-1)
        at_end = last[torch.arange(len(last), device=last.device), 0, ends.to(last.device)]
        projection = self.text_encoder(second).get_submodule("text_projection")
        return {"context": context, "pooled": projection(at_end)}

    def idle_layers(self, encoder: TextEncoderFacts) -> int:
        """Return how many of a text encoder's last layers nothing is taken from: none, where they are pooled."""
        return 0 if encoder.projected else self._layer - 1

    @property
    def _layer(self) -> int:
        return max(self._clip_skip, PENULTIMATE)

    @property
    def conditions(self) -> SizeConditions:
        """SDXL is told how a picture was scaled and cut."""
        return SizeConditions()

    def added(self, text: Mapping[str, Tensor], conditions: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the pooled prompt and the sizes, as the UNet takes them."""
        sizes = conditions["sizes"].to(self.device)
        return {"text_embeds": text["pooled"].to(self.device, self.dtype), "time_ids": sizes}
