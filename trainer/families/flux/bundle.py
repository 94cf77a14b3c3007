"""FLUX.1, loaded: transformer, CLIP-L, T5 and VAE, and what each does in training.

How text is cut and encoded follows sd-scripts (library/strategy_flux.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from trainer.families.autocast import autocast
from trainer.families.conditions import Conditions, Placed, Size
from trainer.families.family import ComponentConfigs, Latents, Recognition
from trainer.families.flux import transformer
from trainer.families.flux.checkpoint import Checkpoint
from trainer.families.flux.facts import CLIP, DENOISER, DEV_LENGTH, LATENTS, SCHNELL_LENGTH, T5
from trainer.families.flux.targets import adapter_targets
from trainer.families.reading.quantised import quantised
from trainer.families.reading.streamed import StreamedWeights
from trainer.families.reading.weights import fingerprint, keep_whole
from trainer.families.text.clip import PromptTokenizer
from trainer.families.text.tokens import EncoderTokens, Tokenizers, Tokens
from trainer.families.vae import HasVae
from trainer.ground.control import Progress
from trainer.memory import free_memory
from trainer.process import FLOW
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.config import TrainingConfig

_PHASE = "load model"


@dataclass(frozen=True, slots=True)
class Guidance(Conditions):
    """{"guidance": float32 []}: how strongly a distilled model is to follow the prompt."""

    trained: float

    def of_picture(self, placement: Placed, flipped: bool) -> Mapping[str, Tensor]:
        return {"guidance": torch.tensor(self.trained)}

    def of_sample(self, size: Size, guidance: float) -> Mapping[str, Tensor]:
        return {"guidance": torch.tensor(guidance)}


class Bundle(HasVae):
    """The models of one checkpoint: frozen, in eval mode, on one device. See `trainer.families.bundle.Bundle`."""

    family = "flux"
    latents: Latents = LATENTS
    t5: ClassVar[str] = T5
    encoders: ClassVar[tuple[str, ...]] = (CLIP, T5)
    """The component that is T5, and all that read text."""

    def __init__(self, checkpoint: Checkpoint, modules: Mapping[str, nn.Module], config: TrainingConfig) -> None:
        self._modules = dict(modules)
        vae = self._modules.pop("vae")
        assert isinstance(vae, AutoencoderKL)
        self.vae: AutoencoderKL | None = vae
        self.vae_key = fingerprint(vae)
        self.notices: tuple[str, ...] = ()
        self._checkpoint, self._checkpointing = checkpoint, False
        self.streamed: StreamedWeights | None = None
        self._share = 0.0
        self._masked = self.masks(config)
        self.tokenize = Tokenizers(self.tokenizers(checkpoint, config))
        self.process = FLOW.build(checkpoint.recognition.configs["scheduler"], config, patch=LATENTS.patch)
        self.conditions: Conditions = self.told(config)

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
    def name(self) -> str:
        """File or folder name of the checkpoint, without the folders above it."""
        return Path(self._checkpoint.recognition.source).name

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self._checkpoint.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights of the transformer and CLIP-L."""
        return self._checkpoint.dtype

    @property
    def text_key(self) -> str:
        """Fingerprint of the text encoders' weights, and of whether they are told what is padding."""
        return " ".join([*(fingerprint(self._module(name)) for name in self.encoders), str(self._masked)])

    @property
    def component_configs(self) -> ComponentConfigs:
        """How the components are built, in the form that diffusers and transformers take."""
        return self._checkpoint.recognition.configs

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters attach to, by component name; released text encoders are not among them."""
        return dict(self._modules)

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
        pooled = self._module(CLIP)(tokens[CLIP]["ids"][:, 0].to(self.device)).pooler_output
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
            states = self._module(self.t5)(tokens["ids"].to(self.device), attention_mask=square).last_hidden_state
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
            self._modules[DENOISER],  # type: ignore[arg-type]
            noisy.to(self.device, self.dtype),
            timesteps.to(self.device),
            told,
            conditions["guidance"].to(self.device),
            checkpointing=self._checkpointing,
        )

    def load_vae(self, dtype: torch.dtype | None = None) -> AutoencoderKL:
        """Load the VAE; `dtype` is what it is loaded in from now on, where it is given."""
        if dtype is not None:
            self._checkpoint = replace(self._checkpoint, vae_dtype=dtype)
        return self._checkpoint.vae()

    def enable_gradient_checkpointing(self) -> None:
        """Trade a second forward pass for memory, in the transformer and the text encoders.

        transformers checkpoints only in train mode; T5's dropout is built as 0 and CLIP has none.
        """
        self._checkpointing = True
        for name in set(self.encoders) & self._modules.keys():
            encoder: Any = self._modules[name]
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()

    def largest_attention(self, width: int, height: int) -> tuple[int, int, int]:
        """Return heads, tokens and features of a head: text and picture attend to one another in every block."""
        config = self.component_configs[DENOISER]
        words = self.tokenize.encoders[self.t5].length  # type: ignore[attr-defined]
        tokens = words + (width // LATENTS.step) * (height // LATENTS.step)
        return config["num_attention_heads"], tokens, config["attention_head_dim"]

    def compile_blocks(self, backend: str | Callable[..., Any] | None) -> None:
        """Compile each block of the transformer, at its first call; None takes it back."""
        model: Any = self._modules[DENOISER]
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            block._compiled_call_impl = None
            if backend is not None:
                block.compile(backend=backend)

    def stream_weights(self, share: float) -> None:
        """Let this share of the blocks of transformer and T5, by bytes, lie in the computer's memory until used."""
        model: Any = self._modules[DENOISER]
        self.streamed = StreamedWeights([*model.transformer_blocks, *model.single_transformer_blocks], share)
        self.streamed.to(self.device)
        self._share = share
        if self.t5 in self._modules:
            self._stream_t5()

    def _stream_t5(self) -> None:
        assert self.streamed is not None
        self.streamed.add(list(self._module(self.t5).encoder.block), self._share)

    def release_text_encoders(self) -> None:
        """Free the text encoders. `encode_text` loads them again, without adapters that they may have had."""
        if self.streamed is not None and self.t5 in self._modules:
            self.streamed.remove(self._module(self.t5).encoder.block)
        for name in self.encoders:
            self._modules.pop(name, None)
        free_memory()

    def to(self, device: torch.device) -> None:
        """Move everything that is loaded, in place: parameters keep their identity."""
        if self.streamed is not None:
            self.streamed.to(device)
        for module in (*self._modules.values(), *([self.vae] if self.vae else [])):
            module.to(device)
        self._checkpoint = replace(self._checkpoint, device=device)
        free_memory()

    def _module(self, name: str) -> Any:
        """Return a text encoder, loaded again if it was released."""
        if name in self._modules:
            return self._modules[name]
        if name == self.t5 and self.streamed is not None:
            # It never has to fit the device whole.
            self._modules[name] = replace(self._checkpoint, device=torch.device("cpu")).t5()
            self._stream_t5()
            self._modules[name].to(self.device)
        else:
            self._modules[name] = self._checkpoint.t5() if name == self.t5 else self._checkpoint.clip()
        return self._modules[name]


def load_bundle(
    made: type[Bundle],
    read: type[Checkpoint],
    recognition: Recognition,
    config: TrainingConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Bundle:
    """Load the models of FLUX.1, or of a relative whose bundle and checkpoint are given.

    Args:
        dtype: of the frozen weights; the VAE stays in float32 with `no_half_vae`.
        progress: called with ("load model", components done, components).

    Raises:
        ModelError: weights are missing, damaged, or of other shapes than the configuration says; or T5's vocabulary
            cannot be had.
        Stopped: `progress` asked for it.
    """
    model = config.model
    apart = {"vae": model.vae, **dict.fromkeys(made.encoders, model.clip_l), made.t5: model.t5xxl}
    vae_dtype = torch.float32 if model.no_half_vae else dtype
    checkpoint = read(recognition, apart, model.t5_tokenizer_path, device, dtype, vae_dtype)
    kind = model.quantize_base
    smaller = keep_whole if kind == "none" else partial(quantised, kind=kind)
    report = progress or (lambda _phase, _done, _total: None)
    makers = {name: checkpoint.t5 if name == made.t5 else checkpoint.clip for name in made.encoders}
    makers["vae"] = checkpoint.vae
    total = len(makers) + 1
    report(_PHASE, 0, total)
    modules: dict[str, nn.Module] = {}
    for done, (name, make) in enumerate(makers.items(), 1):
        modules[name] = make()
        report(_PHASE, done, total)
    whole = {DENOISER: checkpoint.transformer(smaller), **modules}
    report(_PHASE, total, total)
    return made(checkpoint, whole, config)
