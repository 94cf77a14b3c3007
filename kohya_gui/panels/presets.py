"""Presets and settings files: what a preset would change before it is applied, and saving, opening and resetting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui.form import folder_dialog, opening, opening_report, own_files
from kohya_gui.form.draft import defaults
from kohya_gui.form.preset_card import LIST, applied, choice, more, options, preview
from kohya_gui.form.presets import changes, file_text, laid_over
from kohya_gui.panels.desk import Panel
from kohya_gui.panels.news import Part
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.dialogs import overlay, question
from kohya_gui.parts.folders import Refused
from kohya_gui.parts.markup import confirmed, panel, refused
from trainer.ground.errors import ConfigError, Problem
from trainer.settings.importing import Source


class PresetPanel(Panel):
    """The card of presets and settings files."""

    name = "presets"

    def build(self) -> Sequence[Any]:
        """Make the list, the fields to save and open with, and the place of the answer."""
        session = self.session
        self.desk.news.add(
            LIST, Part(lambda run: tuple(session.presets.all()), lambda run: options(session.presets.all()))
        )
        with gr.Column(elem_id="presets"):
            self.choice = panel(choice(self.session.presets.all(), self.session.draft.base_name), elem_id="preset-card")
            self.more = panel(more(), elem_id="preset-more")
            self.answer = panel(elem_id="preset-told")
        return [self.choice, self.more, self.answer]

    def wire(self) -> None:
        """Take clicks and choices."""
        self.desk.on(self.choice.act, self.on_act)
        self.desk.on(self.more.act, self.on_act)

    def opened(self) -> Update:
        """Return the list with the preset in use."""
        return {self.choice: self._listed(self.session.draft.base_name), self.answer: ""}

    def _listed(self, chosen: str, shown: str = "") -> str:
        return choice(self.session.presets.all(), chosen, shown)

    def show(self, name: str) -> Update:
        """Choose a preset and show what it would change, without applying it."""
        preset = self.session.presets.all().get(name)
        if preset is None:
            return {self.choice: self._listed("")}
        try:
            values = self.session.draft.values
            shown = preview(preset, changes(values, laid_over(values, preset.values())))
        except ConfigError as error:
            shown = refused(str(error))
        return {self.choice: self._listed(name, shown), self.answer: ""}

    def on_act(self, event: gr.EventData) -> Update:
        """Something in the card was clicked."""
        return self.answered(told(event))

    def answered(self, said: Mapping[str, object]) -> Update:
        """Do what a button of the card or of one of its dialogs says."""
        acts: dict[str, Callable[[Mapping[str, object]], Update]] = {
            "choose": lambda said: self.show(str(said.get("preset"))),
            "apply": self._apply,
            "save-preset": self._save_preset,
            "delete-preset": self._delete_preset,
            "open-file": self._open_file,
            "open-pasted": lambda said: self._open_text("", said.get("pasted")),
            "open-dropped": lambda said: self._open_text(said.get("dropped_name"), said.get("dropped_text")),
            "open-agreed": self._agreed,
            "save-file": self._save_file,
            "browse": lambda said: self._browse(str(said.get("path_typed") or "")),
            "look": lambda said: self._browse(str(said.get("at"))),
            "pick": self._picked,
            "as-preset": lambda said: self._reset(),
            "defaults": lambda said: self._clear(),
        }
        act = acts.get(str(said.get("act")))
        return act(said) if act else {}

    # --- presets ----------------------------------------------------------------------------------------------------

    def _attempt(self, act: Callable[[], str], said: str) -> Update:
        """Do what changes the form; show what became of it. `act` returns the preset to show as chosen."""
        try:
            chosen = act()
        except ConfigError as error:
            return {self.answer: refused(str(error))}
        return {
            **self.desk.form_update(),
            self.choice: self._listed(chosen),
            self.answer: confirmed(said) if said else "",
        }

    def _apply(self, said: Mapping[str, object]) -> Update:
        """The chosen preset is to be laid under the form."""
        preset = self.session.presets.all().get(str(said.get("preset")))
        if preset is None:
            return {self.answer: refused("Choose a preset first.")}

        def apply() -> str:
            self.session.apply(preset, applied(preset))
            return preset.name

        return self._attempt(apply, "")

    def _save_preset(self, said: Mapping[str, object]) -> Update:
        """The form is to become a preset."""
        name = str(said.get("preset_name") or "").strip()
        presets = self.session.presets
        if not name:
            return {self.answer: refused("Type a name for the preset first.")}
        if name in presets.all() and not said.get("sure"):
            try:
                presets.check_name(name)
            except ConfigError as error:
                return {self.answer: refused(str(error))}
            text = f"There is a preset named {name} already. What it says will be replaced."
            again = question(self.name, "Save over it?", text, "Save", "save-preset", preset_name=name, sure="yes")
            return self.desk.ask(again)

        def save() -> str:
            preset = presets.save(name, self.session.draft.values)
            self.session.draft.name_base(laid_over(self.session.draft.values, preset.values()), preset.name)
            return preset.name

        return self._attempt(save, f"Saved as {name}.")

    def _delete_preset(self, said: Mapping[str, object]) -> Update:
        """An own preset is to go."""
        name = str(said.get("preset") or "")
        preset = self.session.presets.all().get(name)
        if preset is None or not preset.own:
            return {self.answer: refused("Choose one of your own presets first; those of the program stay.")}
        if not said.get("sure"):
            text = f"The preset {name} will be gone. The form stays as it is."
            asked = question(self.name, "Delete the preset?", text, "Delete", "delete-preset", preset=name, sure="yes")
            return self.desk.ask(asked)

        def delete() -> str:
            self.session.presets.delete(name)
            return ""

        return self._attempt(delete, f"Deleted {name}.")

    def _reset(self) -> Update:
        """The form is to be as the preset has it."""
        draft = self.session.draft
        draft.lay(draft.base, draft.base_name, "All changes were undone")
        return self._attempt(lambda: draft.base_name, "")

    def _clear(self) -> Update:
        """The form is to be empty."""
        self.session.draft.lay(defaults(), "", "Every setting has its default")
        return self._attempt(lambda: "", "")

    # --- settings files ---------------------------------------------------------------------------------------------

    def _browse(self, at: str) -> Update:
        """A settings file is to be picked."""
        dialog = folder_dialog.dialog(self.session.folders, folder_dialog.TOML_FILE, at)
        return self.desk.ask(overlay(self.name, dialog))

    def _picked(self, said: Mapping[str, object]) -> Update:
        path = str(said.get("at"))
        return {} if self.session.folders.problem(path) else {self.more: more(path)}

    def _open_file(self, said: Mapping[str, object]) -> Update:
        """The form is to be filled from a file of settings."""
        try:
            path = self._typed(said.get("path_typed"))
            return self._begin(path.name, opening.of_file(path, self.session.folders))
        except ConfigError as error:
            return {self.answer: refused(str(error))}

    def _open_text(self, name: object, text: object) -> Update:
        """The form is to be filled from a text that was pasted, or from a file that was dropped on the page."""
        try:
            source = opening.of_text(name, text, self.session.folders)
            return self._begin(source.path.name, source)
        except ConfigError as error:
            shown = opening_report.refusal(str(name or opening.PASTED), str(error))
            return self.desk.ask(overlay(self.name, shown))

    def _begin(self, name: str, source: Source) -> Update:
        """Open at once where all is taken as it stands; else say first what becomes of it."""
        found = opening.opening(name, source, self.session.draft.values)
        if not found.asks:
            return self._lay(found)
        number = self.session.openings.keep(found)
        return {**self.desk.ask(overlay(self.name, opening_report.dialog(found, number))), self.answer: ""}

    def _agreed(self, said: Mapping[str, object]) -> Update:
        """The report was read: what was read is laid into the form."""
        found = self.session.openings.take(said.get("number"))
        if found is None:
            return {self.answer: refused("This was opened already, or long ago; open it again.")}
        return self._lay(found)

    def _lay(self, found: opening.Opening) -> Update:
        self.session.draft.lay(found.values, found.name, f"Opened {found.name}")
        return self._attempt(lambda: "", f"Opened {found.name}.")

    def _save_file(self, said: Mapping[str, object]) -> Update:
        """The form is to be written to a settings file."""
        try:
            checked = self.session.draft.check()
            if checked.config is None:
                raise ConfigError(checked.problems)
            path, text = self._typed(said.get("path_typed"), ".toml"), file_text(checked.config)
            asked = own_files.question_before(path, text, keeps_own=True)
            if asked and not said.get("sure"):
                data = {"path_typed": str(path), "sure": "yes"}
                return self.desk.ask(question(self.name, "Save the settings?", asked, "Save", "save-file", **data))
            own_files.write(path, text)
        except ConfigError as error:
            return {self.answer: refused(str(error))}
        return {self.answer: confirmed(f"Saved to {path}.")}

    def _typed(self, typed: object, ending: str = "") -> Path:
        """Return the settings file that is meant. Raises ConfigError where the page may not touch it."""
        name = str(typed or "").strip().strip('"')
        if not name:
            raise ConfigError([Problem("", "Type the path of a settings file first, such as outputs/cat.toml.")])
        try:
            path = self.session.folders.check(name)
        except Refused as refusal:
            raise ConfigError([Problem("", str(refusal))]) from None
        if ending and path.suffix.lower() != ending:
            raise ConfigError([Problem("", f"{name!r} is not the path of a {ending} file.")])
        return path
