"""Configurations and files: load with everything laid over the defaults, save with comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from trainer.config.layers import Assembled, assemble
from trainer.config.training_config import TrainingConfig, known_settings, to_flat
from trainer.errors import ConfigError, Problem
from trainer.settings import toml

NOTHING: Mapping[str, object] = MappingProxyType({})


def load_config(
    path: Path | None = None,
    overrides: Mapping[str, object] = NOTHING,
    *,
    preset: Path | None = None,
    ignore_unsupported: bool = False,
) -> TrainingConfig:
    """Return defaults < preset < file < overrides. Raises ConfigError with every problem found."""
    assembled = load_layers(path, overrides, preset=preset, ignore_unsupported=ignore_unsupported)
    if assembled.config is None:
        raise ConfigError(assembled.problems)
    return assembled.config


def load_layers(
    path: Path | None = None,
    overrides: Mapping[str, object] = NOTHING,
    *,
    preset: Path | None = None,
    ignore_unsupported: bool = False,
) -> Assembled:
    """As `load_config`, but with the notices, and problems in place of an error."""
    layers: list[Mapping[str, object]] = []
    problems: list[Problem] = []
    for source in (preset, path):
        if source is None:
            continue
        try:
            flat, found = toml.flatten(toml.read(Path(source)))
        except ConfigError as error:
            problems += error.problems
            continue
        layers.append(flat)
        problems += found
    assembled = assemble([*layers, overrides])
    problems += assembled.problems
    return Assembled(None if problems else assembled.config, tuple(problems), assembled.notices)


def save_config(config: TrainingConfig, path: Path, header: str = "") -> None:
    """Write every setting with its help line as a comment, in one step. Raises ConfigError if it cannot be written."""
    toml.write(Path(path), toml.document(known_settings().values(), to_flat(config), header))
