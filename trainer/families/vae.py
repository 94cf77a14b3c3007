"""The VAE of a model: read from wherever it lies, and what a bundle does with it.

Kingma & Welling 2013; as latent models use it: Rombach et al. 2022.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from trainer.families.autocast import autocast
from trainer.families.family import Latents
from trainer.families.reading.configs import read_config
from trainer.families.reading.folders import component_folder
from trainer.families.reading.hub import download, weight_files
from trainer.families.reading.weights import Naming, best_names, build_empty, fill, fingerprint, open_weights
from trainer.families.unet import tiled_vae, weight_names
from trainer.families.unet.slim_blocks import slimmed
from trainer.ground.errors import ModelError
from trainer.memory import free_memory

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

Vae: TypeAlias = "AutoencoderKL | AutoencoderKLQwenImage"
"""What turns pictures into latents and back; the second counts frames too, of which a picture has one."""

_FLOAT32_NOTICE = (
    "The VAE gave numbers that are not finite in half precision and goes on in float32. "
    "no_half_vae = true avoids the detour."
)


def read_vae(
    config: Mapping[str, Any],
    paths: Sequence[Path],
    prefixes: Sequence[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: str,
) -> AutoencoderKL:
    """Load a VAE in the original layout, behind one of `prefixes` or alone, or in diffusers'.

    Args:
        source: where it comes from, for errors.

    Raises:
        ModelError: weights are missing or of other shapes.
    """
    module = build_empty(AutoencoderKL.from_config, dict(config))

    def behind(prefix: str) -> Callable[[str], str]:
        return lambda name: prefix + weight_names.vae_name(name, config)

    original = [behind(prefix) for prefix in (*prefixes, "")]
    namings: list[Naming] = [*original, lambda name: name, weight_names.vae_name_before_2023]
    with open_weights(*paths, dtype=dtype) as weights:
        names = best_names(weights, module, namings)
        vae = slimmed(fill(module, weights, names, device=device, dtype=dtype, source=source))
    # A CPU convolves pictures of so many pixels and few channels faster where a pixel's channels lie together.
    return vae.to(memory_format=torch.channels_last) if device.type == "cpu" else vae


def place_of_vae(source: str, known: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Path]]:
    """Return the configuration of the VAE that the setting `vae` names, and the files with its weights.

    Args:
        known: the configuration, as it was recognised; of a name on the hub the hub's is read.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = Path(source)
    if path.is_file():
        return known, [path]
    if path.is_dir():
        return known, weight_files(component_folder(path, "vae"))
    folder = component_folder(download(source, [""]), "vae")
    return read_config(folder / "config.json"), weight_files(folder)


class HasVae(ABC):
    """The part of a bundle that turns pictures into latents and back."""

    vae: Vae | None
    """None while it is released."""
    notices: tuple[str, ...]

    @property
    @abstractmethod
    def latents(self) -> Latents:
        """What the VAE makes of pictures, and how the model takes it."""

    @abstractmethod
    def load_vae(self, dtype: torch.dtype | None = None) -> Vae:
        """Load the VAE; `dtype` is what it is loaded in from now on, where it is given."""

    @cached_property
    def vae_key(self) -> str:
        """Fingerprint of the VAE's weights and dtype, as they are when it is first asked for. Reads every weight."""
        return fingerprint(self.vae or self.load_vae())

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's posterior. Large pictures are encoded alone and in strips.

        Args:
            pixels: [b, 3, H, W] in [-1, 1], sides divisible by 8.

        Returns:
            Two float32 tensors [b, c, H/8, W/8], not scaled, on the bundle's device.

        Raises:
            ModelError: the VAE gives numbers that are not finite, in float32 too.
        """
        mean, deviation = self._in_range(self.posterior, pixels)
        if not _finite(mean, deviation):
            raise ModelError("The VAE gives numbers that are not finite.", "Choose another VAE with the setting vae.")
        return mean, deviation

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the picture of latents as the model takes them, [b, c, h, w]: float32 [b, 3, 8h, 8w] in [-1, 1].

        Latents that are not finite, as a training gone wrong makes them, come out black.
        """
        (pixels,) = self._in_range(self.drawn, self.latents.from_model(latents))
        return pixels.nan_to_num(nan=-1).clamp(-1, 1)

    def release_vae(self) -> None:
        """Free the VAE. `encode_images` and `decode_latents` load it again."""
        self.vae = None
        free_memory()

    @staticmethod
    def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return what the VAE makes of pictures, mean and standard deviation, in float32."""
        if pixels.shape[-2] * pixels.shape[-1] > tiled_vae.LARGE:
            each = [tiled_vae.encode(vae, picture.to(vae.dtype)) for picture in pixels.split(1)]
            found = DiagonalGaussianDistribution(torch.cat(each))
        else:
            found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        return found.mean.float(), (0.5 * found.logvar.float()).exp()

    @staticmethod
    def drawn(vae: Any, latents: Tensor) -> tuple[Tensor, ...]:
        """Return the pictures that the VAE makes of its latents, in float32."""
        return (vae.decode(latents.to(vae.device, vae.dtype), return_dict=False)[0].float(),)

    def _in_range(self, work: _Work, values: Tensor) -> tuple[Tensor, ...]:
        """Run the VAE; where half precision overflows, go over to float32 for good and say so."""
        if self.vae is None:
            self.vae = self.load_vae()
        vae = self.vae
        # A VAE in float32 must stay so inside the caller's autocast.
        with autocast(vae.device, enabled=False):
            results = work(vae, values)
            if vae.dtype == torch.float32 or _finite(*results):
                return results
            if not _finite(values):
                return results
            self.notices = (*self.notices, _FLOAT32_NOTICE)
            self.vae = self.load_vae(torch.float32)
            return work(self.vae, values)


def _finite(*tensors: Tensor) -> bool:
    """Say whether all numbers are finite; tensors without numbers have none that is not."""
    return all(each.is_meta or bool(each.isfinite().all()) for each in tensors)


_Work = Callable[[Any, Tensor], tuple[Tensor, ...]]
