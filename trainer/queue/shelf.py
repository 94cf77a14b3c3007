"""The queue on the disk: a folder with a file of settings for each entry, and the order that they come in.

    0001.toml      an entry: the complete settings of its run, which say what it will do
    0001.json      what its run's folder cannot say: that the queue has begun it, and how it ended
    order.json     the names of the entries, the first to come first

How an entry stands is read from its run's folder, so a killed program leaves nothing to be mended. A TOML file that
somebody puts into the folder is an entry too, behind the others.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from trainer.config import TrainingConfig, anchored, load_config, save_config
from trainer.ground.errors import StateError, TrainerError
from trainer.ground.files import write_text
from trainer.ground.paths import read_json
from trainer.results.run_folder import RunFolder
from trainer.results.run_record import RunReader, RunRecord

ORDER = "order.json"
SUFFIX = ".toml"

WAITING, UNDER_WAY, INTERRUPTED = "waiting", "under way", "interrupted"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
TO_DO = (WAITING, INTERRUPTED)
"""How an entry stands that the queue has still to begin, or to go on with."""
ENDED = (FINISHED, STOPPED, FAILED)

_HEADER = "An entry of the queue. What it says is what will be trained."


@dataclass(frozen=True, slots=True)
class Mark:
    """What is noted beside an entry: that the queue has begun it, how it ended and why, and that it is tried again."""

    begun: bool = False
    ended: str = ""
    why: str = ""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of the queue. `config` is None where its file cannot be used, `why` says then what is wrong with it.

    `state` is one of the words above, `record` what its run's folder tells, once there is one of this entry's.
    """

    key: str
    state: str
    config: TrainingConfig | None = None
    why: str = ""
    begun: bool = False
    record: RunRecord | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.config.saving.output_name if self.config else self.key

    @property
    def folder(self) -> RunFolder | None:
        """The run's folder."""
        return folder_of(self.config) if self.config else None


def folder_of(config: TrainingConfig) -> RunFolder:
    """Return the folder that a run of these settings has."""
    return RunFolder(Path(config.saving.output_dir), config.saving.output_name)


class Queue:
    """The entries of a folder. Methods may be called from any thread and process; what they write is whole or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._configs: dict[str, tuple[int, TrainingConfig | None, str]] = {}
        self._readers: dict[RunFolder, RunReader] = {}

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def signature(self) -> object:
        """What differs when the folder does: the files and when they were written."""
        if not os.path.isdir(self.folder):
            return ()
        with os.scandir(self.folder) as found:
            files = [entry for entry in found if entry.name.endswith((SUFFIX, ".json"))]
            return tuple(sorted((entry.name, entry.stat().st_mtime_ns) for entry in files))

    def keys(self) -> list[str]:
        """Return the entries' names in their order."""
        if not os.path.isdir(self.folder):
            return []
        there = sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
        try:
            said = read_json(self.folder / ORDER)
            order = [str(key) for key in said] if isinstance(said, list) else []
        except (OSError, ValueError, RecursionError):
            order = []
        known = [key for key in dict.fromkeys(order) if key in set(there)]
        return [*known, *(key for key in there if key not in set(known))]

    def entries(self) -> list[Entry]:
        """Return the entries in their order, each as it stands now."""
        return [self.entry(key) for key in self.keys()]

    def entry(self, key: str) -> Entry:
        """Return one entry as it stands now."""
        mark = self._mark(key)
        config, trouble = self._config(key)
        if mark.ended:
            record = self._record(config) if config and mark.begun else None
            return Entry(key, mark.ended, config, mark.why, mark.begun, record)
        if config is None:
            return Entry(key, WAITING, None, trouble, mark.begun)
        if not mark.begun:
            return Entry(key, WAITING, config)
        record = self._record(config)
        state, why = _state_in(record, again=mark.again)
        return Entry(key, state, config, why, begun=True, record=record)

    def next(self) -> Entry | None:
        """Return the first entry that is to be begun or gone on with."""
        return next((entry for entry in self.entries() if entry.state in TO_DO), None)

    def named(self, key: object) -> Entry:
        """Return an entry by its key.

        Raises:
            StateError: it is gone.
        """
        if key not in self.keys():
            raise StateError(f"The queue has no entry {key!r} any more.", "Look at the list again.")
        return self.entry(str(key))

    def has(self, output_dir: Path, output_name: str) -> bool:
        """Say whether an entry trains under this name."""
        wanted = RunFolder(Path(os.path.abspath(output_dir)), output_name)
        configs = [self._config(key)[0] for key in self.keys()]
        folders = [folder_of(config) for config in configs if config]
        return any(RunFolder(Path(os.path.abspath(each.output_dir)), each.output_name) == wanted for each in folders)

    def free_name(self, output_dir: Path, output_name: str, taken: Collection[str] = ()) -> str:
        """Return the name, or the first of NAME-2, NAME-3, ... that neither a run nor an entry has, nor is `taken`."""
        name, number = output_name, 1
        while name in taken or RunFolder(output_dir, name).exists() or self.has(output_dir, name):
            number += 1
            name = f"{output_name}-{number}"
        return name

    def _config(self, key: str) -> tuple[TrainingConfig | None, str]:
        """Return an entry's settings, or None and what is wrong with them; the file is read when it has changed."""
        path = self.folder / f"{key}{SUFFIX}"
        try:
            changed = path.stat().st_mtime_ns
            known = self._configs.get(key)
            if known is None or known[0] != changed:
                self._configs[key] = (changed, load_config(path), "")
        except TrainerError as error:
            self._configs[key] = (changed, None, str(error))
        except OSError as error:
            return None, f"{str(path)!r} cannot be read: {error.strerror or error}."
        return self._configs[key][1:]

    def _record(self, config: TrainingConfig) -> RunRecord | None:
        folder = folder_of(config)
        reader = self._readers.setdefault(folder, RunReader(folder))
        try:
            record = reader.read()
        except OSError:
            return None
        return record if record.revision else None

    def _mark(self, key: str) -> Mark:
        try:
            said = read_json(self.folder / f"{key}.json")
            return Mark(bool(said["begun"]), str(said["ended"]), str(said["why"]), bool(said["again"]))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return Mark()

    # --- writing ----------------------------------------------------------------------------------------------------

    def add(self, config: TrainingConfig) -> Entry:
        """Put a run behind the others.

        Raises:
            StateError: an entry has this name already, or the folder cannot be written.
        """
        return self.add_all([config])[0]

    def add_all(self, configs: Sequence[TrainingConfig]) -> list[Entry]:
        """Put runs behind the others, all or none.

        Raises:
            StateError: a name is there twice, or the folder cannot be written.
        """
        with self._writing() as order:
            taken: set[RunFolder] = set()
            for config in configs:
                folder = folder_of(config)
                if folder in taken or self.has(folder.output_dir, folder.output_name):
                    raise StateError(
                        f"output_name: {folder.output_name!r} is in the queue already.", "Choose another output_name."
                    )
                taken.add(folder)
            numbers = [int(key) for key in order if key.isdecimal()]
            first = max(numbers, default=0) + 1
            added = [f"{number:04d}" for number in range(first, first + len(configs))]
            for key, config in zip(added, configs, strict=True):
                (self.folder / f"{key}.json").unlink(missing_ok=True)
                save_config(anchored(config), self.folder / f"{key}{SUFFIX}", _HEADER)
            order += added
        return [self.entry(key) for key in added]

    def move(self, key: str, by: int) -> None:
        """Move an entry by so many places, to the front with a negative number."""
        with self._writing() as order:
            if key in order:
                place = order.index(key)
                order.insert(max(0, min(len(order) - 1, place + by)), order.pop(place))

    def remove(self, key: str) -> None:
        """Take an entry out; its run's folder stays as it is.

        Raises:
            StateError: its run is under way.
        """
        if self.named(key).state == UNDER_WAY:
            raise StateError(f"{self.named(key).name!r} is under way.", "Stop it first.")
        with self._writing() as order:
            for suffix in (SUFFIX, ".json"):
                (self.folder / f"{key}{suffix}").unlink(missing_ok=True)
            order[:] = [each for each in order if each != key]

    def begin(self, key: str) -> None:
        """Note that an entry's run begins now, or goes on."""
        self._note(key, Mark(begun=True))

    def end(self, key: str, state: str, why: str = "") -> None:
        """Note how an entry ended."""
        self._note(key, dataclasses.replace(self._mark(key), ended=state, why=why, again=False))

    def again(self, key: str) -> None:
        """Let an entry that failed or was stopped be gone on with."""
        self._note(key, Mark(begun=self._mark(key).begun, again=True))

    def _note(self, key: str, mark: Mark) -> None:
        # Removed meanwhile, it leaves nothing behind.
        if (self.folder / f"{key}{SUFFIX}").exists():
            write_text(self.folder / f"{key}.json", json.dumps(dataclasses.asdict(mark)))

    @contextmanager
    def _writing(self) -> Iterator[list[str]]:
        """Yield the order, and write what became of it; one at a time, of all processes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "lock"):
                order = self.keys()
                yield order
                write_text(self.folder / ORDER, json.dumps(order))
        except OSError as error:
            raise StateError(
                f"The queue {str(self.folder)!r} cannot be written ({error.strerror or error}).",
                "See that you may write there and that the disk is not full.",
            ) from error


def _state_in(record: RunRecord | None, *, again: bool) -> tuple[str, str]:
    """Return how an entry stands that was begun, and why: what was left in the middle is to be gone on with."""
    if record is None:
        return INTERRUPTED, ""
    seen = record.snapshot
    if seen.active:
        return UNDER_WAY, "paused" if seen.status == "paused" else ""
    if seen.status == "failed" and not again:
        return FAILED, seen.error.message if seen.error else ""
    return (FINISHED, "") if seen.status == "finished" else (INTERRUPTED, "")
