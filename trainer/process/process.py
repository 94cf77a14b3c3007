"""The contract of a process: all that training and previews know of noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.process.draws import Drawing, Draws
from trainer.process.loss import mean_of_each


@dataclass(frozen=True, slots=True)
class Noised:
    """What a micro-batch is to the model.

    Attributes:
        latents: [b, ...] float32, the input.
        timesteps: [b], what the model is told of the noise in it; see `trainer.process`.
        target: [b, ...] float32, what `Process.losses` compares with.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor


class Process(ABC):
    """What noise is, and what is asked of the model. Its tensors are on one device; see `to`."""

    name: ClassVar[str]
    """The kind's name."""
    prediction_type: str
    """What the model predicts, in diffusers' words: "epsilon", "v_prediction" or "flow_prediction"."""
    zero_terminal_snr: bool
    """True where the noise schedule was rescaled so that its last timestep is pure noise."""
    drawing: Drawing
    """Draws the random numbers of a micro-batch, on the CPU. Picklable: loader workers call it."""

    @abstractmethod
    def corrupt(self, latents: Tensor, draws: Draws) -> Noised:
        """Put noise on latents.

        Input perturbation (Ning et al. 2023, arXiv 2301.11706) goes into the input only; the target keeps the clean
        noise.

        Args:
            latents: [b, ...], scaled as the model takes them, any floating-point dtype.
            draws: those of `drawing`, on the latents' device.
        """

    @abstractmethod
    def elementwise(self, prediction: Tensor, noised: Noised) -> Tensor:
        """Return the loss of each element, [b, ...] float32, of a prediction of that shape in any dtype."""

    def as_target(self, prediction: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return what `elementwise` compares of a prediction, float32 [b, ...]: a target that it would meet exactly."""
        return prediction.float()

    @abstractmethod
    def timestep_weights(self, timesteps: Tensor) -> Tensor:
        """Return what a sample's loss is multiplied by for its timestep, [b] -> [b] float32."""

    def losses(
        self,
        prediction: Tensor,
        noised: Noised,
        sample_weights: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return one loss per sample, [b] float32: mean over its elements, times its own weight, times its timestep's.

        Their mean is the loss of the batch, as in sd-scripts.

        Args:
            prediction: [b, ...], what the model made of `noised`, any floating-point dtype.
            noised: what `corrupt` returned.
            sample_weights: [b], for instance prior_loss_weight for regularisation pictures; None = 1.
            mask: [b, 1, ...] from 0 to 1, what each element's loss counts; None = 1. The mean is over all elements all
                the same, as in sd-scripts.
        """
        losses = mean_of_each(self.elementwise(prediction, noised), mask)
        if sample_weights is not None:
            losses = losses * sample_weights
        return losses * self.timestep_weights(noised.timesteps)

    @abstractmethod
    def to(self, device: torch.device | str) -> Process:
        """Return the process with its tensors on a device."""

    @abstractmethod
    def sampling(self, parameters: Container[str]) -> dict[str, Any]:
        """Return what a scheduler of diffusers is built with, to go down the levels that training goes up.

        Args:
            parameters: the names that the scheduler's class takes.
        """

    @abstractmethod
    def sampling_steps(self, steps: int, shape: Sequence[int]) -> dict[str, Any]:
        """Return what the scheduler's `set_timesteps` takes, for so many steps and latents of [c, ...]."""

    @abstractmethod
    def told(self, timestep: Tensor) -> Tensor:
        """Return what the model is told where a scheduler is at `timestep`."""
