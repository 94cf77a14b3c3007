"""What came of the runs of a series: a row for each, as its folder tells. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.queue.series import Series
from trainer.results.run_folder import RunFolder
from trainer.results.run_record import RunReader, RunRecord


@dataclass(frozen=True, slots=True)
class Result:
    """One run: its values, how it stands, its lowest validation and at which step, seconds trained, its last samples.

    `samples` has the newest picture of each prompt by its number. What is not there yet is None, or empty.
    """

    name: str
    values: tuple[object, ...]
    status: str = "waiting"
    best: float | None = None
    best_step: int = 0
    seconds: float | None = None
    samples: dict[int, tuple[str, Path]] | None = None


def results(series: Series, readers: dict[RunFolder, RunReader]) -> list[Result]:
    """Return a row for each run, in the order of the series; `readers` keeps what was read until the next time."""
    found = []
    for member in series.members:
        reader = readers.setdefault(member.folder, RunReader(member.folder))
        try:
            record = reader.read()
        except OSError:
            record = None
        found.append(_result(member.folder.output_name, member.values, record))
    return found


def _result(name: str, values: tuple[object, ...], record: RunRecord | None) -> Result:
    if record is None or not record.revision:
        return Result(name, values)
    seen = record.snapshot
    best = min(record.series, key=lambda point: point.loss, default=None)
    newest: dict[int, tuple[str, Path]] = {}
    for sample in seen.samples:
        newest[sample.index] = (sample.prompt, Path(sample.path))
    return Result(
        name,
        values,
        seen.status,
        best.loss if best else None,
        best.step if best else 0,
        seen.finished.seconds if seen.finished else None,
        newest,
    )


def best_of(rows: list[Result]) -> Result | None:
    """Return the run with the lowest validation; None where fewer than two have one to compare."""
    measured = [row for row in rows if row.best is not None]
    return min(measured, key=lambda row: row.best or 0.0) if len(measured) > 1 else None
