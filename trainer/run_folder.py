"""The folder that is a run's truth: `OUTPUT_DIR/OUTPUT_NAME.run/`.

    config.toml     the settings, complete
    events.jsonl    every event, one object a line
    dataset.json    what the scan found
    state/          what resuming needs
    samples/        sample pictures
    lock            held by the process that trains
    control         commands from other processes

Torch-free: the window lists past runs from it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from trainer import events
from trainer.errors import StateError
from trainer.plan import final_name

RUN_SUFFIX = ".run"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    output_dir: Path
    output_name: str

    @property
    def path(self) -> Path:
        """The run's own folder."""
        return self.output_dir / f"{self.output_name}{RUN_SUFFIX}"

    @property
    def config(self) -> Path:
        """The complete settings."""
        return self.path / "config.toml"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.path / "events.jsonl"

    @property
    def dataset(self) -> Path:
        """The scan's report."""
        return self.path / "dataset.json"

    @property
    def state(self) -> Path:
        """The folder of resume states."""
        return self.path / "state"

    @property
    def samples(self) -> Path:
        """The folder of sample pictures."""
        return self.path / "samples"

    @property
    def lora(self) -> Path:
        """The finished LoRA file."""
        return self.output_dir / final_name(self.output_name)

    def check(self) -> None:
        """Look whether the folder can be made, without leaving anything behind.

        Raises:
            StateError: nothing can be written there.
        """
        ancestor = self.output_dir
        try:
            while not ancestor.exists() and ancestor != ancestor.parent:
                ancestor = ancestor.parent
            with tempfile.TemporaryFile(dir=ancestor):
                pass
        except OSError as error:
            raise self._cannot_write(error) from error

    def make(self) -> None:
        """Create the folder.

        Raises:
            StateError: it cannot be made.
        """
        try:
            for folder in (self.path, self.state, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> StateError:
        return StateError(
            f"output_dir: cannot write to {str(self.output_dir)!r} ({error.strerror or error}).",
            "Choose a folder that you may write to, or free disk space.",
        )

    def lock(self) -> FileLock:
        """Return the held lock of this run.

        Raises:
            StateError: another process trains into this folder.
        """
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StateError(
                f"output_name: another run is writing to {str(self.path)!r}.",
                "Wait until it ends, stop it, or choose another output_name.",
            ) from error
        return lock

    def exists(self) -> bool:
        """True when an earlier run left a LoRA or a run folder with events under this name."""
        return self.lora.exists() or self.events.exists()


def next_free_name(output_dir: Path, output_name: str) -> str:
    """Return `output_name`, or the first of `output_name-2`, `-3`, ... under which nothing was trained yet."""
    name, number = output_name, 1
    while RunFolder(output_dir, name).exists():
        number += 1
        name = f"{output_name}-{number}"
    return name


def read_events(path: Path) -> Iterator[events.Event]:
    """Yield the events of a log. A torn last line, as a killed process leaves it, is passed over."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield events.from_record(json.loads(line))


def cut_events(path: Path, step: int) -> None:
    """Remove what a log tells of steps after `step`, and a torn last line. Atomic."""
    if not path.exists():
        return
    kept = [event for event in read_events(path) if getattr(event, "step", 0) <= step or not _of_step(event)]
    temporary = path.with_name(f"{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        for event in kept:
            file.write(json.dumps(events.to_record(event)) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _of_step(event: events.Event) -> bool:
    kinds = (events.StepDone, events.EpochDone, events.Saved, events.SampleReady, events.Validated)
    return isinstance(event, kinds)


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run as its folder tells it. `status` is "finished", "stopped", "failed" or "interrupted"."""

    folder: RunFolder
    status: str
    step: int
    total_steps: int
    updated: float


def past_runs(output_dir: Path) -> tuple[PastRun, ...]:
    """Return the runs in `output_dir`, the newest first."""
    found = []
    if output_dir.is_dir():
        for path in output_dir.glob(f"*{RUN_SUFFIX}"):
            folder = RunFolder(output_dir, path.name.removesuffix(RUN_SUFFIX))
            if folder.events.is_file():
                found.append(_past_run(folder))
    return tuple(sorted(found, key=lambda run: run.updated, reverse=True))


def _past_run(folder: RunFolder) -> PastRun:
    status, step, total = "interrupted", 0, 0
    for event in read_events(folder.events):
        match event:
            case events.Started():
                status, step, total = "interrupted", event.step, event.total_steps
            case events.StepDone():
                step = event.step
            case events.Finished():
                status = "stopped" if event.stopped else "finished"
            case events.Failed():
                status = "failed"
    return PastRun(folder, status, step, total, folder.events.stat().st_mtime)
