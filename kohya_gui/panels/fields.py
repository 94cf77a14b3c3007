"""The form's fields: the basic and the advanced settings, with the dialog that picks a path for one of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gradio as gr

from kohya_gui.form.advanced_tab import advanced_markup
from kohya_gui.form.basic_tab import basic_markup, basic_settings
from kohya_gui.form.fields import fields, with_path
from kohya_gui.panels.desk import Seen
from kohya_gui.panels.path_panel import PathPanel
from kohya_gui.panels.presets import PresetPanel
from kohya_gui.panels.wiring import Update, told
from trainer.config import known_settings


class FieldsPanel(PathPanel):
    """Some of the settings, all in one component."""

    elem_id: ClassVar[str]

    @abstractmethod
    def keys(self) -> set[str]:
        """Return which settings these are."""

    @abstractmethod
    def markup(self) -> str:
        """Return the fields as HTML."""

    def build(self) -> Sequence[Any]:
        """Make the component, with what it shows before the pictures were looked at."""
        first = self.session.shown(self.session.draft.check(), None)
        self.component = fields(self.markup(), self._mine(first), elem_id=self.elem_id)
        return [self.component]

    def wire(self) -> None:
        """Take what is typed and clicked."""
        self.desk.on(self.component.edit, self.on_edit)
        self.desk.on(self.component.act, self.on_act)

    def of_form(self, seen: Seen) -> Update:
        """Return what the fields show."""
        return {self.component: self._mine(seen.fields)}

    def _mine(self, shown: Mapping[str, object]) -> dict[str, object]:
        keys = self.keys()
        return {name: _only(part, keys) for name, part in shown.items()}

    def on_edit(self, event: gr.EventData) -> Update:
        """A field was changed or undone."""
        said = told(event)
        if said.get("undo") is True:
            self.session.draft.undo(said.get("key"))
        else:
            self.session.edit(said.get("key"), said.get("value"))
        return self.desk.form_update()

    def on_act(self, event: gr.EventData) -> Update:
        """A path is to be picked for a field, or what suits the model is to be taken."""
        said = told(event)
        if said.get("act") == "offer":
            return self._take_offer(said.get("name"))
        key = str(said.get("key"))
        held = self.session.draft.values.get(key) or ""
        return self.ask_for(key, str(held[-1] if isinstance(held, list) else held))

    def _take_offer(self, name: object) -> Update:
        """Set what the offer sets; a preset is only shown, for Apply to lay it under the form."""
        survey = self.session.survey(self.session.draft.check())
        offer = next((offer for offer in self.session.offers(survey) if offer.name == name), None)
        if offer is None:
            return {}
        if offer.preset:
            return next(panel for panel in self.desk.panels if isinstance(panel, PresetPanel)).show(offer.preset)
        self.session.draft.change(offer.values, offer.label)
        return self.desk.form_update()

    def picked(self, key: str, path: str) -> None:
        """Take a path for a field, one more where it holds several."""
        held = self.session.draft.values.get(key)
        self.session.edit(key, with_path(known_settings()[key], held, path) if key in known_settings() else path)


class BasicFields(FieldsPanel):
    """What a first LoRA needs."""

    name = "basic"
    elem_id = "basic-fields"

    def markup(self) -> str:
        """Return the fields of the tab."""
        return basic_markup(known_settings().values())

    def keys(self) -> set[str]:
        """Return the settings that have a place in the basic tab."""
        return {setting.key for setting in basic_settings(known_settings().values())}


class AdvancedFields(FieldsPanel):
    """Every other setting that is one field."""

    name = "advanced"
    elem_id = "advanced-fields"

    def markup(self) -> str:
        """Return the fields of the tab."""
        return advanced_markup(known_settings().values())

    def keys(self) -> set[str]:
        """Return the settings that are not in the basic tab."""
        return {key for key, setting in known_settings().items() if setting.show.tab == "advanced"}


def _only(part: object, keys: set[str]) -> object:
    if isinstance(part, dict):
        return {key: value for key, value in part.items() if key in keys}
    return [key for key in part if key in keys] if isinstance(part, list) else part
