"""From latents and draws to the model's input and target."""

from __future__ import annotations

from torch import Tensor

from trainer.process.diffusion import TARGETS, NoiseSchedule, add_noise
from trainer.process.draws import Draws, NoiseOptions
from trainer.process.noise import adaptive_strength, shape_noise


def posterior_sample(mean: Tensor, std: Tensor, normal: Tensor) -> Tensor:
    """Sample the VAE's posterior. Kingma & Welling 2014 (arXiv 1312.6114), section 2.4. All [b,c,h,w]."""
    return mean + std * normal


def training_noise(draws: Draws, latents: Tensor, options: NoiseOptions) -> Tensor:
    """Return the noise [b,c,h,w] that the model is to find: drawn, and finished where that needs the latents."""
    if draws.offset is None or draws.offset_strength is None or not options.adaptive_noise_scale:
        return draws.noise
    strength = adaptive_strength(draws.offset_strength, latents, options.adaptive_noise_scale)
    return shape_noise(draws.noise, draws.offset, strength, draws.pyramid)


def corrupt(
    latents: Tensor, draws: Draws, schedule: NoiseSchedule, options: NoiseOptions, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """Return the model's input and its target, both [b,c,h,w] float32.

    Input perturbation (Ning et al. 2023, arXiv 2301.11706) goes into the input only; the target keeps the clean noise.
    sd-scripts does this in the latents' dtype, which under bf16 leaves 733 distinct noise levels; here it is float32.

    Args:
        latents: [b,c,h,w], scaled as the model takes them.
        draws: the micro-batch's, on the latents' device.
        schedule: on the latents' device.
        options: those that the draws were made with.
        prediction_type: a key of TARGETS.
    """
    latents = latents.float()
    noise = training_noise(draws, latents, options)
    perturbed = noise if draws.perturbation is None else noise + draws.perturbation
    noisy = add_noise(latents, perturbed, draws.timesteps, schedule.alphas_cumprod)
    return noisy, TARGETS[prediction_type](latents, noise, draws.timesteps, schedule.alphas_cumprod)
