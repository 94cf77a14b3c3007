"""Learning rate schedules: how much of a group's learning rate is used at each step. No torch until `build()`.

The shapes and names are those of transformers, which sd-scripts uses. Step 0 of a schedule with warm-up has rate 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

POLYNOMIAL_END = 1e-7
"""The learning rate at which the polynomial schedule ends."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a schedule stands after its warm-up, and the numbers that give it its shape."""

    progress: float
    """Share of the steps after the warm-up that are done, from 0; 1 or more at and after the end."""
    num_cycles: int
    power: float
    learning_rate: float


def _constant(at: Position) -> float:
    return 1.0


def _linear(at: Position) -> float:
    return max(0.0, 1.0 - at.progress)


def _cosine(at: Position) -> float:
    """Half a cosine, from 1 to 0. Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5, without restarts."""
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * at.progress)))


def _cosine_with_restarts(at: Position) -> float:
    """`num_cycles` half cosines, each from 1 to 0. Loshchilov & Hutter 2017, eq. 5."""
    if at.progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (at.num_cycles * at.progress % 1.0))))


def _polynomial(at: Position) -> float:
    """The remaining share to the power, from 1 to the end rate."""
    end = min(1.0, POLYNOMIAL_END / at.learning_rate) if at.learning_rate > 0 else 1.0
    return end + (1.0 - end) * max(0.0, 1.0 - at.progress) ** at.power


_SHAPES: dict[str, Callable[[Position], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}
SCHEDULES: tuple[str, ...] = tuple(_SHAPES)
"""The values of `lr_scheduler`."""


def warmup_steps(value: float, total_steps: int) -> int:
    """Return the number of warm-up steps: `value` itself, or, below 1, that share of all steps, rounded down."""
    return int(value * total_steps) if value < 1 else int(value)


def multiplier(
    step: int,
    *,
    name: str,
    total_steps: int,
    warmup_steps: int = 0,
    num_cycles: int = 1,
    power: float = 1.0,
    learning_rate: float = 1.0,
) -> float:
    """Return the share of the learning rate that is used at a step.

    Args:
        step: the optimizer step, from 0.
        name: one of SCHEDULES. "constant" has no warm-up whatever `warmup_steps` says (sd-scripts refuses the two
            together, which would make the default warm-up an error).
        total_steps: optimizer steps of the whole run, warm-up included.
        warmup_steps: steps over which the share rises evenly from 0 to 1.
        num_cycles: cosine_with_restarts only.
        power: polynomial only; 1 = a straight line.
        learning_rate: polynomial only: the full rate, which tells how far down POLYNOMIAL_END is.
    """
    warmup = 0 if name == "constant" else warmup_steps
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return _SHAPES[name](Position(progress, num_cycles, power, learning_rate))


def build(
    optimizer: torch.optim.Optimizer,
    *,
    name: str,
    total_steps: int,
    warmup: float = 0,
    num_cycles: int = 1,
    power: float = 1.0,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the scheduler; call its `step()` once after each optimizer step, skipped ones included.

    Its state is the step count and each group's full rate. To resume, build it on the fresh optimizer first and load
    both states then: building sets the groups' rates.

    Args:
        optimizer: with each group's full learning rate in place.
        name: one of SCHEDULES.
        total_steps: optimizer steps of the whole run.
        warmup: steps, or below 1 a share of all steps (the setting `lr_warmup_steps`).
        num_cycles: the setting `lr_scheduler_num_cycles`.
        power: the setting `lr_scheduler_power`.
    """
    from torch.optim.lr_scheduler import LambdaLR

    def share_of(learning_rate: float) -> Callable[[int], float]:
        return lambda step: multiplier(
            step,
            name=name,
            total_steps=total_steps,
            warmup_steps=warmup_steps(warmup, total_steps),
            num_cycles=num_cycles,
            power=power,
            learning_rate=learning_rate,
        )

    return LambdaLR(optimizer, [share_of(float(group["lr"])) for group in optimizer.param_groups])
