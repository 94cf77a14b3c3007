"""A Stable Diffusion model, loaded: UNet, text encoders and VAE, and what each does in training.

After Rombach et al. 2022; how text is cut, encoded and joined follows sd-scripts (library/strategy_sd.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from trainer.families.bundle import LOADING
from trainer.families.conditions import Conditions
from trainer.families.family import FILE, ComponentConfigs, Latents, Recognition
from trainer.families.reading.quantised import quantising
from trainer.families.reading.streamed import StreamedWeights
from trainer.families.reading.weights import fingerprint
from trainer.families.text.clip import LENGTH, PromptTokenizer
from trainer.families.text.tokens import EncoderTokens, Tokenizers, Tokens
from trainer.families.text.weighted import WeightedTokenizer, weigh
from trainer.families.unet.checkpoint import Checkpoint, TextEncoder
from trainer.families.unet.facts import EITHER_QUESTION, EPSILON, VELOCITY, StableFacts, TextEncoderFacts, latents_of
from trainer.families.unet.targets import adapter_targets, text_layer
from trainer.families.vae import HasVae
from trainer.ground.control import Progress
from trainer.ground.errors import ConfigError, Problem
from trainer.process import DDPM
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.config import TrainingConfig
from trainer.memory import free_memory


class StableBundle(HasVae):
    """The models of one checkpoint: frozen, in eval mode, on one device. See `trainer.families.bundle.Bundle`.

    A family's bundle says with `facts` what it is, and with `encode_text` what its text encoders give to the UNet.
    """

    facts: ClassVar[StableFacts]

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        text_encoders: dict[str, TextEncoder],
        vae: AutoencoderKL,
        config: TrainingConfig,
    ) -> None:
        self.unet = unet
        self.text_encoders = text_encoders
        self.vae: AutoencoderKL | None = vae
        self.tokenizer = tokenizer
        self._weighted = config.text.weighted_captions
        chunks = config.model.max_token_length // LENGTH
        encoders = {each.component: self._tokenizer_for(each, chunks) for each in self.facts.text_encoders}
        self.tokenize = Tokenizers(encoders)
        prediction_type, self.notices = _prediction(checkpoint, config)
        self.process = DDPM.build(checkpoint.configs["scheduler"], config, prediction_type=prediction_type)
        self._checkpoint = checkpoint
        self._clip_skip = config.model.clip_skip
        self._checkpointing = False
        self.streamed: StreamedWeights | None = None

    @property
    def family(self) -> str:
        """Name of the family."""
        return self.facts.name

    @property
    def latents(self) -> Latents:
        """What the VAE makes of pictures, and how the UNet takes it."""
        return latents_of(self.facts)

    @property
    def name(self) -> str:
        """File or folder name of the checkpoint, without the folders above it."""
        return Path(self._checkpoint.recognition.source).name

    @property
    def component_configs(self) -> ComponentConfigs:
        """How the components are built, in the form that diffusers and transformers take."""
        return self._checkpoint.configs

    @property
    def text_key(self) -> str:
        """Fingerprint of the text encoders' weights and of the layer taken. Reads every weight."""
        parts = [fingerprint(self.text_encoder(each.component)) for each in self.facts.text_encoders]
        return " ".join([*parts, str(self._clip_skip)])

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self._checkpoint.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights of UNet and text encoders."""
        return self._checkpoint.dtype

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters attach to, by component name; released text encoders are not among them."""
        return {"unet": self.unet, **self.text_encoders}

    def targets(self, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to, in kohya's creation order."""
        single_file = self._checkpoint.recognition.form == FILE
        found = adapter_targets(self.facts, self.component_configs, conv=conv, single_file=single_file)
        return tuple(replace(target, idle=self._is_idle(target)) for target in found)

    def _is_idle(self, target: Target) -> bool:
        encoder = next((each for each in self.facts.text_encoders if each.component == target.component), None)
        if encoder is None:
            return False
        layers = self.component_configs[encoder.component]["num_hidden_layers"]
        return text_layer(target.path) >= layers - self.idle_layers(encoder)

    def idle_layers(self, encoder: TextEncoderFacts) -> int:
        """Return how many of a text encoder's last layers nothing is taken from."""
        return self._clip_skip - 1

    def _tokenizer_for(self, encoder: TextEncoderFacts, chunks: int) -> Callable[[str], EncoderTokens]:
        """Return the tokenizer of one text encoder.

        SDXL's second encoder has a tokenizer that takes "!" for its padding; sd-scripts' reads it as a word, and so
        does this.
        """
        plain = PromptTokenizer(self.tokenizer, chunks, encoder.pad)
        return WeightedTokenizer(plain) if self._weighted else plain

    @abstractmethod
    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """Encode prompts; differentiable. Takes what `tokenize` gives, stacked; returns what `predict` takes."""

    @property
    def conditions(self) -> Conditions:
        """What the model is told of a picture beside latents and text: nothing, where a family doesn't say more."""
        return Conditions()

    def added(self, text: Mapping[str, Tensor], conditions: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return what the UNet takes beside the prompts' states: nothing, where a family doesn't say otherwise."""
        return None

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        text: Mapping[str, Tensor],
        conditions: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Predict the noise, or the velocity, in noisy latents; differentiable.

        Args:
            noisy: [b, 4, h, w], any float dtype.
            timesteps: long [b].
            text: what `encode_text` returned for the b prompts.
            conditions: what `conditions` gives for each picture, stacked.

        Returns:
            [b, 4, h, w] in the compute dtype.
        """
        context = text["context"].to(self.device, self.dtype)
        noisy = noisy.to(self.device, self.dtype)
        beside = self.added(text, conditions)
        return self.unet(noisy, timesteps.to(self.device), context, added_cond_kwargs=beside, return_dict=False)[0]

    def enable_gradient_checkpointing(self) -> None:
        """Trade a second forward pass for memory, in the UNet and the text encoders.

        transformers checkpoints only in train mode; CLIP has no dropout, so nothing else changes by it.
        """
        self._checkpointing = True
        self.unet.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()

    def largest_attention(self, width: int, height: int) -> tuple[int, int, int]:
        """Return heads, tokens and features of a head where the UNet attends to most pixels of such a picture."""
        level = [kind.startswith("CrossAttn") for kind in self.unet.config.down_block_types].index(True)
        layer = self.unet.down_blocks[level].attentions[0].transformer_blocks[0].attn1
        side = self.latents.factor * 2**level
        return layer.heads, (width // side) * (height // side), layer.inner_dim // layer.heads

    def compile_blocks(self, backend: str | Callable[..., Any] | None) -> None:
        """Compile each block that the UNet repeats, at its first call; None takes it back.

        Blocks of one kind share what is compiled, which takes a fraction of what the whole takes.
        """
        for block in self.unet.modules():
            if type(block).__name__ in self.unet._repeated_blocks:
                block._compiled_call_impl = None
                if backend is not None:
                    block.compile(backend=backend)

    def stream_weights(self, share: float) -> None:
        """Let this share of the UNet's blocks, by bytes, lie in the computer's memory until they are used."""
        self.streamed = StreamedWeights(list(_blocks(self.unet)), share)
        self.streamed.to(self.device)

    def release_text_encoders(self) -> None:
        """Free the text encoders. `encode_text` loads them again, without adapters that they may have had."""
        self.text_encoders = {}
        free_memory()

    def to(self, device: torch.device) -> None:
        """Move everything that is loaded, in place: parameters keep their identity."""
        if self.streamed is not None:
            self.streamed.to(device)
        for module in (*self.components.values(), *([self.vae] if self.vae else [])):
            module.to(device)
        self._checkpoint = replace(self._checkpoint, device=device)
        free_memory()

    def text_encoder(self, component: str) -> TextEncoder:
        """Return a text encoder, loaded again if it was released."""
        if component not in self.text_encoders:
            which = next(each for each in self.facts.text_encoders if each.component == component)
            self.text_encoders[component] = self._checkpoint.text_encoder(which)
        return self.text_encoders[component]

    def hidden_states(self, component: str, token_ids: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Run a text encoder on chunks of token ids, each alone.

        Args:
            token_ids: long [b, c, 77].
            layer: which layer's output, counted from the end: 1 is the last.

        Returns:
            The layer's output without the final layer norm, and the last layer's with it, each [b, c, 77, width].
        """
        count, chunks, length = token_ids.shape
        encoder = self.text_encoder(component)
        # The module without projection has the level "text_model" no more.
        inner = encoder.get_submodule("text_model") if hasattr(encoder, "text_projection") else encoder
        output = inner(token_ids.reshape(count * chunks, length).to(self.device), output_hidden_states=True)
        shape = (count, chunks, length, -1)
        return output.hidden_states[-layer].reshape(shape), output.last_hidden_state.reshape(shape)

    def load_vae(self, dtype: torch.dtype | None = None) -> AutoencoderKL:
        """Load the VAE; `dtype` is what it is loaded in from now on, where it is given."""
        if dtype is not None:
            self._checkpoint = replace(self._checkpoint, vae_dtype=dtype)
        return self._checkpoint.vae()


class NormedTextBundle(StableBundle):
    """A bundle with one text encoder, whose states go through its final layer norm."""

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """Encode prompts; differentiable.

        Every chunk is encoded alone. Of a prompt of several chunks the first begin token, the texts and the last token
        remain. clip_skip n > 1 takes the output of the n-th layer from the end and applies the final layer norm to it.

        Args:
            tokens: ids, long [b, c, 77], and with weighted captions their weights.

        Returns:
            {"context": [b, 75 c + 2, width]}
        """
        component = self.facts.text_encoders[0].component
        taken = tokens[component]
        states, last = self.hidden_states(component, taken["ids"], self._clip_skip)
        if self._clip_skip > 1:
            last = self.text_encoder(component).get_submodule("final_layer_norm")(states)
        return {"context": join_chunks(weigh(last, taken.get("weights")))}


def load_bundle(
    made: type[StableBundle],
    recognition: Recognition,
    config: TrainingConfig,
    *,
    small: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> StableBundle:
    """Load the models of a file or folder.

    Args:
        made: the family's bundle.
        small: the components whose weights are kept in few bits.
        dtype: of the frozen weights; the VAE stays in float32 with `no_half_vae`.
        progress: called with ("loading the model", components done, components).

    Raises:
        ConfigError: `clip_skip` goes beyond a text encoder's layers.
        ModelError: weights are missing, damaged, or of other shapes than the configuration says.
        Stopped: `progress` asked for it.
    """
    encoders = made.facts.text_encoders
    layers = min(recognition.configs[each.component]["num_hidden_layers"] for each in encoders)
    if config.model.clip_skip > layers:
        message = f"{config.model.clip_skip} is more than the {layers} layers of this model's text encoder; lower it."
        raise ConfigError([Problem("clip_skip", message, config.model.clip_skip)])
    vae_dtype = torch.float32 if config.model.no_half_vae else dtype
    own = {each.component: getattr(config.model, each.setting) for each in encoders if each.setting}
    checkpoint = Checkpoint(made.facts, recognition, config.model.vae, device, dtype, vae_dtype, own)
    report = progress or (lambda _phase, _done, _total: None)
    total = len(encoders) + 2
    report(LOADING, 0, total)
    # First: weights take the room of what it is made from.
    tokenizer = checkpoint.tokenizer()
    smaller = partial(quantising, small, config.model.quantize_base)
    text_encoders = {}
    for done, encoder in enumerate(encoders, 1):
        text_encoders[encoder.component] = checkpoint.text_encoder(encoder, smaller(encoder.component))
        report(LOADING, done, total)
    vae = checkpoint.vae()
    report(LOADING, total - 1, total)
    unet = checkpoint.unet(smaller("unet"))
    report(LOADING, total, total)
    return made(checkpoint, tokenizer, unet, text_encoders, vae, config)


def _blocks(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    """Yield the parts of a UNet that have most of its weights and are called one after the other."""
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        yield from level.resnets
        for attention in getattr(level, "attentions", ()):
            yield from attention.transformer_blocks
        for name in ("downsamplers", "upsamplers"):
            yield from getattr(level, name, None) or ()


def join_chunks(states: Tensor) -> Tensor:
    """Join the chunks of each prompt: the first begin token, the texts, the last token.

    [b, c, 77, width] -> [b, 75 c + 2, width]
    """
    texts = states[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], texts, states[:, -1, -1:]], dim=1)


def _prediction(checkpoint: Checkpoint, config: TrainingConfig) -> tuple[str, tuple[str, ...]]:
    """Return what the UNet is trained to predict, and what to say about it."""
    said, asked = checkpoint.configs["scheduler"].get("prediction_type"), config.model.v_parameterization
    if said == VELOCITY and not asked:
        return VELOCITY, ("The model says of itself that it predicts v, and is trained so (v_parameterization).",)
    if said == EPSILON and asked:
        return VELOCITY, ("The model's own scheduler says epsilon, and v_parameterization makes it predict v.",)
    if said is None and checkpoint.facts.predicts_either and not asked:
        return EPSILON, (EITHER_QUESTION,)
    return VELOCITY if asked else EPSILON, ()
