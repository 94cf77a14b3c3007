"""FLUX.1, loaded: transformer, CLIP-L, T5 and VAE, and what each does in training.

How text is cut and encoded follows sd-scripts (library/strategy_flux.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from trainer.families.autocast import autocast
from trainer.families.conditions import Conditions, Placed, Size
from trainer.families.family import Latents, Recognition
from trainer.families.flux import transformer
from trainer.families.flux.checkpoint import Checkpoint
from trainer.families.flux.facts import CLIP, DENOISER, DEV_LENGTH, LATENTS, SCHNELL_LENGTH, T5
from trainer.families.flux.targets import adapter_targets
from trainer.families.reading.quantised import quantising
from trainer.families.reading.weights import fingerprint
from trainer.families.text.clip import PromptTokenizer
from trainer.families.text.tokens import EncoderTokens, Tokenizers, Tokens
from trainer.families.transformer.bundle import TransformerBundle, load_modules
from trainer.ground.control import Progress
from trainer.process import FLOW
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.config import TrainingConfig


@dataclass(frozen=True, slots=True)
class Guidance(Conditions):
    """{"guidance": float32 []}: how strongly a distilled model is to follow the prompt."""

    trained: float

    def of_picture(self, placement: Placed, flipped: bool) -> Mapping[str, Tensor]:
        return {"guidance": torch.tensor(self.trained)}

    def of_sample(self, size: Size, guidance: float) -> Mapping[str, Tensor]:
        return {"guidance": torch.tensor(guidance)}


class Bundle(TransformerBundle):
    """The models of one checkpoint: frozen, in eval mode, on one device. See `trainer.families.bundle.Bundle`."""

    family = "flux"
    latents: Latents = LATENTS
    encoders: ClassVar[tuple[str, ...]] = (CLIP, T5)
    large_encoder: ClassVar[str] = T5
    """T5."""

    def __init__(self, checkpoint: Checkpoint, modules: Mapping[str, nn.Module], config: TrainingConfig) -> None:
        super().__init__(checkpoint, modules)
        self._masked = self.masks(config)
        self.tokenize = Tokenizers(self.tokenizers(checkpoint, config))
        self.process = FLOW.build(checkpoint.recognition.configs["scheduler"], config, patch=LATENTS.patch)
        self.conditions: Conditions = self.told(config)

    @property
    def blocks(self) -> list[nn.Module]:
        """Double blocks, then single ones."""
        model: Any = self.module(DENOISER)
        return [*model.transformer_blocks, *model.single_transformer_blocks]

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """Those of T5."""
        return list(self.module(self.large_encoder).encoder.block)

    @staticmethod
    def masks(config: TrainingConfig) -> bool:
        """Say whether what fills up a text is hidden from T5 and the transformer."""
        return config.model.apply_t5_attn_mask

    def tokenizers(self, checkpoint: Checkpoint, config: TrainingConfig) -> dict[str, Callable[[str], EncoderTokens]]:
        """Return what makes each encoder's tokens of a text."""
        told = checkpoint.recognition.configs[DENOISER]["guidance_embeds"]
        length = config.model.t5xxl_max_token_length or (DEV_LENGTH if told else SCHNELL_LENGTH)
        return {
            CLIP: PromptTokenizer(checkpoint.clip_tokenizer(), 1),
            T5: checkpoint.t5_tokenizer(length, masked=self._masked),
        }

    def told(self, config: TrainingConfig) -> Conditions:
        """Return the further inputs of the transformer."""
        return Guidance(config.flow.guidance_scale)

    @property
    def text_key(self) -> str:
        """Fingerprint of the text encoders' weights, and of whether they are told what is padding."""
        return " ".join([*(fingerprint(self.module(name)) for name in self.encoders), str(self._masked)])

    def targets(self, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to, in kohya's creation order."""
        return adapter_targets(self.component_configs)

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """Encode prompts; differentiable.

        Args:
            tokens: of CLIP-L ids, long [b, 1, 77]; of T5 ids, long [b, n], and where padding is masked bool [b, n].

        Returns:
            {"pooled": CLIP's output at the end of the text [b, width], "context": T5's states [b, n, width]}, and
            "mask" where there is one.
        """
        pooled = self.module(CLIP)(tokens[CLIP]["ids"][:, 0].to(self.device)).pooler_output
        return {"pooled": pooled.to(self.dtype), **self.words(tokens[T5])}

    def words(self, tokens: EncoderTokens) -> dict[str, Tensor]:
        """Return T5's states as "context", [b, n, width], and where tokens have a mask that, as "mask", bool [b, n]."""
        mask = tokens.get("mask")
        seen = None if mask is None else mask.to(self.device)
        # As transformers would make it, which asks the numbers first whether anything is hidden at all.
        square = None if seen is None else seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)
        # float16 has not the range that T5's states need, whatever the caller's autocast says.
        half = self.dtype == torch.float16
        with autocast(self.device, torch.bfloat16, enabled=half or torch.is_autocast_enabled()):
            states = self.module(self.large_encoder)(
                tokens["ids"].to(self.device), attention_mask=square
            ).last_hidden_state
        found = {"context": states.to(self.dtype)}
        return found if seen is None else {**found, "mask": seen}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """Predict noise minus latents; differentiable.

        Args:
            noisy: [b, 16, h, w], any float dtype.
            timesteps: sigmas, float32 [b].
            text: what `encode_text` returned for the b prompts.
            conditions: what `conditions` gives for each picture, stacked.

        Returns:
            [b, 16, h, w] in the compute dtype.
        """
        told = {name: value.to(self.device) for name, value in text.items()}
        told |= {name: told[name].to(self.dtype) for name in ("context", "pooled")}
        return transformer.run(
            self.module(DENOISER),
            noisy.to(self.device, self.dtype),
            timesteps.to(self.device),
            told,
            conditions["guidance"].to(self.device),
            checkpointing=self._checkpointing,
        )

    def largest_attention(self, width: int, height: int) -> tuple[int, int, int]:
        """Return heads, tokens and features of a head: text and picture attend to one another in every block."""
        config = self.component_configs[DENOISER]
        words = self.tokenize.encoders[self.large_encoder].length  # type: ignore[attr-defined]
        tokens = words + (width // LATENTS.step) * (height // LATENTS.step)
        return config["num_attention_heads"], tokens, config["attention_head_dim"]


def load_bundle(
    made: type[Bundle],
    read: type[Checkpoint],
    recognition: Recognition,
    config: TrainingConfig,
    *,
    small: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Bundle:
    """Load the models of FLUX.1, or of a relative whose bundle and checkpoint are given.

    Args:
        small: the components whose weights are kept in few bits.
        dtype: of the frozen weights; the VAE stays in float32 with `no_half_vae`.
        progress: called with ("loading the model", components done, components).

    Raises:
        ModelError: weights are missing, damaged, or of other shapes than the configuration says; or T5's vocabulary
            cannot be had.
        Stopped: `progress` asked for it.
    """
    model, smaller = config.model, partial(quantising, small, config.model.quantize_base)
    apart = {"vae": model.vae, **dict.fromkeys(made.encoders, model.clip_l), made.large_encoder: model.t5xxl}
    vae_dtype = torch.float32 if model.no_half_vae else dtype
    checkpoint = read(recognition, apart, model.t5_tokenizer_path, device, dtype, vae_dtype)
    makers: dict[str, Callable[[], nn.Module]] = {
        name: partial(checkpoint.encoder, name, smaller(name)) for name in made.encoders
    }
    makers |= {"vae": checkpoint.vae, DENOISER: partial(checkpoint.transformer, smaller(DENOISER))}
    modules = load_modules(makers, progress)
    return made(checkpoint, {DENOISER: modules.pop(DENOISER), **modules}, config)
