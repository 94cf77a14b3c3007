"""The folder that is a run's truth: `OUTPUT_DIR/OUTPUT_NAME.run/`.

    config.toml     the settings, complete
    events.jsonl    every event, one object a line; see `event_log`
    dataset.json    what the scan found
    contents.json   what the pictures and captions held
    state/          what resuming needs
    samples/        sample pictures
    prompts.json    sample prompts that were changed on the way; see `prompt_changes`
    lock            held by the process that trains
    control         commands from other processes

Torch-free: the window lists past runs from it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.config import TrainingConfig, load_config
from trainer.ground import events
from trainer.ground.errors import StateError
from trainer.planning.timetable import LORA_SUFFIX, final_name
from trainer.results.event_log import earlier_files, parsed, read_lines

RUN_SUFFIX = ".run"

_LOCK_SECONDS = 0.5
"""Whoever only asks whether a run is under way holds its lock for an instant."""

_STEP_LINE = b'{"event": "StepDone"'


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
    def contents(self) -> Path:
        """The record of what the pictures and captions held."""
        return self.path / "contents.json"

    @property
    def state(self) -> Path:
        """The folder of resume states."""
        return self.path / "state"

    @property
    def samples(self) -> Path:
        """The folder of sample pictures."""
        return self.path / "samples"

    @property
    def wanted_prompts(self) -> Path:
        """Sample prompts that somebody wants from the next pictures on."""
        return self.path / "prompts.txt"

    @property
    def changed_prompts(self) -> Path:
        """The sample prompts that were changed, with the steps from which they act."""
        return self.path / "prompts.json"

    @property
    def lora(self) -> Path:
        """The finished LoRA file."""
        return self.output_dir / final_name(self.output_name)

    def check(self) -> None:
        """Look whether the folder can be made, without leaving anything behind.

        Raises:
            StateError: nothing can be written there, or what is there leads elsewhere.
        """
        ancestor = self.output_dir
        try:
            self._refuse_links()
            while not ancestor.exists() and ancestor != ancestor.parent:
                ancestor = ancestor.parent
            with tempfile.TemporaryFile(dir=ancestor):
                pass
        except OSError as error:
            # What could not be made is a file of no name; the folder is what is to be changed.
            raise self._cannot_write(error, ancestor) from error

    def _refuse_links(self) -> None:
        """See that what a run writes and removes stays in its own folder, whoever made that folder."""
        own = (self.config, self.events, self.dataset, self.contents, self.state, self.samples)
        more = (self.path / "lock", self.path / "logs", self.wanted_prompts, self.changed_prompts)
        for path in (self.path, *own, *more, *earlier_files(self.events)):
            if os.path.islink(path):
                raise StateError(
                    f"output_dir: {str(path)!r} is a link, and a run does not write through links.",
                    "Remove the link, or choose another output_name.",
                )

    def read_config(self) -> TrainingConfig:
        """Return the settings that the run was begun or last gone on with.

        Raises:
            StateError: what is there leads elsewhere.
            ConfigError: they cannot be read or used.
        """
        self._refuse_links()
        return load_config(self.config)

    def make(self) -> None:
        """Create the folder.

        Raises:
            StateError: it cannot be made, or what is there leads elsewhere.
        """
        try:
            self._refuse_links()
            for folder in (self.path, self.state, self.samples):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError, folder: Path | None = None) -> StateError:
        where = folder or error.filename or self.output_dir
        return StateError(
            f"output_dir: cannot write to {str(where)!r} ({error.strerror or error}).",
            "Choose a folder that you may write to, or free disk space.",
        )

    def lock(self) -> FileLock:
        """Return the held lock of this run.

        Raises:
            StateError: another process trains into this folder.
        """
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise StateError(
                f"output_name: another run is writing to {str(self.path)!r}.",
                "Wait until it ends, stop it, or choose another output_name.",
            ) from error
        return lock

    def exists(self) -> bool:
        """True when anything was trained under this name: a LoRA, finished or not, or a run's log, state or sample."""
        # Unlike Path.is_dir, this says no to a name that is too long for the system.
        if not os.path.isdir(self.output_dir):
            return False
        own = (self.events, self.lora, *self.state.glob("*"), *self.samples.glob("*"))
        return any(path.exists() for path in own) or any(self._files(""))

    def has_state(self) -> bool:
        """Say whether there is a resume state to go on from."""
        return bool(self.states())

    def states(self) -> list[Path]:
        """Return what says where each resume state is, the newest first."""
        return sorted(self.state.glob("step-*/state.json"), reverse=True)

    def lora_files(self) -> Iterator[Path]:
        """Yield the LoRA files of this run that are there, finished or not."""
        return self._files("")

    def all_files(self) -> Iterator[Path]:
        """Yield these, averages of them, and copies with other programs' keys."""
        return self._files("", more="(-ema)?(-diffusers|-comfyui)?")

    def half_written(self) -> Iterator[Path]:
        """Yield what a LoRA was being written to when the run was killed."""
        return self._files(r"\.\d+\.tmp", before=r"\.", more="(-ema)?(-diffusers|-comfyui)?")

    def _files(self, after: str, *, before: str = "", more: str = "") -> Iterator[Path]:
        """Yield the files in `output_dir` that have a LoRA's name of this run, with something around it."""
        name = re.escape(self.output_name) + r"(-\d{6,}|-step\d{8,})?" + more + re.escape(LORA_SUFFIX)
        pattern = re.compile(before + name + after)
        if os.path.isdir(self.output_dir):
            yield from (path for path in self.output_dir.iterdir() if pattern.fullmatch(path.name))


def next_free_name(output_dir: Path, output_name: str) -> str:
    """Return `output_name`, or the first of `output_name-2`, `-3`, ... under which nothing was trained yet."""
    name, number = output_name, 1
    while RunFolder(output_dir, name).exists():
        number += 1
        name = f"{output_name}-{number}"
    return name


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run as its folder tells it.

    `status` is "finished", "stopped", "failed" or "interrupted", or "unreadable" where its log may not be read.
    """

    folder: RunFolder
    status: str
    step: int
    total_steps: int
    updated: float


def run_names(output_dir: Path) -> tuple[str, ...]:
    """Return the names of the runs in `output_dir`, the newest first; no log is read."""
    found = []
    if os.path.isdir(output_dir):
        for path in output_dir.glob(f"*{RUN_SUFFIX}"):
            folder = RunFolder(output_dir, path.name.removesuffix(RUN_SUFFIX))
            try:
                found.append((folder.events.stat().st_mtime, folder.output_name))
            except OSError:
                continue
    return tuple(name for _, name in sorted(found, reverse=True))


def past_runs(output_dir: Path) -> tuple[PastRun, ...]:
    """Return the runs in `output_dir`, the newest first."""
    found = []
    if os.path.isdir(output_dir):
        for path in output_dir.glob(f"*{RUN_SUFFIX}"):
            folder = RunFolder(output_dir, path.name.removesuffix(RUN_SUFFIX))
            if folder.events.is_file():
                try:
                    found.append(_past_run(folder))
                except OSError:
                    found.append(PastRun(folder, "unreadable", 0, 0, 0.0))
    return tuple(sorted(found, key=lambda run: run.updated, reverse=True))


def _past_run(folder: RunFolder) -> PastRun:
    """Read a run's end. Steps are many: only the last one's line is parsed."""
    status, step, total = "interrupted", 0, 0
    newest = b""
    for line in read_lines(folder.events):
        if line.startswith(_STEP_LINE):
            newest = line
            continue
        match parsed(line):
            case events.Started() as event:
                status, step, total, newest = "interrupted", event.step, event.total_steps, b""
            case events.Finished() as event:
                status = "stopped" if event.stopped else "finished"
            case events.Failed():
                status = "failed"
    last = parsed(newest)
    if isinstance(last, events.StepDone):
        step = last.step
    return PastRun(folder, status, step, total, folder.events.stat().st_mtime)
