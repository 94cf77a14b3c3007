"""Rectified flow (Liu et al. 2023, arXiv 2209.03003): latents and noise on a line, and the model says its direction.

sigma is the place on the line: 0 the picture, 1 pure noise. How it is drawn follows Esser et al. 2024 (arXiv
2403.03206) and sd-scripts (library/flux_train_utils.py), whose numbers are reproduced in float32; there the model is
told a sigma rounded to the weights' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.process.diffusion import TIMESTEPS, per_sample
from trainer.process.draws import Drawing, Draws, NoiseOptions, Numbers
from trainer.process.kinds import FLOW, Settings
from trainer.process.loss import LossOptions, elementwise_loss, huber_threshold
from trainer.process.process import Noised, Process

FLOW_PREDICTION = "flow_prediction"
RAW = "raw"
"""The value of `model_prediction_type` that compares the model's output as it is."""


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """Which sigmas are trained and what is made of the model's output. The names are the settings'."""

    timestep_sampling: str = "sigmoid"
    sigmoid_scale: float = 1.0
    discrete_flow_shift: float = 3.0
    weighting_scheme: str = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    model_prediction_type: str = RAW

    @classmethod
    def from_section(cls, section: object) -> FlowOptions:
        """Take the fields of the same names from the settings' [flow] section."""
        return cls(**{field.name: getattr(section, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class ShiftBySize:
    """How far sigmas are shifted towards noise where the number of tokens says it: mu on a line through two points.

    The names and numbers are those of diffusers' FlowMatchEulerDiscreteScheduler, as published with FLUX.1.
    """

    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def mu(self, tokens: int) -> float:
        """Return the logarithm of the shift for so many tokens. The line goes on beyond both points."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)


SHIFT_OF_FLUX = ShiftBySize()
"""What `flux_shift` goes by, whatever the model."""


def shifted(sigmas: Tensor, shift: float) -> Tensor:
    """Return sigmas moved towards 1 (shift > 1) or 0; 0 and 1 stay. Esser et al. 2024, section 5.3.2."""
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def tokens_of(shape: Sequence[int], patch: int) -> int:
    """Return how many tokens latents of [..., h, w] are to a model that takes patch x patch of them as one."""
    return (shape[-2] // patch) * (shape[-1] // patch)


# --- which sigmas ----------------------------------------------------------------------------------------------------


def _uniform(random: Tensor, options: FlowOptions, tokens: int) -> Tensor:
    return random


def _sigmoid(random: Tensor, options: FlowOptions, tokens: int) -> Tensor:
    return torch.sigmoid(options.sigmoid_scale * random)


def _shift(random: Tensor, options: FlowOptions, tokens: int) -> Tensor:
    return shifted(_sigmoid(random, options, tokens), options.discrete_flow_shift)


def _flux_shift(random: Tensor, options: FlowOptions, tokens: int) -> Tensor:
    return shifted(_sigmoid(random, options, tokens), math.exp(SHIFT_OF_FLUX.mu(tokens)))


def _logit_normal(random: Tensor, options: FlowOptions) -> Tensor:
    return torch.sigmoid(options.logit_mean + options.logit_std * random)


def _mode(random: Tensor, options: FlowOptions) -> Tensor:
    return 1 - random - options.mode_scale * (torch.cos(math.pi * random / 2) ** 2 - 1 + random)


DENSITIES: Mapping[str, Callable[[Tensor, FlowOptions], Tensor]] = {"logit_normal": _logit_normal, "mode": _mode}
"""What a weighting scheme makes of the random number, where it acts on which sigmas are drawn (Esser et al., 3.1)."""


def _sigma(random: Tensor, options: FlowOptions, tokens: int) -> Tensor:
    """Look up one of 1000 sigmas, shifted, from 1 down: a small number means much noise."""
    density = DENSITIES.get(options.weighting_scheme)
    share = random if density is None else density(random, options)
    # A share of exactly 1, which rounding makes of a large number, would lie behind the table's end.
    index = (share * TIMESTEPS).long().clamp(0, TIMESTEPS - 1)
    return shifted((TIMESTEPS - index).float() / TIMESTEPS, options.discrete_flow_shift)


SAMPLINGS: Mapping[str, Callable[[Tensor, FlowOptions, int], Tensor]] = {
    "sigma": _sigma,
    "uniform": _uniform,
    "sigmoid": _sigmoid,
    "shift": _shift,
    "flux_shift": _flux_shift,
}
"""{timestep_sampling: from random numbers, of the kind `takes_normal` says, and the number of tokens to sigmas}."""


def takes_normal(options: FlowOptions) -> bool:
    """Say whether sigmas come from standard normal numbers, else from uniform ones in [0, 1)."""
    if options.timestep_sampling == "sigma":
        return options.weighting_scheme == "logit_normal"
    return options.timestep_sampling != "uniform"


@dataclass(frozen=True, slots=True)
class Sigmas:
    """Draws the sigma of a sample. `patch` latent pixels are the side of one token."""

    options: FlowOptions
    patch: int = 1

    def __call__(self, numbers: Numbers, shape: Sequence[int]) -> Tensor:
        """Return one sigma, float32, shape []."""
        random = numbers.normal("timestep", ()) if takes_normal(self.options) else numbers.share("timestep")
        return self._of(random, shape)

    def at(self, share: float, shape: Sequence[int]) -> Tensor:
        """Return the sigma, float32, shape [], that the random number at this quantile leads to."""
        random = torch.tensor(share, dtype=torch.float32)
        return self._of(torch.special.ndtri(random) if takes_normal(self.options) else random, shape)

    def _of(self, random: Tensor, shape: Sequence[int]) -> Tensor:
        sigma = SAMPLINGS[self.options.timestep_sampling](random, self.options, tokens_of(shape, self.patch))
        return sigma.clamp(0.0, 1.0)  # rounding may take it over the edge


# --- what is asked of the model --------------------------------------------------------------------------------------


def _raw(output: Tensor, noisy: Tensor, sigmas: Tensor) -> Tensor:
    return output


def _additive(output: Tensor, noisy: Tensor, sigmas: Tensor) -> Tensor:
    return output + noisy


def _sigma_scaled(output: Tensor, noisy: Tensor, sigmas: Tensor) -> Tensor:
    return noisy - sigmas * output


PREDICTIONS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    RAW: _raw,
    "additive": _additive,
    "sigma_scaled": _sigma_scaled,
}
"""{model_prediction_type: what is compared with the target, of the model's output, its input and sigma}."""


def _inverse_square(sigmas: Tensor) -> Tensor:
    return sigmas**-2.0


def _cosmap(sigmas: Tensor) -> Tensor:
    return 2.0 / (math.pi * (1.0 - 2.0 * sigmas + 2.0 * sigmas**2))


WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {"sigma_sqrt": _inverse_square, "cosmap": _cosmap}
"""What a weighting scheme multiplies a sample's loss by, where it is one of those that do."""


def flow_weights(sigmas: Tensor, options: FlowOptions, *, weighted: bool = False) -> Tensor:
    """Return the weight [b] of each sample's loss.

    As in sd-scripts it is 1 but for the output `sigma_scaled`, or for a model whose losses are `weighted` always.
    """
    weight = WEIGHTS.get(options.weighting_scheme)
    if weight is None or not (weighted or options.model_prediction_type == "sigma_scaled"):
        return torch.ones_like(sigmas)
    return weight(sigmas)


@dataclass(frozen=True, slots=True)
class Flow(Process):
    """Latents and noise mixed by sigma. The model is told sigma, float32 [b] from 0 to 1.

    The target is noise minus latents. `scheduler` is the model's own, for drawing. `weighted`: see `ProcessKind.build`.
    """

    name: ClassVar[str] = FLOW.name
    prediction_type: ClassVar[str] = FLOW_PREDICTION  # type: ignore[misc]
    zero_terminal_snr: ClassVar[bool] = False  # type: ignore[misc]

    options: FlowOptions
    loss: LossOptions
    drawing: Drawing
    scheduler: Mapping[str, Any]
    patch: int = 1
    weighted: bool = False

    @classmethod
    def of_model(cls, scheduler: Mapping[str, Any], settings: Settings, patch: int, *, weighted: bool = False) -> Flow:
        """Make the process of a model; see `ProcessKind.build`.

        Of the settings of noise the input perturbation acts; the others belong to `ddpm`, as in sd-scripts.
        """
        noise, options = settings.noise, FlowOptions.from_section(settings.flow)
        if weighted:
            options = replace(options, model_prediction_type=RAW)
        perturbation = NoiseOptions(
            ip_noise_gamma=noise.ip_noise_gamma, ip_noise_gamma_random_strength=noise.ip_noise_gamma_random_strength
        )
        loss = LossOptions.from_section(settings.loss, prediction_type=FLOW_PREDICTION)
        return cls(options, loss, Drawing(perturbation, Sigmas(options, patch)), scheduler, patch, weighted)

    def corrupt(self, latents: Tensor, draws: Draws) -> Noised:
        """Put noise on latents; see `Process.corrupt`."""
        latents = latents.float()
        sigmas = per_sample(draws.timesteps, latents)
        perturbed = draws.noise if draws.perturbation is None else draws.noise + draws.perturbation
        return Noised((1.0 - sigmas) * latents + sigmas * perturbed, draws.timesteps, draws.noise - latents)

    def elementwise(self, prediction: Tensor, noised: Noised) -> Tensor:
        """Return the loss of each element; see `Process.elementwise`."""
        predicted = self.as_target(prediction, noised.latents, noised.timesteps)
        return elementwise_loss(predicted, noised.target, self.loss, lambda: self._threshold(noised.timesteps))

    def as_target(self, prediction: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return what is compared of an output; see `Process.as_target`."""
        read = PREDICTIONS[self.options.model_prediction_type]
        return read(prediction.float(), latents, per_sample(timesteps, latents))

    def timestep_weights(self, timesteps: Tensor) -> Tensor:
        """Return the weight of each sigma; see `Process.timestep_weights`."""
        return flow_weights(timesteps, self.options, weighted=self.weighted)

    def _threshold(self, sigmas: Tensor) -> Tensor:
        # What alpha-bar is where signal and noise are as here, but for their common size.
        alpha_bar = (1.0 - sigmas) ** 2 / ((1.0 - sigmas) ** 2 + sigmas**2)
        return huber_threshold(sigmas * TIMESTEPS, alpha_bar, self.loss)

    def to(self, device: torch.device | str) -> Flow:
        """Return the process itself, which has no tensors."""
        return self

    def sampling(self, parameters: Container[str]) -> dict[str, Any]:
        """Return what of the model's scheduler the class takes; see `Process.sampling`.

        A LoRA is drawn with as it is used elsewhere: the model's output is the direction, whatever
        `model_prediction_type` made of it in training.
        """
        return {key: value for key, value in self.scheduler.items() if key in parameters}

    def sampling_steps(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        """Return equal steps from 1 down to 0, and how far they are shifted where the size says it."""
        wanted: dict[str, Any] = {"sigmas": [1.0 - step / steps for step in range(steps)]}
        if self.scheduler.get("use_dynamic_shifting"):
            known = {field.name for field in fields(ShiftBySize)}
            shift = ShiftBySize(**{key: value for key, value in self.scheduler.items() if key in known})
            wanted["mu"] = shift.mu(tokens_of(shape, self.patch))
        return wanted

    def told(self, timestep: Tensor) -> Tensor:
        """Return sigma: diffusers counts it in thousandths."""
        return timestep / TIMESTEPS
