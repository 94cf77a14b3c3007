"""Rules that cross settings. Each is a function on the configuration that yields the problems it finds.

A rule runs only if every setting it reads holds a usable value; for the others the defaults stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainer.config.training_config import TrainingConfig, rates, resolution_size
from trainer.errors import Problem

Check = Callable[[TrainingConfig], Iterator[Problem]]

_ONE_RATE = ("DAdaptAdam", "Prodigy")


@dataclass(frozen=True, slots=True)
class Rule:
    """A check and the keys of the settings that it reads."""

    keys: tuple[str, ...]
    check: Check


def one_rate(optimizer_type: str) -> bool:
    """Say whether an optimizer finds the rate itself and takes one factor for all parts."""
    return optimizer_type in _ONE_RATE


RULES: tuple[Rule, ...] = ()
