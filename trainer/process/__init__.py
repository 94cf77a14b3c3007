"""The mathematics of the training objective: noise, timesteps, noisy latents, targets, and one loss per sample.

Pure functions on tensors. Random numbers enter in one place, `draw`, and are a function of (seed, step, slot) alone;
everything after it is arithmetic in float32, which waits for no device. The order within a step:

    draws = draw(shape, step, slots, seed=..., options=noise_options)               # on the CPU, in a loader worker
    latents = posterior_sample(mean, std, draws.posterior) * vae_scale
    noisy, target = corrupt(latents, draws, schedule, noise_options, prediction_type)
    losses = sample_losses(prediction, target, draws.timesteps, schedule, loss_options, sample_weights)

An option that is None or 0 is off, as in sd-scripts, whose numbers are reproduced; where ours differ the docstring
says so. Shapes: b samples, c channels, h x w latent pixels; a schedule has 1000 timesteps.
"""

from __future__ import annotations

from trainer.process.diffusion import (
    NoiseSchedule,
    add_noise,
    alphas_cumprod,
    noise_schedule,
    rescale_to_zero_terminal_snr,
    signal_to_noise_ratio,
    velocity,
)
from trainer.process.draws import Draws, NoiseOptions, draw
from trainer.process.inputs import corrupt, posterior_sample, training_noise
from trainer.process.loss import (
    HUBER_LOSSES,
    HUBER_SCHEDULES,
    PLAIN_LOSSES,
    LossOptions,
    elementwise_loss,
    huber_threshold,
    sample_losses,
    timestep_weights,
)

__all__ = [
    "HUBER_LOSSES",
    "HUBER_SCHEDULES",
    "PLAIN_LOSSES",
    "Draws",
    "LossOptions",
    "NoiseOptions",
    "NoiseSchedule",
    "add_noise",
    "alphas_cumprod",
    "corrupt",
    "draw",
    "elementwise_loss",
    "huber_threshold",
    "noise_schedule",
    "posterior_sample",
    "rescale_to_zero_terminal_snr",
    "sample_losses",
    "signal_to_noise_ratio",
    "timestep_weights",
    "training_noise",
    "velocity",
]
