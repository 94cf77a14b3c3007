"""The page: its parts, and what happens when they are used. Every handler asks the session; none keeps anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from kohya_gui import folder_dialog, past_runs, preset_panel, resume_dialog, run_panel, terminal_card
from kohya_gui.advanced_tab import advanced_markup
from kohya_gui.basic_tab import basic_markup, basic_settings
from kohya_gui.dataset_panel import dataset_panel
from kohya_gui.draft import Checked
from kohya_gui.form import fields
from kohya_gui.markup import panel
from kohya_gui.plan_panel import plan_panel, remedies
from kohya_gui.preset_panel import PresetPanel
from kohya_gui.session import Session
from kohya_gui.wiring import FORM, QUIET, Update, told
from trainer.commands import Command
from trainer.config import known_settings, load_config, to_flat
from trainer.errors import ConfigError, TrainerError

RUNNING_SECONDS = 1.0
IDLE_SECONDS = 3.0
"""How often a page asks for news, with a run under way and without."""


class Page:
    """Builds the page. `blocks` is what Gradio serves."""

    def __init__(self, session: Session) -> None:
        self.session = session
        with gr.Blocks(title="LoRA trainer", fill_width=True, analytics_enabled=False) as self.blocks:
            self.seen = gr.State({})
            self.timer = gr.Timer(IDLE_SECONDS)
            self._top()
            with gr.Row(elem_id="main"):
                with gr.Column(elem_id="form-side"):
                    self._form_side()
                with gr.Column(elem_id="watch-side"):
                    self._watch_side()
            self.dialog = panel(elem_id="dialog")
            self.form_parts = [self.basic, self.advanced, self.plan, self.dataset]
            self._wire_form()
            self.presets.wire(self.form_parts, self.form_update)
            self.presets.toml_browse.click(self.on_toml_browse, self.presets.toml_path, self.dialog, **QUIET)
            self._wire_run()

    # --- parts ------------------------------------------------------------------------------------------------------

    def _top(self) -> None:
        with gr.Row(elem_id="top"):
            self.bar = panel(run_panel.bar(self.session.snapshot, busy=False), elem_id="bar")
            with gr.Row(elem_id="controls"):
                self.controls = {
                    "start": gr.Button("Start", variant="primary", elem_id="start"),
                    "pause": gr.Button("Pause", interactive=False, elem_id="pause"),
                    "stop": gr.Button("Stop", interactive=False, elem_id="stop"),
                    "save": gr.Button("Save now", interactive=False, elem_id="save-now"),
                    "sample": gr.Button("Sample now", interactive=False, elem_id="sample-now"),
                    "abort": gr.Button("Abort", interactive=False, elem_id="abort"),
                }

    def _form_side(self) -> None:
        settings = known_settings().values()
        shown = self._shown()
        with gr.Tabs(elem_id="form-tabs"):
            with gr.Tab("Basic", id="basic"):
                self.presets = PresetPanel(self.session)
                self.basic = fields(basic_markup(settings), shown["basic"], elem_id="basic-fields")
            with gr.Tab("Advanced", id="advanced"):
                self.advanced = fields(advanced_markup(settings), shown["advanced"], elem_id="advanced-fields")

    def _watch_side(self) -> None:
        with gr.Tabs(elem_id="watch-tabs") as self.tabs:
            with gr.Tab("Plan", id="plan"):
                self.plan = panel(elem_id="plan")
                self.dataset = panel(elem_id="dataset-panel")
            with gr.Tab("Training", id="training"):
                self.message = panel(run_panel.message(self.session.snapshot), elem_id="message")
                self.curves = panel(elem_id="curves")
                self.samples = panel(elem_id="samples-panel")
                self.rates = panel(elem_id="rates")
                self.files = panel(elem_id="files-panel")
                self.log = panel(elem_id="log")
            with gr.Tab("Runs", id="runs") as self.runs_tab:
                self.runs = panel(elem_id="runs-panel")

    # --- the form ---------------------------------------------------------------------------------------------------

    def _wire_form(self) -> None:
        outputs = self.form_parts
        for part in (self.basic, self.advanced):
            part.edit(self.on_edit, None, outputs, **FORM)
            part.act(self.on_field_act, None, [self.dialog, *outputs, *self.presets.choice], **FORM)
        self.plan.act(self.on_plan_act, None, outputs, **FORM)
        self.dataset.act(self.on_scan, None, outputs, **FORM)
        self.blocks.load(self.on_load, None, [*outputs, *self.presets.choice], **QUIET)

    def _shown(self) -> dict[str, dict[str, object]]:
        """Return what the two tabs show at once, before the pictures were looked at."""
        return self._by_tab(self.session.shown(self.session.draft.check(), None))

    def _by_tab(self, shown: Mapping[str, object]) -> dict[str, dict[str, object]]:
        basic = {setting.key for setting in basic_settings(known_settings().values())}
        return {
            "basic": {name: _only(part, basic) for name, part in shown.items()},
            "advanced": {name: _only(part, set(known_settings()) - basic) for name, part in shown.items()},
        }

    def form_update(self) -> Update:
        """Return what the form and what stands beside it show now."""
        checked = self.session.draft.check()
        survey = self.session.survey(checked)
        shown = self._by_tab(self.session.shown(checked, survey))
        self.session.keep_form()
        return {
            self.basic: shown["basic"],
            self.advanced: shown["advanced"],
            self.plan: plan_panel(checked, survey),
            self.dataset: dataset_panel(survey, self.session.pictures),
        }

    def on_edit(self, event: gr.EventData) -> Update:
        """A field was changed or undone."""
        said = told(event)
        if said.get("undo") is True:
            self.session.draft.undo(said.get("key"))
        else:
            self.session.draft.edit(said.get("key"), said.get("value"))
        return self.form_update()

    def on_plan_act(self, event: gr.EventData) -> Update:
        """A piece of advice or the way out of a problem is to be followed, or the settings written for the terminal."""
        said = told(event)
        checked = self.session.draft.check()
        if said.get("act") == "write-settings":
            return self._write_settings(checked)
        chosen = said.get("of"), said.get("place"), said.get("name")
        for remedy in remedies(checked, self.session.survey(checked)):
            if chosen == (remedy.of, str(remedy.place), remedy.name):
                self.session.draft.change(remedy.values)
        return self.form_update()

    def _write_settings(self, checked: Checked) -> Update:
        refusal = ""
        try:
            if checked.config:
                terminal_card.write(checked.config)
        except ConfigError as error:
            refusal = str(error)
        return {self.plan: plan_panel(checked, self.session.survey(checked), refusal)}

    def on_scan(self) -> Update:
        """The pictures are to be looked at anew."""
        self.session.scan_again()
        return self.form_update()

    def on_load(self) -> Update:
        """A page was opened: show what the server knows."""
        return {
            **self.form_update(),
            self.presets.chosen: self.presets.listed(self.session.draft.base_name),
            self.presets.preview: "",
        }

    def on_toml_browse(self, at: object) -> str:
        """A settings file is to be picked."""
        return self._dialog(folder_dialog.TOML_FILE, str(at or ""))

    # --- the folder dialog ------------------------------------------------------------------------------------------

    def on_field_act(self, event: gr.EventData) -> Update:
        """A path is to be picked for a field, or what suits the model is to be taken."""
        said = told(event)
        if said.get("act") == "offer":
            return self._take_offer(said.get("name"))
        key = str(said.get("key"))
        return {self.dialog: self._dialog(key, str(self.session.draft.values.get(key) or ""))}

    def _take_offer(self, name: object) -> Update:
        """Set what the offer sets; a preset is only shown, for Apply to lay it under the form."""
        survey = self.session.survey(self.session.draft.check())
        offer = next((offer for offer in self.session.offers(survey) if offer.name == name), None)
        if offer is None:
            return {self.dialog: ""}
        if offer.preset:
            return self.presets.show(offer.preset)
        self.session.draft.change(offer.values)
        return self.form_update()

    def _dialog(self, key: str, at: str) -> str:
        return f'<div class="overlay">{folder_dialog.dialog(self.session.folders, key, at)}</div>'

    def on_dialog(self, seen: dict[str, int], event: gr.EventData) -> Update:
        """Something in the dialog was clicked."""
        said = told(event)
        act, key, path = said.get("act"), str(said.get("key")), str(said.get("at"))
        if act in ("go-on", "reuse"):
            return {self.dialog: "", **self.on_past_run(seen, event)}
        if act == "look":
            return {self.dialog: self._dialog(key, path)}
        if act != "pick" or self.session.folders.problem(path):
            return {self.dialog: ""}
        if key == folder_dialog.TOML_FILE:
            return {self.dialog: "", self.presets.toml_path: path}
        self.session.draft.edit(key, path)
        return {self.dialog: "", **self.form_update()}

    # --- the run ----------------------------------------------------------------------------------------------------

    def _wire_run(self) -> None:
        news = [self.bar, self.message, self.curves, self.samples, self.rates, self.files, self.log]
        news += [*self.controls.values(), self.timer, self.seen]
        calm: dict[str, Any] = {**QUIET, "queue": False}
        self.timer.tick(self.on_tick, self.seen, news, trigger_mode="once", **calm)
        self.blocks.load(self.on_open, None, [*news, self.tabs], **calm)
        self.controls["start"].click(self.on_start, self.seen, [*news, self.tabs, *self.form_parts], **FORM)
        for name, act in (("pause", self.on_pause), ("stop", self.on_stop), ("abort", self.on_abort)):
            self.controls[name].click(act, self.seen, news, **calm)
        self.controls["save"].click(self.on_save_now, self.seen, news, **calm)
        self.controls["sample"].click(self.on_sample_now, self.seen, news, **calm)
        runs = [*news, self.tabs, self.runs, self.dialog, *self.form_parts]
        for part in (self.message, self.runs):
            part.act(self.on_past_run, self.seen, runs, **FORM)
        self.dialog.act(self.on_dialog, self.seen, [*runs, self.presets.toml_path], **FORM)
        self.runs_tab.select(self._runs, None, self.runs, **QUIET)

    def news(self, seen: Mapping[str, int], asked: str = "") -> Update:
        """Return what a page does not show yet, and the new `seen`."""
        session, snapshot, busy = self.session, self.session.snapshot, self.session.busy
        now = (session.runs_started, snapshot.revision, busy, snapshot.status)
        if seen.get("now") == hash(now) and not asked:
            return {self.seen: seen}
        parts = {
            self.bar: run_panel.bar(snapshot, busy=busy, asked=asked),
            self.message: run_panel.message(snapshot),
            self.curves: run_panel.curves(snapshot),
            self.samples: run_panel.samples(snapshot, session.pictures),
            self.rates: run_panel.rates(snapshot),
            self.files: run_panel.files(snapshot, session.pictures),
            self.log: run_panel.log(session.log()),
        }
        shown = {str(part.elem_id): hash(text) for part, text in parts.items()}
        update: Update = {part: text for part, text in parts.items() if seen.get(part.elem_id) != shown[part.elem_id]}
        usable = run_panel.controls(snapshot, busy=busy)
        shown["controls"] = hash((*usable.items(), snapshot.status == "paused", asked))
        if seen.get("controls") != shown["controls"]:
            update |= {self.controls[name]: gr.Button(interactive=usable[name]) for name in usable}
            words = "Continue" if snapshot.status == "paused" else "Pause"
            update[self.controls["pause"]] = gr.Button(words, interactive=usable["pause"])
            update[self.timer] = gr.Timer(RUNNING_SECONDS if busy else IDLE_SECONDS)
        return {**update, self.seen: {**shown, "now": 0 if asked else hash(now)}}

    def on_tick(self, seen: dict[str, int]) -> Update:
        """Time has passed."""
        return self.news(seen)

    def on_open(self) -> Update:
        """A page was opened: show the run as it is, in front while it is under way."""
        front = {self.tabs: gr.Tabs(selected="training")} if self.session.busy else {}
        return {**self.news({}), **front}

    def on_start(self, seen: dict[str, int]) -> Update:
        """Train what the form says."""
        try:
            self.session.start()
        except ConfigError as error:
            count = len(error.problems)
            words = "Not started: 1 setting needs attention" if count == 1 else f"Not started: {count} settings to mend"
            return {**self.news(seen, asked=words), **self.form_update(), self.tabs: gr.Tabs(selected="plan")}
        except TrainerError as error:
            return self.news(seen, asked=str(error))
        return {**self.news(seen), **self.form_update(), self.tabs: gr.Tabs(selected="training")}

    def _send(self, command: Command, seen: dict[str, int], words: str) -> Update:
        self.session.send(command)
        return self.news(seen, asked=words if self.session.busy else "")

    def on_pause(self, seen: dict[str, int]) -> Update:
        """Pause, or go on."""
        if self.session.snapshot.status == "paused":
            return self._send(Command.RESUME, seen, "Going on")
        return self._send(Command.PAUSE, seen, "Pausing")

    def on_stop(self, seen: dict[str, int]) -> Update:
        """Save and finish."""
        return self._send(Command.STOP, seen, "Stopping")

    def on_abort(self, seen: dict[str, int]) -> Update:
        """End without a final file."""
        return self._send(Command.ABORT, seen, "Aborting")

    def on_save_now(self, seen: dict[str, int]) -> Update:
        """Save a LoRA after this step."""
        return self._send(Command.SAVE_NOW, seen, "Saving")

    def on_sample_now(self, seen: dict[str, int]) -> Update:
        """Draw the samples after this step."""
        return self._send(Command.SAMPLE_NOW, seen, "Sampling")

    # --- past runs --------------------------------------------------------------------------------------------------

    def _runs(self) -> str:
        return past_runs.runs_panel(self.session.past(), self.session.output_dir())

    def on_past_run(self, seen: dict[str, int], event: gr.EventData) -> Update:
        """Resume a run, ask whether to, take its settings, or look again."""
        said = told(event)
        act, name = said.get("act"), said.get("name")
        try:
            if act in ("resume", "resume-form"):
                return self._resume(seen, name, with_form=act == "resume-form", asked=False)
            if act == "go-on":
                return self._resume(seen, name, with_form=said.get("settings") == "form", asked=True)
            if act == "reuse":
                run = self.session.past_named(name).folder
                self.session.draft.lay(to_flat(load_config(run.config)), run.output_name)
                return {**self.form_update(), self.runs: self._runs(), self.tabs: gr.Tabs(selected="plan")}
        except TrainerError as error:
            told_runs = preset_panel.refused(str(error)) + self._runs()
            return {**self.news(seen, asked="Refused"), self.runs: told_runs, self.tabs: gr.Tabs(selected="runs")}
        return {self.runs: self._runs()}

    def _resume(self, seen: dict[str, int], name: object, *, with_form: bool, asked: bool) -> Update:
        """Go on with a run; where that would be another run than was begun, ask first."""
        run = self.session.past_named(name)
        config = self.session.settings_to_resume(run.folder, with_form=with_form)
        ahead = None if asked else self.session.look_ahead(run.folder, config)
        if ahead is not None and not (ahead.exact and ahead.step < run.total_steps):
            words = resume_dialog.dialog(run.folder.output_name, ahead, with_form=with_form)
            return {self.dialog: f'<div class="overlay">{words}</div>'}
        self.session.resume(run.folder, config)
        return {**self.news(seen), self.runs: self._runs(), self.tabs: gr.Tabs(selected="training")}


def _only(part: object, keys: set[str]) -> object:
    if isinstance(part, dict):
        return {key: value for key, value in part.items() if key in keys}
    return [key for key in part if key in keys] if isinstance(part, list) else part
