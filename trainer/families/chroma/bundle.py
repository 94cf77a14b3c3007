"""Chroma, loaded: transformer, T5 and VAE, and what each does in training.

How text is cut, encoded and masked follows sd-scripts (library/strategy_flux.py, library/chroma_models.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from trainer.families.chroma import transformer
from trainer.families.chroma.facts import DENOISER, LENGTH, SHOWN_PADDING, T5
from trainer.families.chroma.targets import adapter_targets
from trainer.families.conditions import Conditions
from trainer.families.flux import bundle
from trainer.families.flux.checkpoint import Checkpoint
from trainer.families.text.tokens import EncoderTokens, Tokens
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.config import TrainingConfig


class Bundle(bundle.Bundle):
    """The models of one checkpoint: frozen, in eval mode, on one device. See `trainer.families.bundle.Bundle`."""

    family = "chroma"
    encoders: ClassVar[tuple[str, ...]] = (T5,)
    large_encoder: ClassVar[str] = T5

    @staticmethod
    def masks(config: TrainingConfig) -> bool:
        """Say yes: Chroma was made with its padding hidden."""
        return True

    def tokenizers(self, checkpoint: Checkpoint, config: TrainingConfig) -> dict[str, Callable[[str], EncoderTokens]]:
        """Return what makes T5's tokens of a text."""
        return {T5: checkpoint.t5_tokenizer(config.model.t5xxl_max_token_length or LENGTH, masked=True)}

    def told(self, config: TrainingConfig) -> Conditions:
        """Return no further inputs: it is told no guidance."""
        return Conditions()

    def targets(self, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to, in kohya's creation order."""
        return adapter_targets(self.component_configs)

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """Encode prompts; differentiable.

        Args:
            tokens: of T5 ids, long [b, n], and a mask of the text's, bool [b, n].

        Returns:
            {"context": T5's states [b, n, width], "mask": bool [b, n], what the transformer sees of them: the text
            with its end, and one more}.
        """
        found = self.words(tokens[T5])
        mask = found["mask"]
        beyond = torch.zeros_like(mask)
        beyond[:, SHOWN_PADDING:] = mask[:, :-SHOWN_PADDING]
        return {**found, "mask": mask | beyond}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Predict noise minus latents; differentiable.

        Args:
            noisy: [b, 16, h, w], any float dtype.
            timesteps: sigmas, float32 [b].
            text: what `encode_text` returned for the b prompts.
            conditions: none.

        Returns:
            [b, 16, h, w] in the compute dtype.
        """
        told = {name: value.to(self.device) for name, value in text.items()}
        told["context"] = told["context"].to(self.dtype)
        return transformer.run(
            self.module(DENOISER),
            noisy.to(self.device, self.dtype),
            timesteps.to(self.device),
            told,
            checkpointing=self._checkpointing,
        )
