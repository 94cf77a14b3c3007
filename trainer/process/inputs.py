"""What the draws and the VAE's posterior make of one another before the process does its part."""

from __future__ import annotations

from torch import Tensor

from trainer.process.draws import Draws, NoiseOptions
from trainer.process.noise import adaptive_strength, shape_noise


def posterior_sample(mean: Tensor, std: Tensor, normal: Tensor) -> Tensor:
    """Sample the VAE's posterior. Kingma & Welling 2014 (arXiv 1312.6114), section 2.4. All [b, ...]."""
    return mean + std * normal


def training_noise(draws: Draws, latents: Tensor, options: NoiseOptions) -> Tensor:
    """Return the noise [b,c,h,w] that the model is to find: drawn, and finished where that needs the latents."""
    if draws.offset is None or draws.offset_strength is None or not options.adaptive_noise_scale:
        return draws.noise
    strength = adaptive_strength(draws.offset_strength, latents, options.adaptive_noise_scale)
    return shape_noise(draws.noise, draws.offset, strength, draws.pyramid)
