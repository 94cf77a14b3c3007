"""The noise schedule, and what it makes of latents and noise: the model's input and its target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TIMESTEPS = 1000


def alphas_cumprod(beta_start: float = 0.00085, beta_end: float = 0.012, timesteps: int = TIMESTEPS) -> Tensor:
    """Return alpha-bar [timesteps] float32 of Stable Diffusion's schedule: betas whose square roots are evenly spaced.

    Ho et al. 2020 (arXiv 2006.11239), eq. 4; the spacing is Rombach et al. 2022 (arXiv 2112.10752).
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def rescale_to_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Return alpha-bar shifted and scaled so that the last timestep is pure noise and the first is unchanged.

    Lin et al. 2024 (arXiv 2305.08891), algorithm 1.
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0], root[-1]
    return ((root - last) * (first / (first - last))) ** 2


def signal_to_noise_ratio(alphas_cumprod: Tensor) -> Tensor:
    """Return alpha-bar / (1 - alpha-bar), elementwise. Kingma et al. 2021 (arXiv 2107.00630), eq. 3."""
    return (alphas_cumprod.sqrt() / (1.0 - alphas_cumprod).sqrt()) ** 2


@dataclass(frozen=True, slots=True)
class NoiseSchedule:
    """What is looked up by timestep: alpha-bar, by which noise is added, and the SNR that weights the loss.

    Both [timesteps] float32. With zero terminal SNR alpha-bar is rescaled and `snr` is still the original schedule's,
    as in sd-scripts: the weights stay finite.
    """

    alphas_cumprod: Tensor
    snr: Tensor

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """Return the schedule on a device."""
        return NoiseSchedule(self.alphas_cumprod.to(device), self.snr.to(device))


def noise_schedule(alphas_cumprod: Tensor, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Make the schedule of a run from the model's alpha-bar [timesteps]."""
    original = alphas_cumprod.float()
    rescaled = rescale_to_zero_terminal_snr(original) if zero_terminal_snr else original
    return NoiseSchedule(rescaled, signal_to_noise_ratio(original))


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return x_t = sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) noise, [b,c,h,w]. Ho et al. 2020, eq. 4."""
    alpha_bar = per_sample(alphas_cumprod[timesteps], latents)
    return alpha_bar.sqrt() * latents + (1.0 - alpha_bar).sqrt() * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) x_0, [b,c,h,w].

    Salimans & Ho 2022 (arXiv 2202.00512), section 4.
    """
    alpha_bar = per_sample(alphas_cumprod[timesteps], latents)
    return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * latents


def _noise_target(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    return noise


TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": _noise_target,
    "v_prediction": velocity,
}


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View [b] so that it broadcasts over [b, ...]."""
    return values.view(-1, *(1,) * (like.dim() - 1))
