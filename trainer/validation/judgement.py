"""What a series of validations says: falling, flat or rising, which file is the best, which are as good. Torch-free.

Noise and timesteps are the same each time, so two validations are compared picture by picture: the mean of the
differences against its standard error, which is far smaller than the spread of the losses themselves. What the series
does from one validation to the next without going anywhere is part of the spread too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Trend = Literal["", "falling", "flat", "rising"]

SURE = 2.0
"""Standard errors beyond which a difference is one, whichever way it goes: about one in twenty of none does so."""

LEAST_CHANGE = 0.005
"""Share of the loss below which nobody sees a difference, however sure it is."""

RECENT = 5
"""Most validations that are taken together to say where the series is going."""

NEWEST = 2
"""Validations that are taken together to say that a run overfits: one alone may stand out by chance."""

_ENOUGH_TO_TELL = 5
"""Validations from which on their own unrest can be told from their course."""


@dataclass(frozen=True, slots=True)
class Point:
    """One validation, or the mean of `count` of them: the loss after `step`, and that of each picture by its name."""

    step: int
    loss: float
    pictures: Mapping[str, float]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is to be said.

    `best` is the step of the lowest loss among those asked for, None where none was measured; `as_good` are the steps
    of which it cannot be said that they are worse, in order. `overfitting` says that the loss has risen beyond its
    spread since `best_of_all`, by the share `risen`; `spread` is the share of the loss that a difference must have.
    """

    trend: Trend = ""
    best: int | None = None
    as_good: tuple[int, ...] = ()
    best_of_all: int | None = None
    overfitting: bool = False
    risen: float = 0.0
    spread: float = 0.0


def judge(points: Sequence[Point], saved: Collection[int]) -> Judgement:
    """Return what the validations of one run say, oldest first, without the base model's.

    Args:
        saved: the steps of which there is a file.
    """
    points = [point for point in points if math.isfinite(point.loss)]
    if not points:
        return Judgement()
    restless = _restlessness([point.loss for point in points])
    lowest = min(points, key=lambda point: point.loss)
    candidates = [point for point in points if point.step in saved]
    best = min(candidates, key=lambda point: point.loss, default=None)
    as_good = [point.step for point in candidates if best and not _worse(best, point, restless)]
    newest = points[-NEWEST:]
    overfitting = newest[0].step > lowest.step and _worse(lowest, _mean_of(newest), restless, most_of=True)
    return Judgement(
        trend=_trend(points, restless),
        best=best.step if best else None,
        as_good=tuple(as_good),
        best_of_all=lowest.step,
        overfitting=overfitting,
        risen=_mean_of(newest).loss / lowest.loss - 1 if lowest.loss else 0.0,
        spread=max(LEAST_CHANGE, _unrest(restless, lowest, lowest) / lowest.loss if lowest.loss else 0.0),
    )


def without_a_better_one(points: Sequence[Point]) -> int:
    """Return how many validations in a row, up to the newest, were not better than the best before them."""
    finite = [point.loss for point in points if math.isfinite(point.loss)]
    if not finite:
        return 0
    return len(finite) - 1 - min(range(len(finite)), key=finite.__getitem__)


def _trend(points: Sequence[Point], restless: float) -> Trend:
    """Say where the newest validations stand against those before them."""
    if len(points) < 2:
        return ""
    count = max(1, min(RECENT, len(points) // 3))
    before, now = _mean_of(points[-2 * count : -count]), _mean_of(points[-count:])
    if _worse(before, now, restless):
        return "rising"
    return "falling" if _worse(now, before, restless) else "flat"


def _mean_of(points: Sequence[Point]) -> Point:
    names = set.intersection(*(set(point.pictures) for point in points))
    pictures = {name: statistics.fmean(point.pictures[name] for point in points) for name in names}
    return Point(points[-1].step, statistics.fmean(point.loss for point in points), pictures, len(points))


def _worse(better: Point, worse: Point, restless: float, *, most_of: bool = False) -> bool:
    """Say whether one validation is worse than another beyond the spread; with `most_of`, of most pictures too."""
    rise = worse.loss - better.loss
    if rise <= max(LEAST_CHANGE * better.loss, _unrest(restless, better, worse)):
        return False
    changes = [worse.pictures[name] - better.pictures[name] for name in better.pictures if name in worse.pictures]
    if len(changes) < 2:
        return True
    if most_of and sum(change > 0 for change in changes) * 2 <= len(changes):
        return False
    return rise > SURE * statistics.stdev(changes) / math.sqrt(len(changes))


def _unrest(restless: float, one: Point, other: Point) -> float:
    """Return the difference between two validations that the restlessness of the series explains.

    Validations beside each other are alike: the mean of many is hardly surer than one.
    """
    return SURE * restless * max(1.0, math.sqrt(1 / one.count + 1 / other.count))


def _restlessness(losses: Sequence[float]) -> float:
    """Return the standard deviation of what the series does around its own course, 0 where that cannot be told.

    From third differences, which a bend of the course has none of: their variance is 20 times that of the values. A
    steep beginning counts as unrest where there are few; that errs on the side of saying nothing.
    """
    if len(losses) < _ENOUGH_TO_TELL:
        return 0.0
    thirds = [d - 3 * c + 3 * b - a for a, b, c, d in zip(*(losses[place:] for place in range(4)), strict=False)]
    return math.sqrt(statistics.fmean(third * third for third in thirds) / 20)


def in_words(judgement: Judgement, files: Mapping[int, str], *, held_out: bool) -> tuple[str, ...]:
    """Return what is to be said of a run, a sentence each.

    Args:
        files: the names of the saved files by their steps.
        held_out: whether the pictures are not trained; else nothing follows from them about files.
    """
    if not judgement.trend and judgement.best is None:
        return ()
    said = []
    if judgement.trend:
        what = "The loss on pictures that are not trained" if held_out else "The loss on the training pictures"
        beyond = "" if judgement.trend == "flat" else f", by more than its spread of {judgement.spread:.1%}"
        said.append(f"{what} is {judgement.trend}{beyond}.")
    if not held_out:
        said.append("That says how well they are learned, and not which file is the best one.")
        return tuple(said)
    if judgement.overfitting:
        said.append(
            f"Overfitting: since step {judgement.best_of_all:,} it has risen by {judgement.risen:.1%}. The LoRA learns "
            "the training pictures by heart and gets worse on others."
        )
    best = files.get(judgement.best) if judgement.best is not None else None
    if best:
        said.append(f"The best saved file is {best}.")
        others = _others(judgement, files)
        if others:
            said.append(f"As good within the spread: {others}.")
    return tuple(said)


def _others(judgement: Judgement, files: Mapping[int, str]) -> str:
    """Return the names of the other files that are as good: all of few, of many the first and the last."""
    names = [files[step] for step in judgement.as_good if step != judgement.best and step in files]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} files from {names[0]} to {names[-1]}"
