"""What the rest of the program uses of a loaded model, whatever its family. No torch at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from trainer.targets import Target

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainer.families.conditions import Conditions
    from trainer.families.family import ComponentConfigs, Latents
    from trainer.families.reading.streamed import StreamedWeights
    from trainer.families.text.tokens import Tokens
    from trainer.process.process import Process


LOADING = "loading the model"
"""The phase in which a bundle's parts are read, as it is reported."""


class Bundle(Protocol):
    """The loaded models of one base model: frozen, in eval mode, in the compute dtype, on one device.

    Shapes: b pictures, H x W pixels, h x w latents with c channels. Nothing here decides about
    autocast or gradients; the caller does.
    """

    @property
    def family(self) -> str:
        """Name of the family."""

    @property
    def name(self) -> str:
        """File or folder name of the checkpoint, without the folders above it."""

    @property
    def device(self) -> torch.device:
        """Where the models are."""

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the frozen weights."""

    @property
    def process(self) -> Process:
        """What noise is and what is asked of the model, by the model's word and the settings'; on the CPU."""

    @property
    def latents(self) -> Latents:
        """What the VAE makes of pictures, and how the model takes it."""

    @property
    def vae_key(self) -> str:
        """Fingerprint of the VAE's weights and dtype, for caches of what it made."""

    @property
    def text_key(self) -> str:
        """Fingerprint of the text encoders' weights and of what is taken from them, for caches of what they made."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about this model, up to now."""

    streamed: StreamedWeights | None
    """The weights that come to the device when they are used; None where all of them are there."""

    @property
    def component_configs(self) -> ComponentConfigs:
        """How the components are built, in the form that diffusers and transformers take."""

    @property
    def components(self) -> Mapping[str, nn.Module]:
        """The modules that adapters attach to, by component name."""

    @property
    def tokenize(self) -> Callable[[str], Tokens]:
        """A picklable callable, independent of the models: text -> {encoder: {"ids": ..., "mask": ...}}, unbatched."""

    def targets(self, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to."""

    @property
    def conditions(self) -> Conditions:
        """What the model is told of a picture beside its latents and text."""

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """What `tokenize` gives, stacked to [b, ...] -> what `predict` takes, each [b, ...]; differentiable."""

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """[b, c, h, w], [b], text, conditions stacked to [b, ...] -> [b, c, h, w] in the compute dtype.

        `timesteps` is what the process tells the model: int64 from 0 to 999, or a float32 sigma from 0 to 1.
        """

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[b, 3, H, W] in [-1, 1] -> mean and standard deviation of the posterior, float32 [b, c, h, w], unscaled."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents as the model takes them, [b, c, h, w] -> float32 pixels [b, 3, H, W] in [-1, 1]."""

    def enable_gradient_checkpointing(self) -> None:
        """Trade a second forward pass for memory, in the UNet and the text encoders."""

    def largest_attention(self, width: int, height: int) -> tuple[int, int, int]:
        """Return heads, tokens and features of a head where the UNet attends to most pixels of such a picture."""

    def compile_blocks(self, backend: str | Callable[..., Any] | None) -> None:
        """Compile each block that the UNet repeats, at its first call; None takes it back."""

    def stream_weights(self, share: float) -> None:
        """Let this share of the denoiser's blocks, by bytes, come to the device from the computer's memory.

        Called once, when nothing reads weights outside of a pass any more; `to` brings the rest to a device.
        """

    def release_vae(self) -> None:
        """Free the VAE; it is loaded again when it is needed."""

    def release_text_encoders(self) -> None:
        """Free the text encoders; they are loaded again, without adapters, when they are needed."""

    def to(self, device: torch.device) -> None:
        """Move everything that is loaded, in place."""
