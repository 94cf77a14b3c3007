"""What a trial is of and what was drawn for it, as its folder tells: `RUN.run/tried/0001/`. Torch-free.

trial.json     the request, and each picture that is drawn
0-2.png        the picture of a file (the row) at a weight (the column)
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.ground.errors import StateError
from trainer.ground.files import write_text
from trainer.ground.paths import read_json
from trainer.results.run_folder import RunFolder

TRIED = "tried"
RECORD = "trial.json"

WEIGHTS = (0.0, 0.4, 0.7, 1.0)
MOST_WEIGHT = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be drawn: each file at each weight, all with one prompt and seed.

    Sides in pixels; `guidance` is what a distilled model is told. What is None or empty is as usual for the settings.
    """

    files: tuple[str, ...]
    weights: tuple[float, ...]
    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    sampler: str = ""
    steps: int | None = None
    scale: float | None = None
    width: int | None = None
    height: int | None = None
    guidance: float | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as its folder tells it. `drawn` has the path of the picture of each row and column that is there."""

    folder: Path
    request: Request
    drawn: dict[tuple[int, int], Path]

    @property
    def number(self) -> str:
        """What it is known by among the trials of a run."""
        return self.folder.name


def folder_of(run: RunFolder | None, file: Path) -> Path:
    """Return where trials of a run's files are kept; of a file that is no run's, beside it."""
    return run.path / TRIED if run else file.parent / f"{file.stem}.{TRIED}"


def begin(where: Path, request: Request) -> Trial:
    """Make the folder of a new trial.

    Raises:
        StateError: it cannot be written.
    """
    try:
        where.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in where.iterdir() if path.name.isdecimal()), default=0)
        folder = where / f"{number:04d}"
        folder.mkdir()
        trial = Trial(folder, request, {})
        note(trial)
    except OSError as error:
        raise StateError(
            f"The pictures cannot be kept in {str(where)!r} ({error.strerror or error}).",
            "See that you may write there and that the disk is not full.",
        ) from error
    return trial


def picture_of(trial: Trial, row: int, column: int) -> Path:
    """Return where the picture of a file at a weight belongs."""
    return trial.folder / f"{row}-{column}.png"


def note(trial: Trial) -> None:
    """Write what was drawn up to now. Raises OSError."""
    drawn = [[row, column] for row, column in trial.drawn]
    write_text(trial.folder / RECORD, json.dumps({**dataclasses.asdict(trial.request), "drawn": drawn}, indent=1))


def read(folder: Path) -> Trial | None:
    """Return the trial that a folder tells of, None where there is none."""
    try:
        said = read_json(folder / RECORD)
        fields = {each.name: said[each.name] for each in dataclasses.fields(Request) if each.name in said}
        request = Request(**{**fields, "files": _texts(said["files"]), "weights": _numbers(said["weights"])})
        places = [(int(row), int(column)) for row, column in said["drawn"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    rows, columns = len(request.files), len(request.weights)
    drawn = {(row, column): folder / f"{row}-{column}.png" for row, column in places if row < rows and column < columns}
    return Trial(folder, request, {place: path for place, path in drawn.items() if path.is_file()})


def _texts(said: Sequence[object]) -> tuple[str, ...]:
    return tuple(map(str, said))


def _numbers(said: Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, said))


def count(where: Path) -> int:
    """Return how many trials there are."""
    return len(_folders(where))


def trials(where: Path, most: int | None = None) -> list[Trial]:
    """Return the trials that a run's folder has, the newest first, and of many the `most` newest."""
    return [trial for folder in _folders(where)[:most] if (trial := read(folder)) is not None]


def _folders(where: Path) -> list[Path]:
    if not os.path.isdir(where):
        return []
    return sorted((path for path in where.iterdir() if path.name.isdecimal()), reverse=True)
