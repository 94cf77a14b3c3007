"""What the server holds for all tabs: the form, the run, its log. There is one of these, made in `app`."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

from kohya_gui.form import leaving_demo, suggestions
from kohya_gui.form.draft import Checked, Draft, defaults, is_form, payload, refused_paths
from kohya_gui.form.opening import Openings
from kohya_gui.form.presets import DEMO, Preset, Presets, laid_over
from kohya_gui.form.survey import Survey, Surveyor
from kohya_gui.parts.folders import Folders
from kohya_gui.parts.served import Pictures
from trainer.config import TrainingConfig, known_settings, to_flat
from trainer.ground.commands import Command
from trainer.ground.errors import ConfigError, StateError
from trainer.ground.events import Event
from trainer.ground.files import write_text
from trainer.ground.paths import read_json
from trainer.results import resumption
from trainer.results.resumption import Resumption
from trainer.results.run_folder import PastRun, RunFolder, next_free_name, past_runs
from trainer.results.snapshot import RunSnapshot
from trainer.run import Run, Start

LOG_LINES = 300

BY = "started in the page"


class Session:
    """One program, one form, at most one run at a time. Methods may be called from any thread."""

    def __init__(self, folders: Folders, presets: Presets, store: Path | None = None) -> None:
        self.folders = folders
        self.presets = presets
        self.pictures = Pictures()
        self.draft = Draft(folders)
        self.openings = Openings()
        self.run: Run | None = None
        self.runs_started = 0
        self.trouble = ""
        self._surveyor = Surveyor()
        self._store = store
        self._lock = threading.Lock()
        self._log: list[Event] = []
        self._log_number = 0
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
            self.draft.lay(leaving_demo.without_demo(name, values, base), "", words, base=defaults())

    def survey(self, checked: Checked) -> Survey | None:
        """Return what the values come to, as far as they can be used."""
        return self._surveyor.survey(checked.usable) if checked.usable else None

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
        return {**shown, "offers": offered}

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
        config = self._checked_form()
        saving = config.saving
        name = next_free_name(Path(saving.output_dir), saving.output_name)
        renamed = saving.model_copy(update={"output_name": name})
        return self._begin(dataclasses.replace(config, saving=renamed), Start(by=BY))

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
        if survey.plan is None:
            raise ConfigError(survey.problems)
        return resumption.look_ahead(folder, config, survey.plan.timetable, survey.plan.report, survey.plan.parts)

    def resume(self, folder: RunFolder, config: TrainingConfig) -> Run:
        """Go on with a run from its newest state, with these settings.

        Raises:
            ConfigError, StateError: they name what the page may not touch, or a run is under way.
        """
        return self._begin(config, Start(resume="auto", by=BY))

    def _begin(self, config: TrainingConfig, start: Start) -> Run:
        self._refuse_outside(config)
        with self._lock:
            if self.busy:
                raise StateError("A run is under way.", "Stop it, or wait until it ends.")
            self.run = None  # the old run's memory goes before the new one's comes
            self.run = Run(config, start)
            self.runs_started += 1
            self._log, self._log_number = [], 0
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

    def log(self) -> list[Event]:
        """Return the newest events of the run that a person reads, oldest first."""
        run = self.run
        if run is None:
            return []
        with self._lock:
            for number, event in run.board.since(self._log_number):
                self._log_number = number
                if not _is_routine(event):
                    self._log.append(event)
            del self._log[:-LOG_LINES]
            return list(self._log)

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


def _is_routine(event: Event) -> bool:
    """True for events that are shown as numbers, not as lines of the log."""
    return type(event).__name__ in ("StepDone", "Stage") or getattr(event, "kind", "") == "state"
