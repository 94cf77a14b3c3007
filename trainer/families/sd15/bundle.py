"""Stable Diffusion 1.x, loaded: UNet, text encoder and VAE, and what each does in training.

Text encoding follows sd-scripts (library/strategy_sd.py); the rest is Rombach et al. 2022.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from trainer.config import TrainingConfig
from trainer.control import Progress
from trainer.errors import ConfigError, ModelError, Problem
from trainer.families.family import ComponentConfigs, Recognition
from trainer.families.sd15 import facts
from trainer.families.sd15.checkpoint import Checkpoint
from trainer.families.tokens import LENGTH, PromptTokenizer
from trainer.families.weights import fingerprint
from trainer.targets import Target

_PHASE = "load model"
_FLOAT32_NOTICE = (
    "The VAE gave numbers that are not finite in half precision and goes on in float32. "
    "no_half_vae = true avoids the detour."
)


class Bundle:
    """The models of one checkpoint: frozen, in eval mode, on one device. See `trainer.families.bundle.Bundle`."""

    family = "sd15"
    vae_scale = facts.VAE_SCALE

    def __init__(
        self,
        checkpoint: Checkpoint,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        config: TrainingConfig,
    ) -> None:
        self.unet = unet
        self.text_encoders: dict[str, CLIPTextModel] = {"text_encoder": text_encoder}
        self.vae: AutoencoderKL | None = vae
        self.vae_key = fingerprint(vae)
        self.tokenizer = checkpoint.tokenizer()
        self.tokenize = PromptTokenizer(self.tokenizer, config.model.max_token_length // LENGTH)
        self.alphas_cumprod: Tensor = DDPMScheduler.from_config(dict(checkpoint.configs["scheduler"])).alphas_cumprod
        self.prediction_type = "v_prediction" if config.model.v_parameterization else "epsilon"
        self.notices = _notices(checkpoint, self.prediction_type)
        self._checkpoint = checkpoint
        self._clip_skip = config.model.clip_skip

    @property
    def name(self) -> str:
        """File or folder name of the checkpoint, without the folders above it."""
        return Path(self._checkpoint.recognition.source).name

    @property
    def component_configs(self) -> ComponentConfigs:
        """How the components are built, in the form that diffusers and transformers take."""
        return self._checkpoint.configs

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self._checkpoint.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights of UNet and text encoder."""
        return self._checkpoint.dtype

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters attach to, by component name; a released text encoder is not among them."""
        return {"unet": self.unet, **self.text_encoders}

    def targets(self, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to, in kohya's creation order."""
        return facts.adapter_targets(self.component_configs["unet"], self.component_configs["text_encoder"], conv=conv)

    def encode_text(self, token_ids: Tensor) -> dict[str, Tensor]:
        """Encode prompts; differentiable.

        Every chunk is encoded alone. Of a prompt of several chunks the first begin token, the texts and the last token
        remain. clip_skip n > 1 takes the output of the n-th layer from the end and applies the final layer norm to it.

        Args:
            token_ids: long [b, c, 77].

        Returns:
            {"context": [b, 75 c + 2, width]}
        """
        count, chunks, length = token_ids.shape
        encoder = self._text_encoder()
        ids = token_ids.reshape(count * chunks, length).to(self.device)
        if self._clip_skip > 1:
            output = encoder(ids, output_hidden_states=True)
            states = encoder.get_submodule("final_layer_norm")(output.hidden_states[-self._clip_skip])
        else:
            states = encoder(ids).last_hidden_state
        states = states.reshape(count, chunks, length, -1)
        texts = states[:, :, 1:-1].flatten(1, 2)
        return {"context": torch.cat([states[:, 0, :1], texts, states[:, -1, -1:]], dim=1)}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], sizes: Tensor | None = None
    ) -> Tensor:
        """Predict the noise, or the velocity, in noisy latents; differentiable.

        Args:
            noisy: [b, 4, h, w], any float dtype.
            timesteps: long [b].
            text: what `encode_text` returned for the b prompts.
            sizes: not used by this family.

        Returns:
            [b, 4, h, w] in the compute dtype.
        """
        context = text["context"].to(self.device, self.dtype)
        noisy = noisy.to(self.device, self.dtype)
        return self.unet(noisy, timesteps.to(self.device), context, return_dict=False)[0]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's posterior.

        Args:
            pixels: [b, 3, H, W] in [-1, 1], sides divisible by 8.

        Returns:
            Two float32 tensors [b, 4, H/8, W/8], not scaled by `vae_scale`, on the bundle's device.

        Raises:
            ModelError: the VAE gives numbers that are not finite, in float32 too.
        """
        mean, deviation = self._in_range(_encode, pixels)
        if not bool(mean.isfinite().all() and deviation.isfinite().all()):
            raise ModelError("The VAE gives numbers that are not finite.", "Choose another VAE with the setting vae.")
        return mean, deviation

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the picture of scaled latents [b, 4, h, w]: float32 [b, 3, 8h, 8w] in [-1, 1].

        Latents that are not finite, as a training gone wrong makes them, come out black.
        """
        (pixels,) = self._in_range(_decode, latents)
        return pixels.nan_to_num(nan=-1).clamp(-1, 1)

    def enable_gradient_checkpointing(self) -> None:
        """Trade a second forward pass for memory, in the UNet and the text encoder.

        transformers checkpoints only in train mode; CLIP has no dropout, so nothing else changes by it.
        """
        self.unet.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()

    def release_vae(self) -> None:
        """Free the VAE. `encode_images` and `decode_latents` load it again."""
        self.vae = None
        _free()

    def release_text_encoders(self) -> None:
        """Free the text encoder. `encode_text` loads it again, without an adapter that it may have had."""
        self.text_encoders = {}
        _free()

    def to(self, device: torch.device) -> None:
        """Move everything that is loaded, in place: parameters keep their identity."""
        for module in (*self.components.values(), *([self.vae] if self.vae else [])):
            module.to(device)
        self._checkpoint = replace(self._checkpoint, device=device)
        _free()

    def _text_encoder(self) -> CLIPTextModel:
        if not self.text_encoders:
            self.text_encoders = {"text_encoder": self._checkpoint.text_encoder()}
        return self.text_encoders["text_encoder"]

    def _vae(self) -> AutoencoderKL:
        if self.vae is None:
            self.vae = self._checkpoint.vae()
        return self.vae

    def _in_range(self, work: _Work, values: Tensor) -> tuple[Tensor, ...]:
        """Run the VAE; where half precision overflows, go over to float32 for good and say so."""
        vae = self._vae()
        # A VAE in float32 must stay so inside the caller's autocast.
        with torch.autocast(self.device.type, enabled=False):
            results = work(vae, values)
            if vae.dtype == torch.float32 or all(bool(result.isfinite().all()) for result in results):
                return results
            if not bool(values.isfinite().all()):
                return results
            self.notices = (*self.notices, _FLOAT32_NOTICE)
            self._checkpoint = replace(self._checkpoint, vae_dtype=torch.float32)
            self.vae = self._checkpoint.vae()
            return work(self.vae, values)


_Work = Callable[[AutoencoderKL, Tensor], tuple[Tensor, ...]]


def load(
    recognition: Recognition,
    config: TrainingConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> Bundle:
    """Load the models of a file or folder.

    Args:
        dtype: of the frozen weights; the VAE stays in float32 with `no_half_vae`.
        progress: called with ("load model", done, 3).

    Raises:
        ConfigError: `clip_skip` goes beyond the text encoder's layers.
        ModelError: weights are missing, damaged, or of other shapes than the configuration says.
        Stopped: `progress` asked for it.
    """
    layers = recognition.configs["text_encoder"]["num_hidden_layers"]
    if config.model.clip_skip > layers:
        message = f"{config.model.clip_skip} is more than the {layers} layers of this model's text encoder; lower it."
        raise ConfigError([Problem("clip_skip", message, config.model.clip_skip)])
    vae_dtype = torch.float32 if config.model.no_half_vae else dtype
    checkpoint = Checkpoint(recognition, config.model.vae, device, dtype, vae_dtype)
    report = progress or (lambda _phase, _done, _total: None)
    report(_PHASE, 0, 3)
    text_encoder = checkpoint.text_encoder()
    report(_PHASE, 1, 3)
    vae = checkpoint.vae()
    report(_PHASE, 2, 3)
    unet = checkpoint.unet()
    report(_PHASE, 3, 3)
    return Bundle(checkpoint, unet, text_encoder, vae, config)


def _encode(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, ...]:
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return posterior.mean.float(), (0.5 * posterior.logvar.float()).exp()


def _decode(vae: AutoencoderKL, latents: Tensor) -> tuple[Tensor, ...]:
    unscaled = latents.to(vae.device, vae.dtype) / facts.VAE_SCALE
    return (vae.decode(unscaled, return_dict=False)[0].float(),)


def _notices(checkpoint: Checkpoint, prediction_type: str) -> tuple[str, ...]:
    said = checkpoint.configs["scheduler"].get("prediction_type", prediction_type)
    if said == prediction_type:
        return ()
    return (f"The model's own scheduler says {said}, and v_parameterization makes this training {prediction_type}.",)


def _free() -> None:
    """Give memory back now, not when the garbage collector next looks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
