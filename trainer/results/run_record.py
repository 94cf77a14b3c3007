"""One run as its folder tells it, whole and across its sittings: under way, ended, or ten months old. Torch-free.

The page, `python -m trainer show` and comparisons all read a run here. A reader reads on where it stopped: what the log
has grown by since, and all of it anew where a resumed run has cut it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import statistics
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.config import TrainingConfig
from trainer.ground import events
from trainer.ground.errors import TrainerError
from trainer.ground.events import Event
from trainer.ground.paths import open_regular, read_text
from trainer.planning.timetable import average_name
from trainer.results.event_log import MOST_BYTES, earlier_files, parsed
from trainer.results.run_folder import RunFolder
from trainer.results.snapshot import RunSnapshot, fold
from trainer.validation.judgement import Judgement, Point, in_words, judge

NOTES = "notes.txt"
MOST_NOTES = 100_000
"""Bytes of what a person writes about a run."""

LOG_LINES = 1000
"""The newest lines of the log that are kept; the file has all."""

_RECENT_STEPS = 20
_HEAD = 256
_STEP_LINE = b'{"event": "StepDone"'
_NONE = float("nan")


class Steps:
    """The numbers of all steps, a column each; NaN where there is none."""

    def __init__(self) -> None:
        self.step, self.epoch = array("q"), array("q")
        self.loss, self.average, self.seconds, self.grad_norm, self.d = (array("d") for _ in range(5))
        self.rates: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.step)

    def add(self, record: Mapping[str, object]) -> None:
        """Take one line of the log.

        Raises:
            KeyError, TypeError, ValueError: it is none of a step.
        """
        step, epoch = int(record["step"]), int(record["epoch"])  # type: ignore[call-overload]
        values = [_number(record.get(name)) for name in ("loss", "average_loss", "seconds", "grad_norm", "step_size")]
        acting = record.get("acting_lr")
        rates = acting or record.get("lr")
        # Logs of before have the rate as it was set, beside what it is multiplied by.
        factor = 1.0 if acting or math.isnan(values[-1]) else values[-1]
        rates = {str(part): _number(rate) * factor for part, rate in rates.items()} if isinstance(rates, dict) else {}
        for part in rates.keys() - self.rates.keys():
            self.rates[part] = array("d", [_NONE] * len(self))
        self.step.append(step)
        self.epoch.append(epoch)
        columns = (self.loss, self.average, self.seconds, self.grad_norm, self.d)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
        for part, column in self.rates.items():
            column.append(rates.get(part, _NONE))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else _NONE


@dataclass
class RunRecord:
    """What a folder tells of its run. `snapshot` is where it stands; `sittings` are its beginnings, the first included.

    `revision` grows with each line that was read; `configs` are the settings that were read, by how many sittings there
    were.
    """

    folder: RunFolder
    snapshot: RunSnapshot = field(default_factory=RunSnapshot)
    steps: Steps = field(default_factory=Steps)
    epochs: list[events.EpochDone] = field(default_factory=list)
    sittings: list[events.Started] = field(default_factory=list)
    validated: list[events.Validated] = field(default_factory=list)
    log: deque[Event] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    revision: int = 0
    configs: dict[int, TrainingConfig | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.output_name

    @property
    def series(self) -> list[Point]:
        """The validations that the run is judged by, oldest first."""
        return [Point(each.step, each.loss, each.pictures) for each in self.validated if each.of_series]

    @property
    def base_loss(self) -> float | None:
        """The loss of the model without the adapter, in the same series."""
        return next((each.loss for each in self.validated if each.base and each.on != "table"), None)

    @property
    def held_out(self) -> bool:
        """True where the pictures of the series are not trained."""
        return any(each.on in ("folder", "held_out") for each in self.validated)

    @property
    def resumed(self) -> str:
        """How often it was resumed, in words, "" where it was not."""
        again = len(self.sittings) - 1
        return "" if again < 1 else "resumed once" if again == 1 else f"resumed {again} times"

    @property
    def files(self) -> dict[int, Path]:
        """The saved files that are still there, by their steps; of two of one step, the newer, and no average."""
        newest = {saved.step: Path(saved.path) for saved in self.snapshot.saved if not _is_average(saved.path)}
        return {step: path for step, path in sorted(newest.items()) if path.exists()}

    @property
    def judgement(self) -> Judgement:
        """What validation says of the run and its files."""
        return judge(self.series, self.files)

    @property
    def verdict(self) -> tuple[str, ...]:
        """The same in words, a sentence each."""
        names = {step: path.name for step, path in self.files.items()}
        return in_words(self.judgement, names, held_out=self.held_out)

    @property
    def pictures(self) -> list[PictureLoss]:
        """Each training picture's loss at the start and now, what stands out first."""
        tables = [each for each in self.validated if each.on == "table"]
        if not tables:
            return []
        base = next((each.pictures for each in tables if each.base), {})
        return outstanding(base, tables[-1].pictures)

    @property
    def notes(self) -> str:
        """What a person wrote about the run."""
        with suppress(OSError, UnicodeDecodeError):
            return read_text(self.folder.path / NOTES, MOST_NOTES)
        return ""

    def config(self) -> TrainingConfig | None:
        """The settings, or None where they cannot be read."""
        sitting = len(self.sittings)
        if sitting not in self.configs:
            self.configs[sitting] = None
            with suppress(TrainerError, OSError):
                self.configs[sitting] = self.folder.read_config()
        return self.configs[sitting]


def _is_average(path: str) -> bool:
    return path.endswith(average_name(""))


@dataclass(frozen=True, slots=True)
class PictureLoss:
    """One training picture. `change` is the share of its loss that was learned; `remark` says why it stands out."""

    name: str
    before: float | None
    now: float
    change: float
    remark: str = ""


def outstanding(before: Mapping[str, float], now: Mapping[str, float]) -> list[PictureLoss]:
    """Return pictures with what of their loss was learned, those far from the others first.

    Far is beyond 2.5 times the median distance from the median, as a standard deviation, and a tenth of the loss.
    """
    changes = {name: 1 - loss / before[name] if before.get(name) else 0.0 for name, loss in now.items()}
    middle = statistics.median(changes.values()) if changes else 0.0
    usual = 1.4826 * statistics.median(abs(change - middle) for change in changes.values()) if changes else 0.0
    far = max(2.5 * usual, 0.1)

    def remark(change: float) -> str:
        if change - middle > far:
            return "learned by heart"
        return "never learned" if middle - change > far else ""

    rows = [
        PictureLoss(name, before.get(name), loss, changes[name], remark(changes[name])) for name, loss in now.items()
    ]
    return sorted(rows, key=lambda row: (not row.remark, -abs(row.change - middle)))


class RunReader:
    """Reads a run's folder, and reads on. `read` may be called from any thread."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._record = RunRecord(self._folder)
        self._files: list[int] = []
        self._offset = 0
        self._head = b""

    def read(self, *, live: bool = False) -> RunRecord:
        """Return the run as it is now; where nobody has it under way any more it was interrupted.

        Args:
            live: the caller has it under way.

        Raises:
            OSError: the log cannot be read.
        """
        with self._lock:
            for path, offset in self._unread():
                self._take(path, offset)
            record = self._record
            if live or record.snapshot.status not in ("preparing", "training", "paused", "stopping"):
                return record
            return dataclasses.replace(record, snapshot=_left(record, held=is_held(self._folder)))

    def _unread(self) -> Iterator[tuple[Path, int]]:
        """Yield the files of the log that have grown, with where to read on."""
        log = self._folder.events
        paths = [*earlier_files(log), *([log] if log.is_file() else [])]
        states = [(path, path.stat()) for path in paths]
        numbers = [state.st_ino for _, state in states]
        known = len(self._files)
        grown = bool(known) and numbers[:known] == self._files and states[known - 1][1].st_size >= self._offset
        if not (grown and self._head == _head(paths[0], len(self._head))):
            self._forget()
            known = 0
        self._head = _head(paths[0], _HEAD) if paths else b""
        for place, (path, state) in enumerate(states):
            if place < known - 1:
                continue
            offset = self._offset if place == known - 1 else 0
            if state.st_size > offset or place >= known:
                self._offset = offset
                yield path, offset
        self._files = numbers

    def _take(self, path: Path, offset: int) -> None:
        with open_regular(path, MOST_BYTES) as file:
            file.seek(offset)
            newest = b""
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                if line.startswith(_STEP_LINE):
                    newest = self._take_step(line) or newest
                elif (event := parsed(line)) is not None:
                    newest = self._fold_step(newest)
                    self._take_event(event)
            self._fold_step(newest)

    def _take_step(self, line: bytes) -> bytes:
        """Take the numbers of a step; only the newest of many is folded. Return the line where it can be read."""
        with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self._record.steps.add(json.loads(line))
            self._record.revision += 1
            return line
        return b""

    def _fold_step(self, line: bytes) -> bytes:
        event = parsed(line) if line else None
        if event is not None:
            recent = self._record.steps.seconds[-_RECENT_STEPS:]
            snapshot = fold(self._record.snapshot, event)
            self._record.snapshot = dataclasses.replace(snapshot, seconds_per_step=statistics.median(recent))
        return b""

    def _here(self, event: Event) -> Event:
        """Return the event with the path where its file lies now: folders are moved, and programs started elsewhere."""
        match event:
            case events.SampleReady():
                return dataclasses.replace(event, path=str(self._folder.samples / Path(event.path).name))
            case events.Saved(kind="lora") | events.Finished() if event.path:
                return dataclasses.replace(event, path=str(self._folder.output_dir / Path(event.path).name))
            case events.Started():
                return dataclasses.replace(event, folder=str(self._folder.path))
        return event

    def _take_event(self, event: Event) -> None:
        record, event = self._record, self._here(event)
        record.snapshot = fold(record.snapshot, event)
        record.revision += 1
        match event:
            case events.EpochDone():
                record.epochs.append(event)
            case events.Started():
                record.sittings.append(event)
            case events.Validated():
                record.validated.append(event)
        if not (isinstance(event, events.Saved) and event.kind == "state"):
            record.log.append(event)


def _head(path: Path, count: int) -> bytes:
    with open_regular(path, MOST_BYTES) as file:
        return file.read(count)


def _left(record: RunRecord, *, held: bool) -> RunSnapshot:
    """Return where a run stands whose log has no end: under way elsewhere, or left by a program that is gone."""
    if held:
        return record.snapshot
    newest = max(itertools.chain((record.snapshot.started_at,), (event.time for event in record.log)), default=0.0)
    return dataclasses.replace(record.snapshot, status="interrupted", phase="", paused=None, ended_at=newest)


def is_held(folder: RunFolder) -> bool:
    """Say whether a process has the run under way, by its lock."""
    path = folder.path / "lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def run_folder_at(path: str | Path) -> RunFolder | None:
    """Return the run that a path names: its folder, one of its LoRA files, or its name without the ending; or None."""
    path = Path(os.path.abspath(path))
    names: Sequence[str] = (path.name.removesuffix(".run"), path.name.removesuffix(".safetensors"))
    shorter = [name.rpartition("-")[0] for name in names if "-" in name]
    for name in (*names, *shorter):
        folder = RunFolder(path.parent, name)
        if name and folder.events.is_file():
            return folder
    return None
