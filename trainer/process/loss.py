"""One loss per sample, and its weight by timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from trainer.process.diffusion import TIMESTEPS, per_sample

SNR_LIMIT = 1000.0
"""The debiased and velocity-scale weights take no larger signal-to-noise ratio than this, as in sd-scripts."""


@dataclass(frozen=True, slots=True)
class LossOptions:
    """How a prediction is compared with its target. `prediction_type` is the model's, the other names the settings'.

    `weights` are the values of the settings that TIMESTEP_WEIGHTS are named after; off where missing, None, 0 or False.
    """

    prediction_type: str = "epsilon"
    loss_type: str = "l2"
    huber_schedule: str = "snr"
    huber_c: float = 0.1
    huber_scale: float = 1.0
    weights: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_section(cls, section: object, *, prediction_type: str) -> LossOptions:
        """Take the fields of the same names from the settings' [loss] section."""
        own = [each.name for each in fields(cls) if each.name not in ("prediction_type", "weights")]
        weights = {name: getattr(section, name) for name in TIMESTEP_WEIGHTS}
        return cls(prediction_type=prediction_type, weights=weights, **{name: getattr(section, name) for name in own})


def _squared(difference: Tensor) -> Tensor:
    return difference**2


PLAIN_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"l2": _squared, "l1": Tensor.abs}


def pseudo_huber(difference: Tensor, threshold: Tensor) -> Tensor:
    """Return 2c (sqrt(d^2 + c^2) - c): d^2 for small differences d, 2c |d| for large. Charbonnier et al. 1997.

    The form without cancellation would be more exact for tiny d; this one gives sd-scripts' digits.
    """
    return 2.0 * threshold * (torch.sqrt(difference**2 + threshold**2) - threshold)


def pseudo_smooth_l1(difference: Tensor, threshold: Tensor) -> Tensor:
    """Return 2 (sqrt(d^2 + c^2) - c): the pseudo-Huber loss over c, which is 2 |d| for large differences."""
    return 2.0 * (torch.sqrt(difference**2 + threshold**2) - threshold)


HUBER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"huber": pseudo_huber, "smooth_l1": pseudo_smooth_l1}


def _constant_threshold(timesteps: Tensor, alpha_bar: Tensor, options: LossOptions) -> Tensor:
    return torch.full_like(alpha_bar, options.huber_c * options.huber_scale)


def _exponential_threshold(timesteps: Tensor, alpha_bar: Tensor, options: LossOptions) -> Tensor:
    return torch.exp(math.log(options.huber_c) / TIMESTEPS * timesteps) * options.huber_scale


def _snr_threshold(timesteps: Tensor, alpha_bar: Tensor, options: LossOptions) -> Tensor:
    sigma = ((1.0 - alpha_bar) / alpha_bar).sqrt()
    return (1.0 - options.huber_c) / (1.0 + sigma) ** 2 + options.huber_c


HUBER_SCHEDULES: dict[str, Callable[[Tensor, Tensor, LossOptions], Tensor]] = {
    "constant": _constant_threshold,
    "exponential": _exponential_threshold,
    "snr": _snr_threshold,
}


def huber_threshold(timesteps: Tensor, alpha_bar: Tensor, options: LossOptions) -> Tensor:
    """Return the difference [b] at which the Huber losses turn from square to linear.

    `timesteps` [b] are from 0 to 1000, whole or not; `alpha_bar` [b] is the signal's share of the variance there.

    Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss"
    (arXiv 2403.16728). The "snr" schedule does not use `huber_scale`, as in sd-scripts.
    """
    return HUBER_SCHEDULES[options.huber_schedule](timesteps, alpha_bar, options)


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Return min(SNR, gamma) / SNR, and for velocity min(SNR, gamma) / (SNR + 1).

    Hang et al. 2023 (arXiv 2303.09556), section 3.4.
    """
    return snr.clamp(max=gamma) / (snr + 1.0 if prediction_type == "v_prediction" else snr)


def velocity_weight(snr: Tensor, on: float = 1.0, prediction_type: str = "v_prediction") -> Tensor:
    """Return SNR / (SNR + 1), which weights a velocity loss as the noise loss would be; SNR to SNR_LIMIT."""
    limited = snr.clamp(max=SNR_LIMIT)
    return limited / (limited + 1.0)


def velocity_like_weight(snr: Tensor, strength: float, prediction_type: str) -> Tensor:
    """Return 1 + strength (SNR + 1) / SNR, which adds so much of what the velocity loss would be; SNR to SNR_LIMIT."""
    return 1.0 + strength / velocity_weight(snr)


def debiased_weight(snr: Tensor, on: float, prediction_type: str) -> Tensor:
    """Return 1 / sqrt(SNR), and for velocity 1 / (SNR + 1); SNR to SNR_LIMIT.

    Yu et al. 2023, "Unmasking Bias in Diffusion Model Training" (arXiv 2310.08442), eq. 12.
    """
    limited = snr.clamp(max=SNR_LIMIT)
    return 1.0 / (limited + 1.0) if prediction_type == "v_prediction" else limited.rsqrt()


TimestepWeight = Callable[[Tensor, float, str], Tensor]
"""From the SNR [b], the setting's value and the prediction type to a weight [b]."""

TIMESTEP_WEIGHTS: Mapping[str, TimestepWeight] = {
    "min_snr_gamma": min_snr_weight,
    "scale_v_pred_loss_like_noise_pred": velocity_weight,
    "v_pred_like_loss": velocity_like_weight,
    "debiased_estimation_loss": debiased_weight,
}
"""What multiplies a sample's loss at its timestep, by the setting of [loss] that asks for it, in sd-scripts' order."""


def timestep_weights(snr: Tensor, options: LossOptions) -> Tensor:
    """Return the weight [b] of each sample's loss; `snr` [b] is the original schedule's at its timestep."""
    weights = torch.ones_like(snr)
    for name, weight in TIMESTEP_WEIGHTS.items():
        if value := options.weights.get(name):
            weights = weights * weight(snr, value, options.prediction_type)
    return weights


def elementwise_loss(
    prediction: Tensor, target: Tensor, options: LossOptions, threshold: Callable[[], Tensor]
) -> Tensor:
    """Return the loss of each element, [b, ...] float32. `threshold` gives [b], where the Huber losses ask for it."""
    difference = prediction.float() - target.float()
    if options.loss_type in PLAIN_LOSSES:
        return PLAIN_LOSSES[options.loss_type](difference)
    return HUBER_LOSSES[options.loss_type](difference, per_sample(threshold(), difference))


def mean_of_each(losses: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean [b] over all but the first dimension of [b, ...], times `mask` [b, 1, ...] before."""
    if mask is not None:
        losses = losses * mask
    return losses.mean(dim=tuple(range(1, losses.dim())))
