"""Anima, loaded: transformer, adapter, Qwen3 and VAE, and what each does in training.

How text is cut, encoded and hidden follows sd-scripts (library/strategy_anima.py); the adapter runs in each step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trainer.families.anima import transformer
from trainer.families.anima.checkpoint import Checkpoint
from trainer.families.anima.facts import CONDITIONER, DENOISER, PATCH, TEXT, latents_of
from trainer.families.anima.targets import adapter_targets
from trainer.families.anima.vae import decoded, encoded
from trainer.families.autocast import autocast
from trainer.families.conditions import Conditions
from trainer.families.family import Latents, Recognition
from trainer.families.reading.quantised import quantising
from trainer.families.reading.weights import fingerprint
from trainer.families.text.tokens import Tokenizers, Tokens
from trainer.families.transformer.bundle import TransformerBundle, load_modules
from trainer.ground.control import Progress
from trainer.process import FLOW
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.config import TrainingConfig


class Bundle(TransformerBundle):
    """The models of one checkpoint: frozen, in eval mode, on one device. See `trainer.families.bundle.Bundle`."""

    family = "anima"
    encoders: ClassVar[tuple[str, ...]] = (TEXT,)
    large_encoder: ClassVar[str] = TEXT

    def __init__(self, checkpoint: Checkpoint, modules: Mapping[str, nn.Module], config: TrainingConfig) -> None:
        super().__init__(checkpoint, modules)
        vae: Any = modules["vae"]
        self._latents = latents_of(vae.config)
        self.tokenize = Tokenizers(
            {
                TEXT: checkpoint.qwen_tokenizer(config.text.qwen3_max_token_length),
                CONDITIONER: checkpoint.t5_tokenizer(config.text.t5_max_token_length),
            }
        )
        scheduler = checkpoint.recognition.configs["scheduler"]
        self.process = FLOW.build(scheduler, config, patch=PATCH, weighted=True)
        self.conditions = Conditions()

    @property
    def latents(self) -> Latents:
        """What the VAE makes of pictures, and how the transformer takes it."""
        return self._latents

    @property
    def blocks(self) -> list[nn.Module]:
        """Those of the adapter, then the transformer's."""
        return [*self.module(CONDITIONER).blocks, *self.module(DENOISER).transformer_blocks]

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """Those of Qwen3."""
        return list(self.module(TEXT).layers)

    @property
    def text_key(self) -> str:
        """Fingerprint of Qwen3's weights."""
        return fingerprint(self.module(TEXT))

    def targets(self, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to, in kohya's creation order."""
        return adapter_targets(self.component_configs)

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """Encode prompts; differentiable.

        Args:
            tokens: of Qwen3 and of T5 ids, long [b, n] and [b, m], each with the mask of the text's.

        Returns:
            What the transformer's `run` takes as text: Qwen3's states with zeros behind the text, [b, n, width], the
            ids of T5, which the adapter has words for, and both masks.
        """
        words, asked = tokens[TEXT], tokens[CONDITIONER]
        seen = words["mask"].to(self.device)
        # A token sees the text up to itself. Padding sees itself too, so that nothing is made of nothing.
        upto = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool, device=self.device).tril()
        mask = upto & (seen[:, None, :] | torch.eye(seen.shape[1], dtype=torch.bool, device=self.device))
        half = self.dtype == torch.float16
        with autocast(self.device, torch.bfloat16, enabled=half or torch.is_autocast_enabled()):
            found = self.module(TEXT)(
                words["ids"].to(self.device), attention_mask={"full_attention": mask[:, None]}, use_cache=False
            )
        states = found.last_hidden_state.to(self.dtype).masked_fill(~seen[..., None], 0.0)
        ids, known = (asked[name].to(self.device) for name in ("ids", "mask"))
        return {"states": states, "seen": seen, "ids": ids, "mask": known}

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
        told["states"] = told["states"].to(self.dtype)
        return transformer.run(
            self.module(DENOISER),
            self.module(CONDITIONER),
            noisy.to(self.device, self.dtype),
            timesteps.to(self.device),
            told,
            checkpointing=self._checkpointing,
        )

    @staticmethod
    def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the VAE's mean of pictures, and a deviation of nil: as sd-scripts, Anima is trained on the mean."""
        mean = torch.cat([encoded(vae, picture.to(vae.device, vae.dtype)) for picture in pixels.split(1)]).float()
        return mean, torch.zeros_like(mean)

    @staticmethod
    def drawn(vae: Any, latents: Tensor) -> tuple[Tensor, ...]:
        """Return the pictures that the VAE makes of its latents, in float32."""
        return (decoded(vae, latents.to(vae.device, vae.dtype)).float(),)

    def largest_attention(self, width: int, height: int) -> tuple[int, int, int]:
        """Return heads, tokens and features of a head: a picture attends to itself in every block."""
        config, step = self.component_configs[DENOISER], self.latents.step
        return config["num_attention_heads"], (width // step) * (height // step), config["attention_head_dim"]


def load_bundle(
    recognition: Recognition,
    config: TrainingConfig,
    *,
    small: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Bundle:
    """Load the models of Anima.

    Args:
        small: the components whose weights are kept in few bits.
        dtype: of the frozen weights; the VAE stays in float32 with `no_half_vae`.
        progress: called with ("loading the model", components done, components).

    Raises:
        ModelError: weights are missing, damaged, or of other shapes than the configuration says; or a vocabulary
            cannot be had.
        Stopped: `progress` asked for it.
    """
    model, smaller = config.model, partial(quantising, small, config.model.quantize_base)
    apart = {"vae": model.vae, TEXT: model.qwen3}
    vae_dtype = torch.float32 if model.no_half_vae else dtype
    where = (model.t5_tokenizer_path, device, dtype, vae_dtype, config.text.qwen3_tokenizer_path)
    checkpoint = Checkpoint(recognition, apart, *where)
    makers: dict[str, Callable[[], nn.Module]] = {
        TEXT: partial(checkpoint.encoder, TEXT, smaller(TEXT)),
        "vae": checkpoint.vae,
        CONDITIONER: checkpoint.conditioner,
        DENOISER: partial(checkpoint.transformer, smaller(DENOISER)),
    }
    modules = load_modules(makers, progress)
    return Bundle(checkpoint, {DENOISER: modules.pop(DENOISER), **modules}, config)
