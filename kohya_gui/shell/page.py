"""The page: its parts, and what happens when they are used. Every handler asks the session; none keeps anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gradio as gr

from kohya_gui.form import folder_dialog, preset_panel, terminal_card
from kohya_gui.form.advanced_tab import advanced_markup
from kohya_gui.form.basic_tab import basic_markup, basic_settings
from kohya_gui.form.dataset_panel import dataset_panel
from kohya_gui.form.draft import Checked
from kohya_gui.form.fields import fields
from kohya_gui.form.plan_panel import plan_panel, remedies
from kohya_gui.form.preset_panel import PresetPanel
from kohya_gui.parts.markup import news_panel, panel
from kohya_gui.parts.wiring import FORM, QUIET, Update, told
from kohya_gui.session import Session
from kohya_gui.watch import past_runs, resume_dialog, run_panel
from kohya_gui.watch.news import News
from trainer.config import known_settings, to_flat
from trainer.ground.commands import Command
from trainer.ground.errors import ConfigError, TrainerError
from trainer.results.snapshot import RunSnapshot

ORDERS = {"pause": "Pause", "stop": "Stop", "save-now": "Save now", "sample-now": "Sample now", "abort": "Abort"}
"""The buttons of a run under way, by their ids."""

SAID_SECONDS = 6.0
"""How long words stand that no change of the run's status answers."""


class Page:
    """Builds the page. `blocks` is what Gradio serves; `news` answers the pages that ask how the run stands."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.news = News(session)
        with gr.Blocks(title="LoRA trainer", fill_width=True, analytics_enabled=False) as self.blocks:
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
            news_panel("bar", "bar", run_panel.bar(RunSnapshot(), busy=False, asked="…"))
            with gr.Row(elem_id="controls"):
                self.start = gr.Button("Start", variant="primary", elem_id="start")
                self.orders = {
                    name: gr.Button(words, interactive=False, elem_id=name) for name, words in ORDERS.items()
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
                self.message = news_panel("message", "message")
                news_panel("curves", "curves")
                news_panel("samples-panel", "samples")
                news_panel("rates", "rates")
                news_panel("files-panel", "files")
                news_panel("log", "log")
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

    def on_dialog(self, event: gr.EventData) -> Update:
        """Something in the dialog was clicked."""
        said = told(event)
        act, key, path = said.get("act"), str(said.get("key")), str(said.get("at"))
        if act in ("go-on", "reuse"):
            return {self.dialog: "", **self.on_past_run(event)}
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
        calm: dict[str, Any] = {**QUIET, "queue": False}
        then_ask: dict[str, Any] = {**calm, "js": "() => NEWS.ask()"}
        self.blocks.load(self.on_open, None, self.tabs, **calm)
        self.start.click(self.on_start, None, [self.tabs, *self.form_parts], **FORM).then(None, **then_ask)
        orders = {"pause": self.on_pause, "stop": self.on_stop, "abort": self.on_abort}
        orders |= {"save-now": self.on_save_now, "sample-now": self.on_sample_now}
        for name, act in orders.items():
            self.orders[name].click(act, None, None, **calm).then(None, **then_ask)
        runs = [self.tabs, self.runs, self.dialog, *self.form_parts]
        for part in (self.message, self.runs):
            part.act(self.on_past_run, None, runs, **FORM).then(None, **then_ask)
        self.dialog.act(self.on_dialog, None, [*runs, self.presets.toml_path], **FORM).then(None, **then_ask)
        self.runs_tab.select(self._runs, None, self.runs, **QUIET)

    def on_open(self) -> Update:
        """A page was opened: the run is in front while it is under way."""
        return {self.tabs: gr.Tabs(selected="training") if self.session.busy else gr.skip()}

    def on_start(self) -> Update:
        """Train what the form says."""
        try:
            self.session.start()
        except ConfigError as error:
            count = len(error.problems)
            words = "Not started: 1 setting needs attention" if count == 1 else f"Not started: {count} settings to mend"
            self.news.say(words, SAID_SECONDS)
            return {**self.form_update(), self.tabs: gr.Tabs(selected="plan")}
        except TrainerError as error:
            self.news.say(str(error), SAID_SECONDS)
            return {self.tabs: gr.skip()}
        return {**self.form_update(), self.tabs: gr.Tabs(selected="training")}

    def _send(self, command: Command, words: str, seconds: float = math.inf) -> None:
        if self.session.busy:
            self.session.send(command)
            self.news.say(words, seconds)

    def on_pause(self) -> None:
        """Pause, or go on."""
        if self.session.snapshot.status == "paused":
            self._send(Command.RESUME, "Going on")
        else:
            self._send(Command.PAUSE, "Pausing")

    def on_stop(self) -> None:
        """Save and finish."""
        self._send(Command.STOP, "Stopping")

    def on_abort(self) -> None:
        """End without a final file."""
        self._send(Command.ABORT, "Aborting")

    def on_save_now(self) -> None:
        """Save a LoRA after this step."""
        self._send(Command.SAVE_NOW, "Saving", SAID_SECONDS)

    def on_sample_now(self) -> None:
        """Draw the samples after this step."""
        self._send(Command.SAMPLE_NOW, "Sampling", SAID_SECONDS)

    # --- past runs --------------------------------------------------------------------------------------------------

    def _runs(self) -> str:
        return past_runs.runs_panel(self.session.past(), self.session.output_dir())

    def on_past_run(self, event: gr.EventData) -> Update:
        """Resume a run, ask whether to, take its settings, or look again."""
        said = told(event)
        act, name = said.get("act"), said.get("name")
        try:
            if act in ("resume", "resume-form"):
                return self._resume(name, with_form=act == "resume-form", asked=False)
            if act == "go-on":
                return self._resume(name, with_form=said.get("settings") == "form", asked=True)
            if act == "reuse":
                run = self.session.past_named(name).folder
                self.session.draft.lay(to_flat(run.read_config()), run.output_name)
                return {**self.form_update(), self.runs: self._runs(), self.tabs: gr.Tabs(selected="plan")}
        except TrainerError as error:
            told_runs = preset_panel.refused(str(error)) + self._runs()
            self.news.say("Refused", SAID_SECONDS)
            return {self.runs: told_runs, self.tabs: gr.Tabs(selected="runs")}
        return {self.runs: self._runs()}

    def _resume(self, name: object, *, with_form: bool, asked: bool) -> Update:
        """Go on with a run; where that would be another run than was begun, ask first."""
        run = self.session.past_named(name)
        config = self.session.settings_to_resume(run.folder, with_form=with_form)
        ahead = None if asked else self.session.look_ahead(run.folder, config)
        if ahead is not None and not (ahead.exact and ahead.step < run.total_steps):
            words = resume_dialog.dialog(run.folder.output_name, ahead, with_form=with_form)
            return {self.dialog: f'<div class="overlay">{words}</div>'}
        self.session.resume(run.folder, config)
        return {self.runs: self._runs(), self.tabs: gr.Tabs(selected="training")}


def _only(part: object, keys: set[str]) -> object:
    if isinstance(part, dict):
        return {key: value for key, value in part.items() if key in keys}
    return [key for key in part if key in keys] if isinstance(part, list) else part
