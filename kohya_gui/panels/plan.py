"""Beside the form: what the settings come to, and what lies in the folders of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from kohya_gui.form import terminal_card
from kohya_gui.form.dataset_panel import dataset_panel
from kohya_gui.form.memory_card import fit_words, memory_card
from kohya_gui.form.plan_panel import plan_panel, remedies
from kohya_gui.panels.desk import Panel, Seen
from kohya_gui.panels.news import SAID_SECONDS, Part
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.dialogs import question
from kohya_gui.parts.markup import news_panel, panel
from trainer.forecast.forecast import GB
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


def bytes_of(card: str) -> int:
    """Return the bytes of a card of so many GB, 0 where that is no number."""
    try:
        return round(float(card) * GB)
    except (ValueError, OverflowError):
        return 0


class MemoryPanel(Panel):
    """The memory that the run would take; the news fill it, since it is found out in the background."""

    name = "memory"

    def build(self) -> Sequence[Any]:
        """Make the place that the news fill."""
        forecaster = self.session.forecaster
        self.place = news_panel("memory-panel", "memory")
        part = Part(lambda run: forecaster.shown, lambda run: memory_card(forecaster.shown))
        self.desk.news.add("memory", part)
        return []

    def wire(self) -> None:
        """Take clicks."""
        self.desk.on(self.place.act, self.on_act, of_run=True)

    def on_act(self, event: gr.EventData) -> Update:
        """Settings that fit are to be looked for, or taken."""
        said, forecaster = told(event), self.session.forecaster
        if said.get("act") == "fit":
            card = str(said.get("card") or "")
            most = bytes_of(card)
            if most > 0:
                forecaster.fit(most)
            else:
                words = f"The card's memory {card!r} is no number of GB; write one such as 8."
                self.desk.news.say(words, SAID_SECONDS, refused=True)
            return {}
        fit = forecaster.shown.fit
        if said.get("act") == "take-fit" and fit is not None and fit.values:
            self.session.draft.change(fit.values, fit_words(fit.values))
        return self.desk.form_update()


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
