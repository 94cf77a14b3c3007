"""The curves of a run, thinned to what a screen can show: as quick and as light after 100,000 steps as after 100.

A thinned point stands for a stretch of steps: their mean, and where it is asked for the least and the most of them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.ground import events
from trainer.results.run_record import RunRecord

POINTS = 500
"""Points of a curve: more than a plot can show."""

MOST_MARKS = 400

GROUPS = ("loss", "rate", "gradient", "time")
"""What can be asked for: curves that share an axis."""

Curve = dict[str, list[float | None]]
"""{"x": steps, "y": means}, with "low" and "high" for those with a range."""


def curves(
    record: RunRecord, group: str, low: float = 0, high: float = math.inf, points: int = POINTS
) -> dict[str, Any]:
    """Return the curves of one group between two steps, with what else a plot needs, in plain values.

    Raises:
        ValueError: there is no such group.
    """
    if group not in GROUPS:
        raise ValueError(f"group {group!r} must be one of {', '.join(GROUPS)}.")
    return {
        "name": record.name,
        "group": group,
        "step": record.snapshot.step,
        "total": max(record.snapshot.total_steps, record.snapshot.step),
        "pictures": pictures_of_a_step(record),
        "curves": _of_group(record, group, low, high, max(2, min(points, 2000))),
        "validation": _validation(record) if group == "loss" else None,
        "marks": marks(record),
    }


def pictures_of_a_step(record: RunRecord) -> int:
    """Return how many pictures a step has seen, 1 where the settings cannot be read."""
    config = record.config()
    return config.training.train_batch_size * config.training.gradient_accumulation_steps if config else 1


def _of_group(record: RunRecord, group: str, low: float, high: float, points: int) -> dict[str, Curve]:
    steps = record.steps
    if group == "loss":
        return {
            "each step": thinned(steps.step, steps.loss, low, high, points, ranged=True),
            "average": thinned(steps.step, steps.average, low, high, points),
        }
    if group == "gradient":
        return {"gradient norm": thinned(steps.step, steps.grad_norm, low, high, points, ranged=True)}
    if group == "time":
        return {"seconds a step": thinned(steps.step, steps.seconds, low, high, points, ranged=True)}
    found_by_optimizer = "d × " if len(steps) and not math.isnan(steps.d[-1]) else ""
    return {
        f"{found_by_optimizer}{part}": thinned(steps.step, column, low, high, points)
        for part, column in steps.rates.items()
    }


def _array(column: array[float] | array[int] | NDArray[Any]) -> NDArray[Any]:
    """Return a copy: a column that is looked into cannot grow."""
    return np.array(column)


def thinned(
    steps: array[int],
    values: array[float] | NDArray[Any],
    low: float,
    high: float,
    points: int,
    *,
    ranged: bool = False,
) -> Curve:
    """Return a curve of at most so many points between two steps; what is no finite number is left out."""
    x, y = _array(steps), _array(values)[: len(steps)]
    x = x[: len(y)]
    chosen = (x >= low) & (x <= high) & np.isfinite(y)
    x, y = x[chosen], y[chosen]
    if len(x) > points:
        edges = np.unique(np.linspace(0, len(x), points + 1).astype(int))[:-1]
        counts = np.diff(np.append(edges, len(x)))
        means = np.add.reduceat(y, edges) / counts
        ends = x[edges + counts - 1]
        least, most = np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)
    else:
        means, ends, least, most = y, x, y, y
    curve: Curve = {"x": ends.tolist(), "y": _rounded(means)}
    return curve | {"low": _rounded(least), "high": _rounded(most)} if ranged else curve


def _rounded(values: NDArray[Any]) -> list[float | None]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def _validation(record: RunRecord) -> dict[str, Any] | None:
    series = record.series
    if not series:
        return None
    kind = next(each.on for each in reversed(record.validated) if each.on != "table")
    best = record.judgement.best
    return {
        "kind": kind,
        "x": [point.step for point in series],
        "y": [float(f"{point.loss:.5g}") if math.isfinite(point.loss) else None for point in series],
        "base": record.base_loss,
        "best": best if record.held_out else None,
    }


def marks(record: RunRecord) -> dict[str, list[Any]]:
    """Return the steps at which an epoch ended, a file was saved, samples were drawn, and the run was gone on with."""
    snapshot = record.snapshot
    return {
        "epochs": _few([event.step for event in record.epochs]),
        "saves": _few(sorted({event.step for event in snapshot.saved})),
        "samples": _few(sorted({event.step for event in snapshot.samples})),
        "resumes": _few([event.step for event in record.sittings if event.resumed]),
    }


def _few(steps: Sequence[int]) -> list[int]:
    stride = -(-len(steps) // MOST_MARKS) or 1
    return list(steps[::stride])


def summary(record: RunRecord) -> Mapping[str, Any]:
    """Return a run in plain values, as `python -m trainer show --json` prints it."""
    snapshot = record.snapshot
    return {
        "name": record.name,
        "folder": str(record.folder.path),
        "status": snapshot.status,
        "step": snapshot.step,
        "total_steps": snapshot.total_steps,
        "epoch": snapshot.epoch,
        "total_epochs": snapshot.total_epochs,
        "loss": snapshot.average_loss,
        "sittings": [{"step": each.step, "time": each.time} for each in record.sittings],
        "files": [{"step": step, "path": str(path)} for step, path in record.files.items()],
        "samples": [{"step": each.step, "prompt": each.prompt, "path": each.path} for each in snapshot.samples],
        "validation": _validation(record),
        "verdict": list(record.verdict),
        "pictures": [
            {"name": each.name, "before": each.before, "now": each.now, "remark": each.remark}
            for each in record.pictures
        ],
        "warnings": list(snapshot.warnings),
        "error": events.to_record(snapshot.error) if snapshot.error else None,
        "notes": record.notes,
        "loss_curve": thinned(record.steps.step, record.steps.average, 0, math.inf, POINTS),
    }
