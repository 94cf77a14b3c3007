"""The random numbers of a micro-batch, as a function of (seed, step, slot)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from trainer.ground.randomness import python_random, stream
from trainer.process.diffusion import TIMESTEPS
from trainer.process.noise import pyramid_noise, pyramid_sizes, shape_noise


@dataclass(frozen=True, slots=True)
class NoiseOptions:
    """What noise is drawn. The names are the settings'."""

    noise_offset: float | None = None
    noise_offset_random_strength: bool = False
    adaptive_noise_scale: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float = 0.3
    ip_noise_gamma: float | None = None
    ip_noise_gamma_random_strength: bool = False

    @classmethod
    def from_section(cls, section: object) -> NoiseOptions:
        """Take the fields of the same names from the settings' [noise] section."""
        return cls(**{field.name: getattr(section, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of a micro-batch, stacked over its samples. Picklable; float32 but for the timesteps.

    Attributes:
        noise: [b, ...]; with offset and pyramid applied, unless `offset` is there.
        posterior: [b, ...] standard normal, to sample the VAE's posterior with.
        timesteps: [b], what the model is told: int64 timesteps with `ddpm`, float32 sigmas with `flow`.
        perturbation: [b, ...] or None; added to the noise in the model's input only.
        offset: [b,c,1,1] standard normal, only where its strength depends on the latents.
        offset_strength: [b,1,1,1], with `offset`.
        pyramid: [b,c,h,w], with `offset` where multires noise is on.
    """

    noise: Tensor
    posterior: Tensor
    timesteps: Tensor
    perturbation: Tensor | None = None
    offset: Tensor | None = None
    offset_strength: Tensor | None = None
    pyramid: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Draws:
        """Return the draws on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Draws:
        """Return the draws in pinned memory, from which a copy to the GPU does not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Draws:
        tensors = (getattr(self, field.name) for field in fields(self))
        return Draws(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]


def joined(each: Sequence[Draws]) -> Draws:
    """Return the random numbers of several micro-batches of one shape as those of one."""
    columns = ([getattr(draws, field.name) for draws in each] for field in fields(Draws))
    return Draws(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


class TimestepRule(Protocol):
    """How the timestep of a sample is drawn. Picklable."""

    def __call__(self, numbers: Numbers, shape: Sequence[int]) -> Tensor:
        """Return one timestep, shape [], for a sample whose latents have `shape`, [c, ...]."""

    def at(self, share: float, shape: Sequence[int]) -> Tensor:
        """Return the timestep, shape [], that chance puts in place `share`, 0 to below 1, of all that it draws."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Draws micro-batches: what noise, and by which rule the timesteps. Picklable."""

    options: NoiseOptions
    timesteps: TimestepRule

    def __call__(
        self,
        shape: Sequence[int],
        step: int,
        slots: Sequence[int],
        timesteps: Sequence[tuple[int, int]] | None = None,
        *,
        seed: int,
    ) -> Draws:
        """Draw every random number of a micro-batch, on the CPU.

        A sample's numbers depend on (seed, step, slot) and its own shape, never on its neighbours: strengths are
        drawn, and variances measured, per sample, where sd-scripts does both once per batch.

        Args:
            shape: (b, c, ...) of the latents.
            step: the optimizer step, from 0.
            slots: each sample's place in the global effective batch, b of them.
            timesteps: for each sample the lowest and the one above the highest, where they are not the run's.
            seed: the run's seed.
        """
        batch, *sample_shape = shape
        rules = [UniformTimesteps(*each) for each in timesteps] if timesteps else [self.timesteps] * batch
        samples = [
            self._sample(tuple(sample_shape), Numbers(seed, step, slot), rule)
            for slot, rule in zip(slots, rules, strict=True)
        ]
        stacked = (_stack([getattr(sample, field.name) for sample in samples]) for field in fields(Draws))
        return Draws(*stacked)  # type: ignore[arg-type]

    def _sample(self, shape: tuple[int, ...], numbers: Numbers, rule: TimestepRule) -> Draws:
        """Draw for one sample of `shape` (c, ...); the results have no batch dimension."""
        options = self.options
        noise = numbers.normal("noise", shape)
        offset, strength, pyramid = None, None, None
        if options.noise_offset:
            offset = numbers.normal("offset", (shape[0], 1, 1))
            random_strength = numbers.uniform("offset strength") if options.noise_offset_random_strength else 1.0
            strength = torch.full((1, 1, 1), options.noise_offset * random_strength)
        if options.multires_noise_iterations:
            pyramid = _draw_pyramid(shape, numbers, options)
        waits_for_latents = offset is not None and bool(options.adaptive_noise_scale)
        if not waits_for_latents:
            noise, offset, strength, pyramid = shape_noise(noise, offset, strength, pyramid), None, None, None
        return Draws(
            noise=noise,
            posterior=numbers.normal("posterior", shape),
            timesteps=rule(numbers, shape),
            perturbation=_draw_perturbation(shape, numbers, options),
            offset=offset,
            offset_strength=strength,
            pyramid=pyramid,
        )


def _draw_pyramid(shape: tuple[int, ...], numbers: Numbers, options: NoiseOptions) -> Tensor:
    channels, height, width = shape
    random_ratio = python_random(numbers.seed, numbers.step, numbers.slot, "pyramid").random
    ratios = (2.0 + 2.0 * random_ratio() for _ in range(options.multires_noise_iterations or 0))
    generator = numbers.generator("pyramid")
    levels = [torch.randn((channels, *size), generator=generator) for size in pyramid_sizes(height, width, ratios)]
    return pyramid_noise(levels, options.multires_noise_discount)


def _draw_perturbation(shape: tuple[int, ...], numbers: Numbers, options: NoiseOptions) -> Tensor | None:
    if not options.ip_noise_gamma:
        return None
    random_strength = numbers.uniform("perturbation strength") if options.ip_noise_gamma_random_strength else 1.0
    return options.ip_noise_gamma * random_strength * numbers.normal("perturbation", shape)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The random numbers of one sample, an independent stream for each purpose."""

    seed: int
    step: int
    slot: int

    def generator(self, purpose: str) -> torch.Generator:
        """Return torch's generator of a purpose."""
        return torch.Generator().manual_seed(stream(self.seed, self.step, self.slot, purpose))

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers, float32."""
        return torch.randn(tuple(shape), generator=self.generator(purpose), dtype=torch.float32)

    def share(self, purpose: str) -> Tensor:
        """Return a number uniform in [0, 1). Shape [], float32."""
        return torch.rand((), generator=self.generator(purpose), dtype=torch.float32)

    def uniform(self, purpose: str) -> float:
        """Return a number uniform in [0, 1)."""
        return python_random(self.seed, self.step, self.slot, purpose).random()

    def integer(self, purpose: str, low: int, high: int) -> Tensor:
        """Return a number uniform in [low, high), `low` where the two are equal. Shape [], int64."""
        return torch.randint(low, max(high, low + 1), (), generator=self.generator(purpose))


@dataclass(frozen=True, slots=True)
class UniformTimesteps:
    """Timesteps from `low` to below `high`, each as likely as the other."""

    low: int = 0
    high: int = TIMESTEPS

    def __call__(self, numbers: Numbers, shape: Sequence[int]) -> Tensor:
        """Return one timestep, int64, shape []."""
        return numbers.integer("timestep", self.low, self.high)

    def at(self, share: float, shape: Sequence[int]) -> Tensor:
        """Return the timestep, int64, shape [], below which lies `share` of them."""
        return torch.tensor(self.low + int(share * (self.high - self.low)))


@dataclass(frozen=True, slots=True)
class PlacedTimesteps:
    """In place of chance: a sample's slot says which of the `shares`, 0 to below 1, of all timesteps it stands at."""

    rule: TimestepRule
    shares: tuple[float, ...]

    def __call__(self, numbers: Numbers, shape: Sequence[int]) -> Tensor:
        """Return the timestep, shape []."""
        return self.at(self.shares[numbers.slot], shape)

    def at(self, share: float, shape: Sequence[int]) -> Tensor:
        """Return what the rule has there."""
        return self.rule.at(share, shape)


def _stack(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
