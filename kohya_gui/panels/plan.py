"""Beside the form: what the settings come to, and what lies in the folders of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from kohya_gui.form import terminal_card
from kohya_gui.form.dataset_panel import dataset_panel
from kohya_gui.form.plan_panel import plan_panel, remedies
from kohya_gui.panels.desk import Panel, Seen
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.dialogs import question
from kohya_gui.parts.markup import panel
from trainer.ground.errors import ConfigError


class PlanPanel(Panel):
    """Steps, rates, file size, advice, problems with their ways out, and the commands for the terminal."""

    name = "plan"

    def build(self) -> Sequence[Any]:
        """Make the component."""
        self.component = panel(elem_id="plan")
        return [self.component]

    def wire(self) -> None:
        """Take clicks."""
        self.desk.on(self.component.act, self.on_act)

    def of_form(self, seen: Seen) -> Update:
        """Return the plan."""
        return {self.component: plan_panel(seen.checked, seen.survey)}

    def on_act(self, event: gr.EventData) -> Update:
        """A piece of advice or the way out of a problem is to be followed, or the settings written for the terminal."""
        said = told(event)
        if said.get("act") == "write-settings":
            return self._write_settings(sure=False)
        checked = self.session.draft.check()
        chosen = said.get("of"), said.get("place"), said.get("name")
        for remedy in remedies(checked, self.session.survey(checked)):
            if chosen == (remedy.of, str(remedy.place), remedy.name):
                self.session.draft.change(remedy.values, remedy.words)
        return self.desk.form_update()

    def answered(self, said: Mapping[str, object]) -> Update:
        """It was said what to do about the file in the way."""
        return self._write_settings(sure=True) if said.get("act") == "write-settings" else {}

    def _write_settings(self, *, sure: bool) -> Update:
        checked, refusal = self.session.draft.check(), ""
        try:
            if checked.config:
                asked = terminal_card.question_before(checked.config)
                if asked and not sure:
                    return self.desk.ask(question(self.name, "Write the settings?", asked, "Write", "write-settings"))
                terminal_card.write(checked.config)
        except ConfigError as error:
            refusal = str(error)
        return {self.component: plan_panel(checked, self.session.survey(checked), refusal)}


class PicturesPanel(Panel):
    """What the scan of the pictures found."""

    name = "pictures"

    def build(self) -> Sequence[Any]:
        """Make the component."""
        self.component = panel(elem_id="dataset-panel")
        return [self.component]

    def wire(self) -> None:
        """Take clicks."""
        self.desk.on(self.component.act, self.on_scan)

    def of_form(self, seen: Seen) -> Update:
        """Return what was found."""
        return {self.component: dataset_panel(seen.survey, self.session.pictures)}

    def on_scan(self) -> Update:
        """The pictures are to be looked at anew."""
        self.session.scan_again()
        return self.desk.form_update()
