"""The page: its parts, and what happens when they are used. Every handler asks the session; none keeps anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui import folder_dialog, past_runs, preset_panel, run_panel
from kohya_gui.advanced_tab import advanced_markup
from kohya_gui.basic_tab import basic_markup, basic_settings
from kohya_gui.dataset_panel import dataset_panel
from kohya_gui.draft import defaults
from kohya_gui.folders import Refused
from kohya_gui.form import fields
from kohya_gui.markup import panel
from kohya_gui.plan_panel import plan_panel, remedies
from kohya_gui.presets import changes, file_text, laid_over, open_file
from kohya_gui.session import Session
from trainer.commands import Command
from trainer.config import known_settings, load_config, to_flat
from trainer.errors import ConfigError, TrainerError
from trainer.settings import toml

RUNNING_SECONDS = 1.0
IDLE_SECONDS = 3.0
"""How often a page asks for news, with a run under way and without."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
FORM: dict[str, Any] = {**QUIET, "trigger_mode": "multiple", "concurrency_id": "form", "concurrency_limit": 1}
"""Changes to the form are taken one after another, in order, and none is dropped."""

Update = dict[Any, Any]


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
            self._wire_form()
            self._wire_presets()
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
                self._presets()
                self.basic = fields(basic_markup(settings), shown["basic"], elem_id="basic-fields")
            with gr.Tab("Advanced", id="advanced"):
                self.advanced = fields(advanced_markup(settings), shown["advanced"], elem_id="advanced-fields")

    def _presets(self) -> None:
        with gr.Column(elem_id="presets"):
            with gr.Row():
                self.preset = gr.Dropdown(
                    preset_panel.choices(self.session.presets.all()),
                    value=self.session.draft.base_name or None,
                    label="Preset",
                    elem_id="preset",
                    interactive=True,
                    allow_custom_value=False,
                )
                self.apply = gr.Button("Apply", elem_id="preset-apply", size="sm")
            self.preview = panel(elem_id="preset-preview")
            with gr.Accordion("Save, open, reset", open=False, elem_id="preset-more"):
                with gr.Row():
                    self.preset_name = gr.Textbox(label="Save the form as a preset named", elem_id="preset-name")
                    self.preset_save = gr.Button("Save", size="sm", elem_id="preset-save")
                    self.preset_delete = gr.Button("Delete the chosen one", size="sm", elem_id="preset-delete")
                with gr.Row():
                    self.toml_path = gr.Textbox(label="Settings file (.toml)", elem_id="toml-path")
                    self.toml_browse = gr.Button("Browse", size="sm", elem_id="toml-browse")
                    self.toml_open = gr.Button("Open", size="sm", elem_id="toml-open")
                    self.toml_save = gr.Button("Save", size="sm", elem_id="toml-save")
                with gr.Row():
                    self.reset = gr.Button("Undo all changes", size="sm", elem_id="reset-preset")
                    self.clear = gr.Button("All defaults", size="sm", elem_id="reset-defaults")
                self.preset_told = panel(elem_id="preset-told")

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
        outputs = [self.basic, self.advanced, self.plan, self.dataset]
        for part in (self.basic, self.advanced):
            part.edit(self.on_edit, None, outputs, **FORM)
            part.act(self.on_field_act, None, [self.dialog, *outputs, self.preset, self.preview], **FORM)
        self.plan.act(self.on_remedy, None, outputs, **FORM)
        self.dataset.act(self.on_scan, None, outputs, **FORM)
        self.dialog.act(self.on_dialog, None, [self.dialog, self.toml_path, *outputs], **FORM)
        self.blocks.load(self.on_load, None, [*outputs, self.preset, self.preview], **QUIET)

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
        told = _told(event)
        if told.get("undo") is True:
            self.session.draft.undo(told.get("key"))
        else:
            self.session.draft.edit(told.get("key"), told.get("value"))
        return self.form_update()

    def on_remedy(self, event: gr.EventData) -> Update:
        """A piece of advice, or the way out of a problem, is to be followed."""
        told = _told(event)
        checked = self.session.draft.check()
        survey = self.session.survey(checked)
        chosen = told.get("of"), told.get("place"), told.get("name")
        for remedy in remedies(checked, survey):
            if chosen == (remedy.of, str(remedy.place), remedy.name):
                self.session.draft.change(remedy.values)
        return self.form_update()

    def on_scan(self) -> Update:
        """The pictures are to be looked at anew."""
        self.session.scan_again()
        return self.form_update()

    def on_load(self) -> Update:
        """A page was opened: show what the server knows."""
        return {
            **self.form_update(),
            self.preset: self._preset_list(self.session.draft.base_name),
            self.preview: "",
        }

    # --- the folder dialog ------------------------------------------------------------------------------------------

    def on_field_act(self, event: gr.EventData) -> Update:
        """A path is to be picked for a field, or what suits the model is to be taken."""
        told = _told(event)
        if told.get("act") == "offer":
            return self._take_offer(told.get("name"))
        key = str(told.get("key"))
        return {self.dialog: self._dialog(key, str(self.session.draft.values.get(key) or ""))}

    def _take_offer(self, name: object) -> Update:
        """Set what the offer sets; a preset is only shown, for Apply to lay it under the form."""
        survey = self.session.survey(self.session.draft.check())
        offer = next((offer for offer in self.session.offers(survey) if offer.name == name), None)
        if offer is None:
            return {self.dialog: ""}
        if offer.preset:
            return {self.preset: self._preset_list(offer.preset), self.preview: self.on_choose(offer.preset)}
        self.session.draft.change(offer.values)
        return self.form_update()

    def _dialog(self, key: str, at: str) -> str:
        return f'<div class="overlay">{folder_dialog.dialog(self.session.folders, key, at)}</div>'

    def on_dialog(self, event: gr.EventData) -> Update:
        """Something in the dialog was clicked."""
        told = _told(event)
        act, key, path = told.get("act"), str(told.get("key")), str(told.get("at"))
        if act == "look":
            return {self.dialog: self._dialog(key, path)}
        if act != "pick" or self.session.folders.problem(path):
            return {self.dialog: ""}
        if key == folder_dialog.TOML_FILE:
            return {self.dialog: "", self.toml_path: path}
        self.session.draft.edit(key, path)
        return {self.dialog: "", **self.form_update()}

    # --- presets ----------------------------------------------------------------------------------------------------

    def _wire_presets(self) -> None:
        form = [self.basic, self.advanced, self.plan, self.dataset]
        presets = [self.preset, self.preview, self.preset_told]
        self.preset.input(self.on_choose, self.preset, self.preview, **QUIET)
        self.apply.click(self.on_apply, self.preset, [*form, *presets], **FORM)
        self.preset_save.click(self.on_preset_save, self.preset_name, [*form, *presets], **FORM)
        self.preset_delete.click(self.on_preset_delete, self.preset, [*form, *presets], **FORM)
        self.reset.click(self.on_reset, None, [*form, *presets], **FORM)
        self.clear.click(self.on_clear, None, [*form, *presets], **FORM)
        self.toml_browse.click(self.on_toml_browse, self.toml_path, self.dialog, **QUIET)
        self.toml_open.click(self.on_toml_open, self.toml_path, [*form, *presets], **FORM)
        self.toml_save.click(self.on_toml_save, self.toml_path, [*form, *presets], **FORM)

    def _preset_list(self, chosen: str) -> Any:
        presets = self.session.presets.all()
        return gr.Dropdown(choices=preset_panel.choices(presets), value=chosen if chosen in presets else None)

    def on_choose(self, name: object) -> str:
        """A preset was chosen in the list: show what it would change."""
        preset = self.session.presets.all().get(str(name))
        if preset is None:
            return ""
        try:
            values = self.session.draft.values
            return preset_panel.preview(preset, changes(values, laid_over(values, preset.values())))
        except ConfigError as error:
            return preset_panel.refused(str(error))

    def on_apply(self, name: object) -> Update:
        """The chosen preset is to be laid under the form."""
        preset = self.session.presets.all().get(str(name))
        if preset is None:
            return {self.preset_told: preset_panel.refused("Choose a preset first.")}
        return self._attempt(lambda: self._applied(str(name)), "")

    def _applied(self, name: str) -> str:
        self.session.apply(self.session.presets.all()[name])
        return name

    def _attempt(self, act: Callable[[], str], told: str) -> Update:
        """Do what changes the form; show what became of it. `act` returns the preset to show as chosen."""
        try:
            chosen = act()
        except ConfigError as error:
            return {self.preset_told: preset_panel.refused(str(error))}
        return {
            **self.form_update(),
            self.preset: self._preset_list(chosen),
            self.preview: "",
            self.preset_told: preset_panel.told(told) if told else "",
        }

    def on_preset_save(self, name: object) -> Update:
        """The form is to become a preset."""

        def save() -> str:
            preset = self.session.presets.save(str(name), self.session.draft.values)
            self.session.apply(preset)
            return preset.name

        return self._attempt(save, f"Saved as {name}.")

    def on_preset_delete(self, name: object) -> Update:
        """The chosen preset is to go."""

        def delete() -> str:
            self.session.presets.delete(str(name or ""))
            return ""

        return self._attempt(delete, f"Deleted {name}.")

    def on_reset(self) -> Update:
        """The form is to be as the preset has it."""
        draft = self.session.draft
        draft.lay(draft.base, draft.base_name)
        return self._attempt(lambda: draft.base_name, "All changes undone.")

    def on_clear(self) -> Update:
        """The form is to be empty."""
        self.session.draft.lay(defaults(), "")
        return self._attempt(lambda: "", "Every setting has its default.")

    def on_toml_browse(self, at: object) -> str:
        """A settings file is to be picked."""
        return self._dialog(folder_dialog.TOML_FILE, str(at or ""))

    def on_toml_open(self, text: object) -> Update:
        """The form is to be filled from a settings file."""
        notices: list[str] = []

        def read() -> str:
            path = self._toml(text)
            values, told = open_file(path)
            notices.extend(told)
            self.session.draft.lay(values, path.name)
            return ""

        update = self._attempt(read, "Opened.")
        if notices:
            update[self.preset_told] = preset_panel.told(" ".join(notices))
        return update

    def on_toml_save(self, text: object) -> Update:
        """The form is to be written to a settings file."""

        def write() -> str:
            checked = self.session.draft.check()
            if checked.config is None:
                raise ConfigError(checked.problems)
            toml.write(self._toml(text), file_text(checked.config))
            return self.session.draft.base_name

        return self._attempt(write, f"Saved to {text}.")

    def _toml(self, text: object) -> Path:
        """Return the settings file that is meant. Raises ConfigError where the page may not touch it."""
        name = str(text or "").strip().strip('"')
        try:
            path = self.session.folders.check(name)
        except Refused as refusal:
            raise ConfigError([preset_panel.problem(str(refusal))]) from None
        if path.suffix.lower() != ".toml":
            raise ConfigError([preset_panel.problem(f"{name!r} is not the path of a .toml file.")])
        return path

    # --- the run ----------------------------------------------------------------------------------------------------

    def _wire_run(self) -> None:
        news = [self.bar, self.message, self.curves, self.samples, self.rates, self.files, self.log]
        news += [*self.controls.values(), self.timer, self.seen]
        calm: dict[str, Any] = {**QUIET, "queue": False}
        self.timer.tick(self.on_tick, self.seen, news, trigger_mode="once", **calm)
        self.blocks.load(self.on_open, None, news, **calm)
        self.controls["start"].click(
            self.on_start, self.seen, [*news, self.tabs, self.basic, self.advanced, self.plan, self.dataset], **FORM
        )
        for name, act in (("pause", self.on_pause), ("stop", self.on_stop), ("abort", self.on_abort)):
            self.controls[name].click(act, self.seen, news, **calm)
        self.controls["save"].click(self.on_save_now, self.seen, news, **calm)
        self.controls["sample"].click(self.on_sample_now, self.seen, news, **calm)
        for part in (self.message, self.runs):
            part.act(
                self.on_past_run,
                self.seen,
                [*news, self.tabs, self.runs, self.basic, self.advanced, self.plan, self.dataset],
                **FORM,
            )
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
            self.files: run_panel.files(snapshot),
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
        """A page was opened: show the run as it is."""
        return self.news({})

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
        """Resume a run, take its settings, or look again."""
        told = _told(event)
        act = told.get("act")
        try:
            if act == "resume":
                self.session.resume(self.session.past_named(told.get("name")).folder)
                return {**self.news(seen), self.runs: self._runs(), self.tabs: gr.Tabs(selected="training")}
            if act == "reuse":
                run = self.session.past_named(told.get("name")).folder
                self.session.draft.lay(to_flat(load_config(run.config)), run.output_name)
                return {**self.form_update(), self.runs: self._runs(), self.tabs: gr.Tabs(selected="plan")}
        except TrainerError as error:
            told_runs = preset_panel.refused(str(error)) + self._runs()
            return {**self.news(seen, asked="Refused"), self.runs: told_runs, self.tabs: gr.Tabs(selected="runs")}
        return {self.runs: self._runs()}


def _only(part: object, keys: set[str]) -> object:
    if isinstance(part, dict):
        return {key: value for key, value in part.items() if key in keys}
    return [key for key in part if key in keys] if isinstance(part, list) else part


def _told(event: gr.EventData | None) -> dict[str, object]:
    """Return what an event says, whoever made it up."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}
