"""The run: its buttons, always in sight, what is told of it, and the runs before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from kohya_gui.panels.desk import ASK_NEWS, Panel
from kohya_gui.panels.news import SAID_SECONDS, Part, ViewPart
from kohya_gui.panels.wiring import QUIET, Update, told
from kohya_gui.panels.workbench import PLACES
from kohya_gui.parts.dialogs import overlay, question
from kohya_gui.parts.markup import confirmed, news_panel, panel, refused
from kohya_gui.session import View
from kohya_gui.watch import (
    curve_panel,
    gallery,
    past_runs,
    picture_panel,
    resume_dialog,
    run_page,
    run_panel,
    trial_panel,
)
from trainer.config import in_labels, to_flat
from trainer.ground.commands import Command
from trainer.ground.errors import ConfigError, TrainerError
from trainer.results import housekeeping
from trainer.results.snapshot import RunSnapshot

ORDERS = {"pause": "Pause", "stop": "Stop", "save-now": "Save now", "sample-now": "Sample now", "abort": "Abort"}
"""The buttons of a run under way, by their ids."""

SIDES = (
    '<div class="sides"><button type="button" class="small" data-side="form" aria-pressed="true">Settings</button>'
    '<button type="button" class="small" data-side="watch" aria-pressed="false">Run</button>'
    '<button type="button" class="small" id="more-orders" aria-expanded="false" aria-label="More">⋯</button></div>'
)
"""On a phone: which side of the page is seen, and the rest of the buttons."""


class Controls(Panel):
    """The bar that is always in sight: how the run stands, and what it can be told."""

    name = "controls"

    def build(self) -> Sequence[Any]:
        """Make the bar and the buttons."""
        session, news = self.session, self.desk.news
        with gr.Row(elem_id="top"):
            gr.HTML('<h1 class="brand">LoRA trainer</h1>', elem_id="brand")
            gr.HTML(PLACES, elem_id="places")
            news_panel("bar", "bar", run_panel.bar(RunSnapshot(), busy=False, asked="…"))
            with gr.Row(elem_id="controls"):
                gr.HTML(SIDES, elem_id="sides")
                self.start = gr.Button("Start", variant="primary", elem_id="start")
                self.orders = {
                    name: gr.Button(words, interactive=False, elem_id=name) for name, words in ORDERS.items()
                }
        news.add(
            "bar",
            Part(
                lambda run: (run.revision, session.busy, news.words),
                lambda run: run_panel.bar(run, busy=session.busy, asked=news.words, refused=news.refused),
            ),
        )
        return []

    def wire(self) -> None:
        """Take clicks; the news are asked for after each, since what is done shows there."""
        acts = {"pause": self.on_pause, "stop": self.on_stop, "abort": self.on_abort}
        acts |= {"save-now": self.on_save_now, "sample-now": self.on_sample_now}
        self.desk.on(self.start.click, self.on_start, of_run=True)
        for name, act in acts.items():
            self.desk.on(self.orders[name].click, act, of_run=True, queue=False)

    def opened(self) -> Update:
        """The run is in front where there is one to look at, of this program's or an earlier one's."""
        return self.desk.show("training") if self.session.run or self.session.run_names() else {}

    def on_start(self) -> Update:
        """Train what the form says, or, while something is trained, let it be trained next."""
        queues = self.session.queues
        try:
            if queues:
                added = self.session.add_to_queue()
                self.desk.news.say(f"{added.name} is in the queue", SAID_SECONDS)
            else:
                self.session.start()
        except ConfigError as error:
            count = len(error.problems)
            what = "Not added" if queues else "Not started"
            words = f"{what}: 1 setting needs attention" if count == 1 else f"{what}: {count} settings to mend"
            self.desk.news.say(words, SAID_SECONDS, refused=True)
            return {**self.desk.form_update(), **self.desk.show("plan")}
        except TrainerError as error:
            self.desk.news.say(in_labels(str(error)), SAID_SECONDS, refused=True)
            return {}
        return {**self.desk.form_update(), **self.desk.show("queue" if queues else "training")}

    def _send(self, command: Command, words: str, seconds: float = math.inf) -> Update:
        if self.session.busy:
            self.session.send(command)
            self.desk.news.say(words, seconds, to_the_end=command in (Command.STOP, Command.ABORT))
        return {}

    def on_pause(self) -> Update:
        """Pause, or go on."""
        if self.session.snapshot.status == "paused":
            return self._send(Command.RESUME, "Going on")
        return self._send(Command.PAUSE, "Pausing")

    def on_stop(self) -> Update:
        """Save and finish."""
        return self._send(Command.STOP, "Stopping")

    def on_abort(self) -> Update:
        """End without a final file, once that was said twice."""
        if not self.session.busy:
            return {}
        text = "No LoRA is written for what was trained since the last save.\nStop ends the run too, and saves first."
        return self.desk.ask(question(self.name, "Abort the run?", text, "Abort", "abort"))

    def answered(self, said: Mapping[str, object]) -> Update:
        """Abort was meant."""
        return self._send(Command.ABORT, "Aborting") if said.get("act") == "abort" else {}

    def on_save_now(self) -> Update:
        """Save a LoRA after this step."""
        return self._send(Command.SAVE_NOW, "Saving", SAID_SECONDS)

    def on_sample_now(self) -> Update:
        """Draw the samples after this step."""
        return self._send(Command.SAMPLE_NOW, "Sampling", SAID_SECONDS)


class RunPanel(Panel):
    """The page of one run: the one under way, or another that was opened from the list. Each tab looks at its own."""

    name = "run"

    def build(self) -> Sequence[Any]:
        """Make the places that the news fill."""
        session = self.session
        parts: dict[str, tuple[str, ViewPart]] = {
            "head": ("run-head-panel", ViewPart(_standing, run_page.head)),
            "message": (
                "message",
                ViewPart(
                    lambda view: (_standing(view), _judged(view) if view.snapshot.finished else None),
                    lambda view: run_panel.message(view.snapshot, run_page.better_than_final(view), kept=_kept(view)),
                ),
            ),
            "verdict": ("verdict-panel", ViewPart(_judged, run_page.verdict)),
            "curves": ("curves", ViewPart(_drawn, lambda view: curve_panel.plot(view, session.run_names()))),
            "samples": (
                "samples-panel",
                ViewPart(_sampled, lambda view: gallery.samples(view, session.pictures, session.folders)),
            ),
            "files": (
                "files-panel",
                ViewPart(
                    lambda view: (_judged(view), session.lora_folder),
                    lambda view: run_page.files(view, session.pictures, session.lora_folder),
                ),
            ),
            "tried": (
                "tried-panel",
                ViewPart(
                    lambda view: trial_panel.of(view, session.tools),
                    lambda view: trial_panel.trial(view, session.tools, session.pictures),
                ),
            ),
            "pictures": ("pictures-panel", ViewPart(_judged, self._pictures)),
            "settings": ("settings-panel", ViewPart(_sat, run_page.settings)),
            "notes": ("notes-panel", ViewPart(_noted, run_page.notes)),
            "log": ("log", ViewPart(_told, lambda view: run_panel.log(view.record.log if view.record else ()))),
        }
        self.told = panel(elem_id="run-told")
        self.places = {}
        for name, (elem_id, part) in parts.items():
            self.places[name] = news_panel(elem_id, name)
            self.desk.news.add(name, part)
        return [self.told]

    def _pictures(self, view: View) -> str:
        return picture_panel.table(view.record, self.session.pictures, self.session.folders) if view.record else ""

    def wire(self) -> None:
        """Take clicks; what is done with a whole run the list of runs understands."""
        runs = next(panel for panel in self.desk.panels if isinstance(panel, RunsPanel))
        for name in ("head", "message"):
            self.desk.on(self.places[name].act, runs.on_act, of_run=True)
        for name in ("samples", "files", "notes"):
            self.desk.on(self.places[name].act, self.on_act, of_run=True)

    def on_act(self, event: gr.EventData) -> Update:
        """Copy a file, or keep notes."""
        said = told(event)
        name = said.get("name")
        try:
            if said.get("act") == "copy-file":
                copy = self.session.copy_file(name, str(said.get("file")), str(said.get("folder") or ""))
                return self._answered(confirmed(f"Copied to {copy}"))
            if said.get("act") == "change-prompts":
                self.session.change_prompts(name, str(said.get("prompts") or ""))
                self.desk.news.draw_again("samples")
                return self._answered("")
            if said.get("act") == "write-notes":
                self.session.write_notes(name, str(said.get("notes") or ""))
                return self._answered(confirmed("The notes are kept in the run's folder."))
        except TrainerError as error:
            return self._answered(refused(str(error)))
        return {}

    def _answered(self, words: str) -> Update:
        self.desk.news.draw_again("files")
        return {self.told: words}


def _standing(view: View) -> object:
    run = view.snapshot
    step = 0 if view.live else run.step
    return run.status, step, run.warnings, run.error, run.finished, run.paused, run.started_at


def _kept(view: View) -> bool:
    return view.record is not None and view.record.folder.has_state()


def _judged(view: View) -> object:
    record = view.record
    return (len(record.validated), view.snapshot.saved) if record else None


def _drawn(view: View) -> object:
    return (view.snapshot.step, len(view.record.validated), view.snapshot.total_steps) if view.record else None


def _sampled(view: View) -> object:
    return view.live and view.snapshot.step > 0, view.snapshot.samples


def _sat(view: View) -> object:
    return len(view.record.sittings) if view.record else None


def _noted(view: View) -> object:
    return view.record.notes if view.record else None


def _told(view: View) -> object:
    return (len(view.record.log), view.record.log[-1] if view.record.log else None) if view.record else None


class RunsPanel(Panel):
    """The runs in the output folder, to resume or to take settings from."""

    name = "runs"

    def build(self) -> Sequence[Any]:
        """Make the place of what is refused, and the list, which the news fill whichever way the runs change."""
        session = self.session
        self.answer = panel(elem_id="runs-told")
        self.list = news_panel("runs-panel", "runs")
        self.desk.news.add(
            "runs",
            Part(
                lambda run: (session.busy, session.output_dir()),
                lambda run: past_runs.runs_panel(session.past(), session.output_dir()),
            ),
        )
        return [self.answer]

    def wire(self) -> None:
        """Take clicks; the folder is looked at again when the tab comes to the front."""
        self.desk.on(self.list.act, self.on_act, of_run=True)
        if self.tab:
            # The answer stays: it was just given where the program itself brought the tab to the front.
            self.tab.select(self.look, None, None, **QUIET).then(None, js=ASK_NEWS, **QUIET)

    def look(self) -> None:
        """Make the list anew, for runs that were started elsewhere."""
        self.desk.news.draw_again("runs")

    def on_act(self, event: gr.EventData) -> Update:
        """Resume a run, ask whether to, take its settings, or look again."""
        return self.answered(told(event))

    def answered(self, said: Mapping[str, object]) -> Update:
        """Do what a button of the list, of the run's message or of the dialog says."""
        act, name = said.get("act"), said.get("name")
        try:
            if act in ("resume", "resume-form"):
                return self._resume(name, with_form=act == "resume-form", asked=False)
            if act == "go-on":
                return self._resume(name, with_form=said.get("settings") == "form", asked=True)
            if act == "reuse":
                run = self.session.past_named(name).folder
                words = f"The settings of {run.output_name} were taken"
                self.session.draft.lay(to_flat(run.read_config()), run.output_name, words)
                return {**self.desk.opened(), self.answer: "", **self.desk.show("plan")}
            if act in ("rename", "delete"):
                return self._ask(str(act), name)
            if act in ("rename-to", "delete-run", "delete-all"):
                return self._keep_house(said)
        except TrainerError as error:
            self.desk.news.say("Refused", SAID_SECONDS, refused=True)
            return {self.answer: refused(str(error)), **self.desk.show("runs")}
        self.look()
        return {self.answer: ""}

    def _ask(self, act: str, name: object) -> Update:
        """Ask for another name, or whether the run is to go."""
        run = self.session.past_named(name)
        record = self.session.view(run.folder.output_name).record
        if act == "rename" or record is None:
            return self.desk.ask(run_page.rename_dialog(self.name, run.folder.output_name))
        return self.desk.ask(run_page.delete_dialog(self.name, record))

    def _keep_house(self, said: Mapping[str, object]) -> Update:
        """Rename or delete a run, as it was answered."""
        folder = self.session.past_named(said.get("name")).folder
        if said.get("act") != "rename-to":
            housekeeping.delete(folder, files=said.get("act") == "delete-all")
            self.session.forget(folder)
            return self._became(f"{folder.output_name} is deleted.")
        try:
            new = housekeeping.rename(folder, str(said.get("new_name") or ""))
        except TrainerError as error:
            return self.desk.ask(run_page.rename_dialog(self.name, folder.output_name, str(error)))
        self.session.forget(folder)
        return self._became(f"{folder.output_name} is {new.output_name} now.")

    def _became(self, words: str) -> Update:
        """Say what became of a run, above the list of those that are there now."""
        self.look()
        return {self.answer: confirmed(words), **self.desk.show("runs")}

    def _resume(self, name: object, *, with_form: bool, asked: bool) -> Update:
        """Go on with a run; where that would be another run than was begun, ask first."""
        run = self.session.past_named(name)
        config = self.session.settings_to_resume(run.folder, with_form=with_form)
        ahead = None if asked else self.session.look_ahead(run.folder, config)
        if ahead is not None and not (ahead.exact and ahead.step < run.total_steps):
            words = resume_dialog.dialog(run.folder.output_name, ahead, with_form=with_form)
            return self.desk.ask(overlay(self.name, words))
        self.session.resume(run.folder, config)
        return {self.answer: "", **self.desk.show("training")}
