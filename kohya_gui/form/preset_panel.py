"""What a preset is for, and what it would change, before it is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui.form.draft import defaults
from kohya_gui.form.presets import Change, Preset, changes, file_text, laid_over, open_file
from kohya_gui.parts.folders import Refused
from kohya_gui.parts.markup import esc, panel
from kohya_gui.parts.wiring import FORM, QUIET, Update
from kohya_gui.session import Session
from trainer.ground.errors import ConfigError, Problem
from trainer.settings import toml

LONGEST_UNBROKEN = 12
"""Signs of a value that stays on one line in the table of what a preset changes."""


def choices(presets: dict[str, Preset]) -> list[tuple[str, str]]:
    """Return (shown, name) of every preset for the drop-down list."""
    return [(f"{preset.name} (own)" if preset.own else preset.title, name) for name, preset in presets.items()]


def preview(preset: Preset, changed: Sequence[Change]) -> str:
    """Return for whom the preset is and what it changes."""
    words = f'<p class="quiet">{esc(preset.description)}</p>' if preset.description else ""
    if not changed:
        return f'{words}<p class="quiet" id="preset-same">The form already is as this preset has it.</p>'
    rows = "".join(
        f"<tr><th>{esc(each.label)}</th>{_cell(each.before)}<td>→</td>{_cell(each.after, 'b')}</tr>" for each in changed
    )
    count = "1 setting" if len(changed) == 1 else f"{len(changed)} settings"
    return (
        f'{words}<details class="diff" open><summary>Apply changes {count}</summary>'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
    )


def _cell(text: str, tag: str = "span") -> str:
    """Return a cell of the table; only long values may be broken."""
    style = ' class="short"' if len(text) <= LONGEST_UNBROKEN else ""
    return f"<td{style}><{tag}>{esc(text)}</{tag}></td>"


def refused(text: str) -> str:
    """Return a refusal, a line each."""
    lines = "".join(f"<p>{esc(line)}</p>" for line in text.splitlines())
    return f'<div class="problem-box" role="alert">{lines}</div>'


def confirmed(text: str) -> str:
    """Return a short confirmation."""
    return f'<p class="told" role="status">{esc(text)}</p>'


def problem(text: str) -> Problem:
    """Return a problem that belongs to no setting."""
    return Problem("", text)


class PresetPanel:
    """The card of presets and settings files: its parts, and what happens when they are used."""

    def __init__(self, session: Session) -> None:
        self.session = session
        with gr.Column(elem_id="presets"):
            with gr.Row():
                self.chosen = gr.Dropdown(
                    choices(session.presets.all()),
                    value=session.draft.base_name or None,
                    label="Preset",
                    elem_id="preset",
                    interactive=True,
                    allow_custom_value=False,
                )
                self.apply = gr.Button("Apply", elem_id="preset-apply", size="sm")
            self.preview = panel(elem_id="preset-preview")
            with gr.Accordion("Save, open, reset", open=False, elem_id="preset-more"):
                with gr.Row():
                    self.name = gr.Textbox(label="Save the form as a preset named", elem_id="preset-name")
                    self.save = gr.Button("Save", size="sm", elem_id="preset-save")
                    self.delete = gr.Button("Delete the chosen one", size="sm", elem_id="preset-delete")
                with gr.Row():
                    self.toml_path = gr.Textbox(label="Settings file (.toml)", elem_id="toml-path")
                    self.toml_browse = gr.Button("Browse", size="sm", elem_id="toml-browse")
                    self.toml_open = gr.Button("Open", size="sm", elem_id="toml-open")
                    self.toml_save = gr.Button("Save", size="sm", elem_id="toml-save")
                with gr.Row():
                    self.reset = gr.Button("Undo all changes", size="sm", elem_id="reset-preset")
                    self.clear = gr.Button("All defaults", size="sm", elem_id="reset-defaults")
                self.answer = panel(elem_id="preset-told")

    def wire(self, form: Sequence[gr.HTML], form_update: Callable[[], Update]) -> None:
        """Say what happens when the parts are used. `form_update` returns what `form` then shows."""
        self._form_update = form_update
        presets = [self.chosen, self.preview, self.answer]
        self.chosen.input(self.on_choose, self.chosen, self.preview, **QUIET)
        self.apply.click(self.on_apply, self.chosen, [*form, *presets], **FORM)
        self.save.click(self.on_preset_save, self.name, [*form, *presets], **FORM)
        self.delete.click(self.on_preset_delete, self.chosen, [*form, *presets], **FORM)
        self.reset.click(self.on_reset, None, [*form, *presets], **FORM)
        self.clear.click(self.on_clear, None, [*form, *presets], **FORM)
        self.toml_open.click(self.on_toml_open, self.toml_path, [*form, *presets], **FORM)
        self.toml_save.click(self.on_toml_save, self.toml_path, [*form, *presets], **FORM)

    def listed(self, chosen: str) -> Any:
        """Return the list of presets with one of them chosen, none where there is none of that name."""
        presets = self.session.presets.all()
        return gr.Dropdown(choices=choices(presets), value=chosen if chosen in presets else None)

    @property
    def choice(self) -> tuple[gr.Dropdown, gr.HTML]:
        """The parts that show which preset is chosen and what it would change."""
        return self.chosen, self.preview

    def show(self, name: str) -> Update:
        """Choose a preset, without applying it."""
        return {self.chosen: self.listed(name), self.preview: self.on_choose(name)}

    def on_choose(self, name: object) -> str:
        """A preset was chosen in the list: show what it would change."""
        preset = self.session.presets.all().get(str(name))
        if preset is None:
            return ""
        try:
            values = self.session.draft.values
            return preview(preset, changes(values, laid_over(values, preset.values())))
        except ConfigError as error:
            return refused(str(error))

    def on_apply(self, name: object) -> Update:
        """The chosen preset is to be laid under the form."""
        preset = self.session.presets.all().get(str(name))
        if preset is None:
            return {self.answer: refused("Choose a preset first.")}
        return self._attempt(lambda: self._applied(str(name)), "")

    def _applied(self, name: str) -> str:
        self.session.apply(self.session.presets.all()[name])
        return name

    def _attempt(self, act: Callable[[], str], said: str) -> Update:
        """Do what changes the form; show what became of it. `act` returns the preset to show as chosen."""
        try:
            chosen = act()
        except ConfigError as error:
            return {self.answer: refused(str(error))}
        return {
            **self._form_update(),
            self.chosen: self.listed(chosen),
            self.preview: "",
            self.answer: confirmed(said) if said else "",
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
            update[self.answer] = confirmed(" ".join(notices))
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
            raise ConfigError([problem(str(refusal))]) from None
        if path.suffix.lower() != ".toml":
            raise ConfigError([problem(f"{name!r} is not the path of a .toml file.")])
        return path
