"""What is measured, when, and what it costs: known before a run begins, and a function of its settings. Torch-free.

A forward pass without gradients costs about half of a training step on the same picture, whose frozen weights need no
gradient of their own. The budget is counted in such passes, never by the clock: so a resumed run measures the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.config import TrainingConfig, batch_sizes
from trainer.pictures.batches import Example
from trainer.planning.timetable import Timetable

Kind = Literal["", "folder", "held_out", "training"]
"""What is judged by: nothing, a folder of its own, pictures kept from training, or those that are trained."""

TIMESTEPS, FEWEST_TIMESTEPS = 8, 2
"""Timesteps at which it is measured. Where all of them would leave few pictures, each picture has every second or
fourth one of them, in turn: the choice of pictures counts for more than that of timesteps.
"""

FEWEST_PICTURES, FEWEST_PASSES = 4, 16
ENOUGH_PICTURES = 16
ENOUGH_MOMENTS, MOST_MOMENTS = 8, 200
"""Validations that a curve needs; more are made where they leave enough pictures for each."""

PASSES_OF_A_STEP = 2.0
"""Forward passes that take as long as one sample's training."""

_TABLE_SHARE, _TABLE_MOMENTS = 0.3, 2
"""Of the budget, what the table of all training pictures may take; and how often it is made at most."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Pictures that are measured together, each at so many of the timesteps, after the `moments`, which are steps."""

    examples: tuple[Example, ...] = ()
    timesteps: int = TIMESTEPS
    moments: frozenset[int] = frozenset()

    @property
    def passes(self) -> int:
        """Forward passes over the whole run. Before the first step it is measured too, without the adapter."""
        return len(self.examples) * self.timesteps * (len(self.moments) + 1) if self.examples else 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a run measures: the `series` that it is judged by, and the `table` of training pictures."""

    kind: Kind = ""
    series: Measure = Measure()
    table: Measure = Measure()
    available: int = 0
    trained: int = 0
    share: float = 0.0

    @property
    def held_out(self) -> bool:
        """True where the pictures of the series are not trained."""
        return self.kind in ("folder", "held_out")

    @property
    def words(self) -> str:
        """What is measured and at what price, in a sentence."""
        if not self.kind:
            return "Validation: off."
        of = {"folder": "pictures of their own folder", "held_out": "kept pictures", "training": "training pictures"}
        count = _of(len(self.series.examples), self.available)
        times = len(self.series.moments) + 1
        at = f"at {_of(self.series.timesteps, TIMESTEPS)} timesteps"
        said = f"Validation: {count} {of[self.kind]} {at}, {times} times, "
        said += f"about {self.share:.0%} of the run."
        if self.kind == "training":
            said += " It says how well they are learned, and no more."
        return said


def schedule(
    config: TrainingConfig, timetable: Timetable, judged: Sequence[Example], trained: Sequence[Example]
) -> Schedule:
    """Return what a run measures.

    Args:
        judged: the pictures that are not trained; empty where there are none.
        trained: the training pictures, without those of regularisation.
    """
    settings = config.validation
    if not settings.max_validation_share or not trained:
        return Schedule()
    kind: Kind = "training" if not judged else "folder" if settings.val_data_dir else "held_out"
    available = tuple(judged) or tuple(trained)
    samples = timetable.total_steps * _batch_size(config, trained) * timetable.accumulation * timetable.ranks
    budget = settings.max_validation_share * PASSES_OF_A_STEP * samples
    table = _table(tuple(trained), timetable, budget * _TABLE_SHARE)
    series = _series(config, timetable, available, budget - min(table.passes, budget * _TABLE_SHARE))
    share = (series.passes + table.passes) / (PASSES_OF_A_STEP * samples)
    return Schedule(kind, series, table, len(available), len(trained), share)


def _batch_size(config: TrainingConfig, trained: Sequence[Example]) -> float:
    """Return the batch size, the mean over batches where datasets have each their own."""
    sizes = batch_sizes(config)
    if len(sizes) == 1:
        return sizes[0]
    repeats = [sum(each.repeats for each in trained if each.dataset == number) for number in range(len(sizes))]
    batches = sum(count / size for count, size in zip(repeats, sizes, strict=True))
    return sum(repeats) / batches if batches else sizes[0]


def _series(config: TrainingConfig, timetable: Timetable, available: tuple[Example, ...], budget: float) -> Measure:
    most = len(available)
    if config.validation.max_validation_steps:
        most = min(most, config.validation.max_validation_steps * config.training.train_batch_size)
    enough = min(ENOUGH_PICTURES, most)
    moments = _moments(config, timetable, max(ENOUGH_MOMENTS, int(budget // (enough * TIMESTEPS)) - 1))
    passes = max(FEWEST_PASSES, int(budget / (len(moments) + 1)))
    count = min(most, passes // FEWEST_TIMESTEPS)
    return Measure(_spread(available, count), _timesteps(passes / count), moments)


def _timesteps(most: float) -> int:
    """Return how many of all timesteps a picture has where it may have so many."""
    return next(each for each in (TIMESTEPS, TIMESTEPS // 2, FEWEST_TIMESTEPS) if each <= most)


def _moments(config: TrainingConfig, timetable: Timetable, affordable: int) -> frozenset[int]:
    """Return the steps to measure after: those asked for, of saved files and the last; else as many as can be."""
    total, per_epoch = timetable.total_steps, timetable.steps_per_epoch
    saving, settings = config.saving, config.validation

    def ends(every: int) -> set[int]:
        epochs = range(every, timetable.total_epochs + 1, every)
        return {min(epoch * per_epoch, total) for epoch in _thinned(epochs, MOST_MOMENTS)}

    needed = {total}
    for every in (timetable.epochs_between_saves, settings.validate_every_n_epochs):
        needed |= ends(every) if every else set()
    for every in (saving.save_every_n_steps, settings.validate_every_n_steps):
        needed |= set(_thinned(range(every, total + 1, every), MOST_MOMENTS)) if every else set()
    asked = settings.validate_every_n_epochs or settings.validate_every_n_steps
    others = [] if asked else sorted(ends(1) - needed)
    return frozenset(needed) | frozenset(_thinned(others, max(0, affordable - len(needed))))


def _table(trained: tuple[Example, ...], timetable: Timetable, budget: float) -> Measure:
    """Return the table: all training pictures at the start and the end, and in between as often as can be."""
    fewest, each = min(FEWEST_PICTURES, len(trained)), FEWEST_PASSES // FEWEST_PICTURES
    count = min(len(trained), max(fewest, int(budget // (2 * each))))
    times = min(_TABLE_MOMENTS, max(1, int(budget // (count * each)) - 1))
    ends = [min(epoch * timetable.steps_per_epoch, timetable.total_steps) for epoch in range(1, timetable.total_epochs)]
    moments = frozenset(_thinned([*ends, timetable.total_steps], times))
    return Measure(_spread(trained, count), each, moments)


def _thinned(values: Sequence[int], most: int) -> list[int]:
    """Return at most so many values, evenly spread and with the last."""
    if len(values) <= most:
        return list(values)
    if not most:
        return []
    return [values[round((place + 1) * len(values) / most) - 1] for place in range(most)]


def _spread(available: Sequence[Example], count: int) -> tuple[Example, ...]:
    return tuple(available[place * len(available) // count] for place in range(count))


def _of(count: int, all_of: int) -> str:
    return f"{count}" if count == all_of else f"{count} of {all_of}"


def names(examples: Iterable[Example]) -> list[str]:
    """Return what the pictures are called in events."""
    return [example.picture.name for example in examples]
