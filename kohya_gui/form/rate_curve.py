"""The learning rate over the steps, as it is drawn beside the form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config import TrainingConfig, schedule_of
from trainer.ground.errors import ConfigError
from trainer.optimizers import kind_of

POINTS = 120

MOST_GONE_THROUGH = 100_000
"""Steps of a run up to which a schedule is drawn whose rate is known only by going through all steps."""


@dataclass(frozen=True, slots=True)
class RateCurve:
    """The rate at some steps, counted from 1, of `last`; or the words that stand `instead` of it."""

    title: str = ""
    note: str = ""
    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    last: int = 0
    instead: str = ""


def rate_curve(config: TrainingConfig, rates: Mapping[str, float], total: int) -> RateCurve | None:
    """Return the course of the highest rate over `total` steps, None where nothing is trained.

    PyTorch's own schedules need PyTorch, and each step gone through.
    """
    if not rates:
        return None
    optimizer = config.optimizer
    schedule, kind = schedule_of(config, total), kind_of(optimizer.optimizer_type)
    peak = max(rates.values())
    points = sorted({round(place * (total - 1) / POINTS) for place in range(POINTS + 1)})
    if schedule.torch_class and total > MOST_GONE_THROUGH:
        return RateCurve(instead=f"{schedule.title} is not drawn over more than {MOST_GONE_THROUGH:,} steps.")
    try:
        values = schedule.rates(peak, points)
    except ConfigError as error:
        return RateCurve(instead=str(error))
    title, note = "Learning rate over the steps", schedule.title
    if kind.acting_rate(peak, optimizer.optimizer_args) is None:
        values = [kind.own_rate(step + 1, optimizer.optimizer_args) for step in points]
        note = f"{kind.name}'s own"
    elif kind.finds_rate:
        title, note = "What the rate that is found is multiplied by", f"{note}, times what {kind.name} finds"
    return RateCurve(title, note, tuple(step + 1 for step in points), tuple(values), total)
