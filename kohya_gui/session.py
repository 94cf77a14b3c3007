"""What the server holds for all tabs: the form, the run, its log. There is one of these, made in `app`."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kohya_gui.form import leaving_demo, suggestions
from kohya_gui.form.draft import Checked, Draft, defaults, is_form, payload, refused_paths
from kohya_gui.form.memory_card import Forecaster
from kohya_gui.form.opening import Openings
from kohya_gui.form.presets import DEMO, Preset, Presets, laid_over
from kohya_gui.form.survey import Survey
from kohya_gui.form.surveyor import PATIENCE, Surveyor
from kohya_gui.parts.folders import Folders
from kohya_gui.parts.served import Pictures
from kohya_gui.tools.forms import Forms
from kohya_gui.tools.worker import Worker
from kohya_gui.workbench.workbench import Form, Workbench
from trainer.config import TrainingConfig, known_settings, to_flat
from trainer.families import FAMILIES, recognise_chosen
from trainer.ground.commands import Command
from trainer.ground.errors import ConfigError, Problem, StateError
from trainer.ground.files import write_text
from trainer.ground.paths import read_json
from trainer.preview import read_prompts
from trainer.queue import Entry, Queue, series
from trainer.queue import Worker as QueueWorker
from trainer.queue.series import Series
from trainer.results import housekeeping, prompt_changes, resumption
from trainer.results.resumption import Resumption
from trainer.results.run_folder import PastRun, RunFolder, past_runs, run_names
from trainer.results.run_record import RunReader, RunRecord
from trainer.results.snapshot import RunSnapshot
from trainer.run import Run, Start

BY = "started in the page"

REMEMBERED = ".remembered.json"
"""Beside the form: what the page remembers besides."""

QUEUE = "queue"
"""Beside the form too: the folder of the runs that wait."""

MOST_READERS = 12
"""Runs whose numbers are kept in memory, the last ones looked at."""


@dataclass(frozen=True, slots=True)
class View:
    """A run as it is looked at: `record` is what its folder tells, None while it has none; `live`: it is under way."""

    snapshot: RunSnapshot
    record: RunRecord | None = None
    live: bool = False

    @property
    def name(self) -> str:
        """The run's name, "" where it has none yet."""
        return self.record.name if self.record else ""


class Session:
    """One program, one form, at most one run at a time. Methods may be called from any thread."""

    def __init__(
        self, folders: Folders, presets: Presets, store: Path | None = None, patience: float = PATIENCE
    ) -> None:
        self.folders = folders
        self.presets = presets
        self.pictures = Pictures()
        self.openings = Openings()
        self.tools = Worker()
        self.forecaster = Forecaster()
        self.tool_forms = Forms(folders)
        self.workbench = Workbench(
            folders, Form(lambda: self.draft.check().usable or TrainingConfig(), self.edit, lambda: self.busy)
        )
        self.queue = Queue(store.parent / QUEUE if store else Path(QUEUE))
        self._queue_seen: tuple[int, object] = (0, self.queue.signature)
        self.draft = Draft(folders, self.queue.free_name)
        self.queue_worker = QueueWorker(self.queue, self._begin_queued, BY)
        self.run: Run | None = None
        self.runs_started = 0
        self.trouble = ""
        self._surveyor = Surveyor(patience)
        self._store = store
        self._lock = threading.Lock()
        self.lora_folder = self._remembered()
        self._readers: OrderedDict[RunFolder, RunReader] = OrderedDict()
        demo = presets.all().get(DEMO)
        self._demo = demo.values() if demo else {}
        self._open_form()
        self._kept = self.draft.revision

    # --- the form ---------------------------------------------------------------------------------------------------

    def _open_form(self) -> None:
        """Take up the form as it was left, else begin with the demo."""
        if self._store and self._restored(self._store):
            return
        demo = self.presets.all().get(DEMO)
        if demo:
            self.apply(demo)

    def _restored(self, store: Path) -> bool:
        try:
            saved = read_json(store)
            values, base, name = saved["values"], saved["base"], saved["name"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        known = set(defaults())
        if not (is_form(values, known) and is_form(base, known) and isinstance(name, str)):
            return False
        self.draft.restore(values, base, name)
        return True

    def keep_form(self) -> None:
        """Write the form to the disk where it changed, so that a restarted program shows it."""
        if self._store is None or self._kept == self.draft.revision:
            return
        self._kept, self.trouble = self.draft.revision, ""
        saved = {"values": self.draft.values, "base": self.draft.base, "name": self.draft.base_name}
        try:
            self._store.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._store, json.dumps(saved))
        except OSError as error:
            why = error.strerror or str(error)
            self.trouble = (
                f"The form is not kept for the next start: {str(self._store.parent)!r} cannot be written ({why}). "
                "Name another folder with --presets when you start the program."
            )

    def apply(self, preset: Preset, act: str = "") -> None:
        """Lay a preset under the form; `act` is what it is called where it is to be taken back.

        Raises:
            ConfigError: the preset cannot be used.
        """
        self.draft.lay(laid_over(self.draft.values, preset.values()), preset.name, act)

    def edit(self, key: object, raw: object) -> None:
        """Take what was typed into a field, or picked for it.

        Who chooses a model or pictures of their own leaves the demo, which can be taken back.
        """
        self.draft.edit(key, raw)
        values, base = self.draft.values, self.draft.base
        name = str(key)
        allowed = not self.folders.problem(str(values.get(name) or ""))
        if allowed and leaving_demo.is_own(name, values, base, self._demo):
            words = f"{leaving_demo.OWN[name]}: what only the demo can use was dropped"
            left, under = leaving_demo.without_demo(name, values, base, self._demo)
            stays = "" if leaving_demo.is_whole(base, self._demo) else self.draft.base_name
            self.draft.lay(left, stays, words, base=under)

    def survey(self, checked: Checked) -> Survey | None:
        """Return what the values come to, as far as they can be used."""
        survey = self._surveyor.survey(checked.usable) if checked.usable else None
        self.forecaster.of(survey.plan if survey else None)
        return survey

    def scan_again(self) -> None:
        """Forget the last scan."""
        self._surveyor.forget()

    def shown(self, checked: Checked, survey: Survey | None) -> dict[str, object]:
        """Return what the fields are to show."""
        notes = {**suggestions.notes(survey), **suggestions.demo_notes(self._of_the_demo())}
        problems, process, unused = (survey.problems, survey.process, survey.unused) if survey else ((), "", ())
        shown = payload(self.draft, checked, problems, notes, process, unused)
        offered: dict[str, list[dict[str, str]]] = {}
        for offer in self.offers(survey):
            offered.setdefault(offer.key, []).append({"name": offer.name, "label": offer.label})
        return {**shown, "revision": self.form_revision, "offers": offered}

    @property
    def form_revision(self) -> int:
        """Grows with every change of what the forms of the page show, and of what was found out about them late."""
        return self.draft.revision + self.tool_forms.revision + self._surveyor.revision + self._queue_changes()

    def _queue_changes(self) -> int:
        """Return how often the queue was seen to have changed: the form says which names its runs have."""
        count, before = self._queue_seen
        now = self.queue.signature
        if now != before:
            count += 1
            self._queue_seen = count, now
        return count

    def offers(self, survey: Survey | None) -> list[suggestions.Offer]:
        """Return what would suit the recognised model, and the ways out of what the demo left behind."""
        suited = suggestions.offers(survey, self.presets.all(), self.draft.base_name)
        return [*suited, *suggestions.demo_offers(self._of_the_demo())]

    def _of_the_demo(self) -> tuple[str, ...]:
        return suggestions.of_the_demo(self.draft.values, self._demo)

    # --- the run ----------------------------------------------------------------------------------------------------

    @property
    def snapshot(self) -> RunSnapshot:
        """What is known of the run, or an idle snapshot."""
        return self.run.snapshot if self.run else RunSnapshot()

    @property
    def busy(self) -> bool:
        """True while a run holds its thread."""
        return self.run is not None and self.run.alive

    def start(self) -> Run:
        """Begin to train what the form says, under a name that is free.

        Raises:
            ConfigError: what stands in the way, every problem.
            StateError: a run is under way.
        """
        return self._begin(self._freely_named(self._checked_form()), Start(by=BY))

    @property
    def queues(self) -> bool:
        """True while what is started has to wait for others."""
        return self.busy or self.queue_worker.going

    def add_to_queue(self) -> Entry:
        """Let what the form says be trained behind the others, under a name that is free.

        A queue that stands with entries that are to do goes on standing.

        Raises:
            ConfigError: what stands in the way, every problem.
            StateError: the queue cannot be written.
        """
        config = self._freely_named(self._checked_form())
        self._refuse_outside(config)
        with self._queueing():
            return self.queue.add(config)

    def add_series(self, texts: Sequence[str]) -> Series:
        """Let what the form says be trained once for each value, or pair of values; see `add_to_queue`.

        Raises:
            ConfigError: what stands in the way, every problem.
            StateError: the queue cannot be written.
        """
        if not texts:
            raise ConfigError([Problem("", "Choose a setting, and write its values.")])
        values, config = series.varied(texts), self._checked_form()
        for each in series.make(config, values, self.queue):
            self._refuse_outside(each)
        with self._queueing():
            return series.add(self.queue, config, values)

    @contextmanager
    def _queueing(self) -> Iterator[None]:
        """Add to the queue in the block, and let it be worked through, unless it stood with entries that are to do."""
        stands = self.queue.next() is not None and not self.queue_worker.going
        yield
        if not stands:
            self.queue_worker.go()

    def _freely_named(self, config: TrainingConfig) -> TrainingConfig:
        saving = config.saving
        name = self.queue.free_name(Path(saving.output_dir), saving.output_name)
        return dataclasses.replace(config, saving=saving.model_copy(update={"output_name": name}))

    def _begin_queued(self, config: TrainingConfig, start: Start, beginning: Callable[[], None]) -> Run | None:
        """Begin a run of the queue; None while another one is under way."""
        return None if self.busy else self._begin(config, start, beginning)

    def _checked_form(self) -> TrainingConfig:
        checked = self.draft.check()
        survey = self.survey(checked)
        problems = (*checked.problems, *(survey.problems if survey else ()))
        if problems or checked.config is None:
            raise ConfigError(problems)
        return checked.config

    def settings_to_resume(self, folder: RunFolder, *, with_form: bool) -> TrainingConfig:
        """Return the settings that a run would go on with: its own, or the form's, in any case into its own folder.

        Raises:
            ConfigError: they cannot be read or used.
        """
        config = self._checked_form() if with_form else folder.read_config()
        saving = config.saving.model_copy(
            update={"output_dir": str(folder.output_dir), "output_name": folder.output_name}
        )
        return dataclasses.replace(config, saving=saving)

    def look_ahead(self, folder: RunFolder, config: TrainingConfig) -> Resumption | None:
        """Return what going on with these settings would be, None where there is nothing saved to go on from.

        Raises:
            ConfigError: the pictures or the model cannot be used, or may not be looked at.
        """
        self._refuse_outside(config)
        survey = self._surveyor.survey(config)
        if survey.counting:
            words = "is still being counted. Ask again in a moment, when the pictures are shown beside the form."
            raise ConfigError([Problem("train_data_dir", words)])
        if survey.plan is None:
            raise ConfigError(survey.problems)
        return resumption.look_ahead(folder, config, survey.plan.timetable, survey.plan.report, survey.plan.parts)

    def resume(self, folder: RunFolder, config: TrainingConfig) -> Run:
        """Go on with a run from its newest state, with these settings.

        Raises:
            ConfigError, StateError: they name what the page may not touch, or a run is under way.
        """
        return self._begin(config, Start(resume="auto", by=BY))

    def _begin(self, config: TrainingConfig, start: Start, beginning: Callable[[], None] = lambda: None) -> Run:
        self._refuse_outside(config)
        with self._lock:
            if self.busy:
                raise StateError("A run is under way.", "Stop it, or wait until it ends.")
            self.run = None  # the old run's memory goes before the new one's comes
            self.run = Run(config, start)
            self.runs_started += 1
            beginning()
            self.run.start()
            return self.run

    def _refuse_outside(self, config: TrainingConfig) -> None:
        refused = refused_paths(self.folders, to_flat(config))
        if refused:
            raise ConfigError(refused)

    def send(self, command: Command) -> None:
        """Tell the run something, if there is one."""
        if self.run:
            self.run.send(command)

    # --- looking at runs --------------------------------------------------------------------------------------------

    def view(self, name: str = "") -> View:
        """Return the run of a name; without one that of this program's last start, else the newest in the folder."""
        live, started = self.snapshot, self.run is not None
        if not name and started and not live.folder:
            return View(live, None, self.busy)
        folder = self._run_named(name)
        if folder is None:
            return View(live if started and not name else RunSnapshot())
        own = bool(started and live.folder and Path(live.folder).resolve() == folder.path.resolve())
        try:
            record = self._reader(folder).read(live=own and self.busy)
        except OSError:
            return View(live if own else RunSnapshot(status="unreadable", folder=str(folder.path)))
        if not record.revision:
            return View(live if own else RunSnapshot(), None, own and self.busy)
        if not (own and self.busy):
            return View(record.snapshot, record)
        now = dataclasses.replace(
            record.snapshot,
            status=live.status,
            phase=live.phase,
            phase_done=live.phase_done,
            phase_total=live.phase_total,
            paused=live.paused,
            error=live.error,
            finished=live.finished,
        )
        return View(now, record, live=True)

    def _run_named(self, name: str) -> RunFolder | None:
        """Return the folder of a run that may be looked at, or None."""
        last = Path(self.snapshot.folder) if self.snapshot.folder else None
        if last is not None and name in ("", last.stem):
            return RunFolder(last.parent, last.stem)
        if not name:
            name = next(iter(run_names(self.output_dir())), "")
        folder = RunFolder(self.output_dir(), name)
        plain = bool(name) and Path(name).name == name and not self.folders.problem(str(folder.path))
        return folder if plain and folder.events.is_file() else None

    def _reader(self, folder: RunFolder) -> RunReader:
        with self._lock:
            reader = self._readers.setdefault(folder, RunReader(folder))
            self._readers.move_to_end(folder)
            while len(self._readers) > MOST_READERS:
                self._readers.popitem(last=False)
            return reader

    def forget(self, folder: RunFolder) -> None:
        """A run has another name now, or is gone: nothing of it is kept in memory."""
        with self._lock:
            self._readers.pop(folder, None)
            if self.run is not None and not self.run.alive and self.snapshot.folder == str(folder.path):
                self.run = None

    def write_notes(self, name: object, text: str) -> None:
        """Keep what was written about a run.

        Raises:
            StateError: there is no such run, or it cannot be written.
        """
        housekeeping.write_notes(self.looked_at(name).folder, text)

    def change_prompts(self, name: object, text: str) -> None:
        """Let the run under way draw other prompts from the next pictures on.

        Raises:
            ConfigError: they cannot be read, or name a file that the page may not touch.
            ModelError: the model's file is not what it was.
            StateError: there is no such run, or it is not under way.
        """
        folder, config = self.looked_at(name).folder, self.run.config if self.run else None
        if config is None or not self.busy or Path(self.snapshot.folder).resolve() != folder.path.resolve():
            raise StateError(f"{name!r} is not under way.", "Change the prompts in the form, and resume it with them.")
        sampling = config.sampling.model_copy(update={"sample_prompts": text})
        changed = dataclasses.replace(config, sampling=sampling)
        self._refuse_outside(changed)
        read_prompts(changed, FAMILIES[recognise_chosen(config).family].process)
        prompt_changes.ask(folder, text)

    def copy_file(self, name: object, file: str, target: str) -> Path:
        """Copy a LoRA of a run into the folder that is named, which is remembered, and return where it is.

        Raises:
            StateError: there is no such run or file, or it cannot be copied.
            Refused: the page may not use the folder.
        """
        record = self.looked_at(name)
        path = next((path for path in record.files.values() if path.name == file), None)
        if path is None:
            raise StateError(f"{record.name!r} has no file {file!r} any more.", "Look at the list again.")
        if not target.strip():
            raise StateError("The LoRA folder is not named yet.", "Write the path of your program's LoRA folder.")
        copy = housekeeping.copy_file(path, self.folders.check(target))
        self.lora_folder = target.strip()
        self._remember()
        return copy

    def looked_at(self, name: object) -> RunRecord:
        """Return the record of a run that may be looked at.

        Raises:
            StateError: there is none of this name.
        """
        record = self.view(str(name)).record
        if record is None or record.name != name:
            raise StateError(f"There is no run named {name!r}.", "Look at the list again.")
        return record

    def _remember(self) -> None:
        """Write what is remembered beside the form."""
        if self._store:
            with suppress(OSError):
                write_text(self._store.with_name(REMEMBERED), json.dumps({"lora_folder": self.lora_folder}))

    def _remembered(self) -> str:
        if self._store is None:
            return ""
        try:
            return str(read_json(self._store.with_name(REMEMBERED))["lora_folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def run_names(self) -> tuple[str, ...]:
        """Return the names of the runs in the output folder, the newest first."""
        return run_names(self.output_dir())

    # --- past runs --------------------------------------------------------------------------------------------------

    def output_dir(self) -> Path:
        """Return the output folder that the form names, or the default one where it may not be used."""
        text = str(self.draft.values["output_dir"] or "")
        if not text or self.folders.problem(text):
            text = str(known_settings()["output_dir"].default)
        return Path(text)

    def past(self) -> tuple[PastRun, ...]:
        """Return the runs in the output folder, the newest first, without the one under way."""
        current = Path(self.snapshot.folder).resolve() if self.busy and self.snapshot.folder else None
        return tuple(run for run in past_runs(self.output_dir()) if run.folder.path.resolve() != current)

    def past_named(self, name: object) -> PastRun:
        """Return one of the listed runs, or the last one of this session.

        Raises:
            StateError: there is none of that name.
        """
        last = Path(self.snapshot.folder)
        listed = self.past()
        if self.snapshot.folder and not self.busy and last.stem == name:
            listed = (*listed, *past_runs(last.parent))
        for run in listed:
            if run.folder.output_name == name:
                return run
        raise StateError(f"There is no run named {name!r} in {str(self.output_dir())!r}.", "Look at the list again.")
