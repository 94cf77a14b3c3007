"""The learning rates of a model's parts, by what the parts do; of a model that is not known, by what is usual."""

from __future__ import annotations

from trainer.config import TrainingConfig, assumed_parts, rates
from trainer.families import FAMILIES
from trainer.targets import DENOISER, TEXT, Part, names_of


def denoiser_rate(config: TrainingConfig, family: str) -> float | None:
    """Return the rate of the part that draws, or None where it is not trained."""
    return max(_rates_of(config, family, DENOISER), default=None)


def denoiser_title(config: TrainingConfig, family: str) -> str:
    """Return what people call the part that draws."""
    return next(part.title for part in _parts(config, family) if part.role == DENOISER)


def text_rates(config: TrainingConfig, family: str) -> tuple[float, ...]:
    """Return the rates of the text encoders that are trained."""
    return _rates_of(config, family, TEXT)


def _parts(config: TrainingConfig, family: str) -> tuple[Part, ...]:
    return FAMILIES[family].parts if family in FAMILIES else assumed_parts(config)


def _rates_of(config: TrainingConfig, family: str, role: str) -> tuple[float, ...]:
    parts = _parts(config, family)
    found = rates(config, parts)
    return tuple(found[name] for name in names_of(parts, role) if name in found)
