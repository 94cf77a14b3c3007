"""The components of one Chroma model, loaded one by one from wherever they lie, as FLUX.1's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from trainer.families.chroma.facts import DENOISER, T5
from trainer.families.chroma.recognition import PREFIXES
from trainer.families.chroma.transformer import build_transformer
from trainer.families.chroma.weight_names import original_name
from trainer.families.flux import checkpoint


@dataclass(frozen=True, slots=True)
class Checkpoint(checkpoint.Checkpoint):
    """One model's files. Every method reads anew, so a component that was released can be had again."""

    t5_component: ClassVar[str] = T5
    tokenizer_folder: ClassVar[str] = "tokenizer"
    prefixes: ClassVar[Mapping[str, Sequence[str]]] = PREFIXES

    def built(self) -> nn.Module:
        """Return the transformer without memory for its weights."""
        return build_transformer(self.recognition.configs[DENOISER])

    def original_name(self, name: str) -> str:
        """Return the name in the original's layout of a weight of the transformer."""
        return original_name(name)
