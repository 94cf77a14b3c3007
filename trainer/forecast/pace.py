"""How long a run will take, as an earlier one tells that did the same work on this device. Torch-free."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainingConfig, known_settings, rates, to_flat
from trainer.ground import events
from trainer.ground.errors import TrainerError
from trainer.planning.plan import Plan
from trainer.results.event_log import parsed, read_lines
from trainer.results.run_folder import RUN_SUFFIX, RunFolder
from trainer.settings.section import PATHS
from trainer.settings.walk import Setting

_RUNS = 20
"""So many of the newest runs are looked at."""
_STEPS = 200
"""The newest steps of a run, whose median counts: the first ones, and those beside other work, take longer."""
_FEWEST = 3
_BESIDE = ("captions", "sampling", "validation")
"""Sections of what is not part of a step, or takes next to nothing of it."""
_BEGUN, _STEP = b'{"event": "Started"', b'{"event": "StepDone"'


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that a step took in an earlier run, the run's name and when it was last written to."""

    seconds: float
    run: str
    updated: float

    def words(self, steps: int) -> str:
        """Return how long so many steps will take, in a sentence that says where that is known from."""
        when = time.strftime("%Y-%m-%d", time.localtime(self.updated))
        return (
            f"about {in_time(steps * self.seconds)} for {steps:,} steps of {self.seconds:.3g} s, as in the run "
            f"{self.run!r} of {when} on this device; loading, samples, validation and saving come on top."
        )


def earlier(seen: Plan, device: str) -> Pace | None:
    """Return the pace of the newest run in the plan's folder that took the same steps on the device of this name.

    The same: the model, the adapter, the precision, the resolution, the batch and whatever else a step is made of.
    None where there is no such run.
    """
    wanted = _of_a_step(seen.config, seen)
    for updated, folder in _newest(Path(seen.config.saving.output_dir)) if device else ():
        with suppress(TrainerError, OSError):
            if _of_a_step(folder.read_config(), seen) == wanted and (seconds := _seconds(folder, device)):
                return Pace(seconds, folder.output_name, updated)
    return None


def _newest(output_dir: Path) -> list[tuple[float, RunFolder]]:
    """Return the newest runs of a folder with when they were last written to; of their logs nothing is read."""
    found = [RunFolder(output_dir, path.name.removesuffix(RUN_SUFFIX)) for path in output_dir.glob(f"*{RUN_SUFFIX}")]
    dated = []
    for folder in found:
        with suppress(OSError):
            dated.append((folder.events.stat().st_mtime, folder))
    return sorted(dated, key=lambda each: each[0], reverse=True)[:_RUNS]


def _of_a_step(config: TrainingConfig, seen: Plan) -> Mapping[str, object]:
    """Return what the time of a step rests on; where pictures lie is no part of it, where the model lies is."""
    flat = to_flat(config)
    counts = {
        key: _absolute(setting, flat[key])
        for key, setting in known_settings().items()
        if setting.changes_memory
        and setting.section not in _BESIDE
        and not (setting.section in ("dataset", "augmentation") and setting.show.widget in PATHS)
    }
    return {**counts, "parts": sorted(rates(config, seen.parts))}


def _absolute(setting: Setting, value: object) -> object:
    """Return a value, of a path the whole one: the queue writes paths so."""
    return os.path.abspath(value) if setting.show.widget in PATHS and isinstance(value, str) and value else value


def _seconds(folder: RunFolder, device: str) -> float:
    """Return the median of a run's last steps; 0 where it has hardly any, or took them on another device."""
    newest: deque[bytes] = deque(maxlen=_STEPS)
    here = False
    for line in read_lines(folder.events):
        if line.startswith(_BEGUN):
            begun = parsed(line)
            here = isinstance(begun, events.Started) and begun.device == device
        elif here and line.startswith(_STEP):
            newest.append(line)
    steps = [each for line in newest if isinstance(each := parsed(line), events.StepDone)]
    found = [each.seconds for each in steps if math.isfinite(each.seconds) and each.seconds > 0]
    return statistics.median(found) if len(found) >= _FEWEST else 0.0


def in_time(seconds: float) -> str:
    """Return a time in words, as exact as a forecast can be: 40 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
