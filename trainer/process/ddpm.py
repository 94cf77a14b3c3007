"""Ho et al.'s diffusion, as Stable Diffusion has it: 1000 timesteps, and a model that predicts noise or velocity."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from trainer.process.diffusion import TARGETS, NoiseSchedule, add_noise, noise_schedule
from trainer.process.draws import Drawing, Draws, NoiseOptions, UniformTimesteps
from trainer.process.inputs import training_noise
from trainer.process.kinds import DDPM, Settings
from trainer.process.loss import LossOptions, elementwise_loss, huber_threshold, timestep_weights
from trainer.process.process import Noised, Process

_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")


_LEAST_SIGNAL = 2.0**-24
"""What stands for an alpha-bar of 0 where it is divided by, as in those of diffusers' schedulers that rescale betas."""


def _betas_of(alphas_cumprod: Tensor) -> list[float]:
    """Return the betas that an alpha-bar comes from, its last one not quite 0."""
    levels = alphas_cumprod.double().cpu().clamp(min=_LEAST_SIGNAL)
    return (1.0 - torch.cat([levels[:1], levels[1:] / levels[:-1]])).tolist()


@dataclass(frozen=True, slots=True)
class Ddpm(Process):
    """Noise by a schedule of alpha-bar. The model is told the timestep, int64 [b] from 0 to 999.

    `betas` is what of the model's scheduler says how alpha-bar comes about, in diffusers' words. `zero_terminal_snr`:
    the last timestep is pure noise, because the model says so or the setting does.
    """

    name: ClassVar[str] = DDPM.name

    prediction_type: str
    schedule: NoiseSchedule
    loss: LossOptions
    drawing: Drawing
    betas: Mapping[str, Any]
    zero_terminal_snr: bool

    @classmethod
    def of_model(cls, scheduler: Mapping[str, Any], settings: Settings, prediction_type: str) -> Ddpm:
        """Make the process of a model; see `ProcessKind.build`."""
        noise = settings.noise
        original = DDPMScheduler.from_config({**scheduler, "rescale_betas_zero_snr": False}).alphas_cumprod
        zero_terminal_snr = bool(noise.zero_terminal_snr or scheduler.get("rescale_betas_zero_snr"))
        return cls(
            prediction_type=prediction_type,
            schedule=noise_schedule(original, zero_terminal_snr=zero_terminal_snr),
            loss=LossOptions.from_section(settings.loss, prediction_type=prediction_type),
            drawing=Drawing(NoiseOptions.from_section(noise), UniformTimesteps(noise.min_timestep, noise.max_timestep)),
            betas={key: scheduler[key] for key in _BETAS},
            zero_terminal_snr=zero_terminal_snr,
        )

    def corrupt(self, latents: Tensor, draws: Draws) -> Noised:
        """Put noise on latents; see `Process.corrupt`.

        sd-scripts does this in the latents' dtype, which under bf16 leaves 733 distinct noise levels; here it is
        float32.
        """
        latents, levels = latents.float(), self.schedule.alphas_cumprod
        noise = training_noise(draws, latents, self.drawing.options)
        perturbed = noise if draws.perturbation is None else noise + draws.perturbation
        noisy = add_noise(latents, perturbed, draws.timesteps, levels)
        target = TARGETS[self.prediction_type](latents, noise, draws.timesteps, levels)
        return Noised(noisy, draws.timesteps, target)

    def elementwise(self, prediction: Tensor, noised: Noised) -> Tensor:
        """Return the loss of each element; see `Process.elementwise`."""
        timesteps, levels = noised.timesteps, self.schedule.alphas_cumprod
        return elementwise_loss(
            prediction,
            noised.target,
            self.loss,
            lambda: huber_threshold(timesteps, levels[timesteps], self.loss),
        )

    def timestep_weights(self, timesteps: Tensor) -> Tensor:
        """Return the weight of each timestep; see `Process.timestep_weights`."""
        return timestep_weights(self.schedule.snr[timesteps], self.loss)

    def to(self, device: torch.device | str) -> Ddpm:
        """Return the process with its schedule on a device."""
        return replace(self, schedule=self.schedule.to(device))

    def sampling(self, parameters: Container[str]) -> dict[str, Any]:
        """Return what a scheduler is built with; see `Process.sampling`."""
        options = {**self.betas, "prediction_type": self.prediction_type}
        if not self.zero_terminal_snr:
            return options
        if "timestep_spacing" in parameters:
            options["timestep_spacing"] = "trailing"
        if "rescale_betas_zero_snr" in parameters:
            return {**options, "rescale_betas_zero_snr": True}
        return {**options, "trained_betas": _betas_of(self.schedule.alphas_cumprod)}

    def sampling_steps(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        """Return the number of steps: what they are is the scheduler's own."""
        return {"num_inference_steps": steps}

    def told(self, timestep: Tensor) -> Tensor:
        """Return the timestep."""
        return timestep
