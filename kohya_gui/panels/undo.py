"""Above the form: what was replaced in it last, to take back, and what a run under way makes of changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from kohya_gui.panels.desk import Panel, Seen
from kohya_gui.panels.news import Part
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.markup import button, esc, news_panel, panel


class UndoPanel(Panel):
    """Takes back what replaced what was typed, and brings it again. Typing itself each field takes back by itself."""

    name = "undo"

    def build(self) -> Sequence[Any]:
        """Make the component."""
        self.component = panel(elem_id="undo")
        return [self.component]

    def wire(self) -> None:
        """Take clicks."""
        self.desk.on(self.component.act, self.on_act)

    def of_form(self, seen: Seen) -> Update:
        """Return what can be taken back."""
        draft = self.session.draft
        if not draft.said:
            return {self.component: ""}
        buttons = button("undo", "Undo") if draft.can_undo else ""
        buttons += button("redo", "Redo") if draft.can_redo else ""
        close = '<button type="button" class="small close" data-act="hide" aria-label="Hide this">×</button>'
        return {self.component: f'<div class="undo" role="status"><span>{esc(draft.said)}</span>{buttons}{close}</div>'}

    def on_act(self, event: gr.EventData) -> Update:
        """Take back, bring again, or say no more of it."""
        draft = self.session.draft
        acts = {"undo": draft.take_back, "redo": draft.bring_again, "hide": draft.hide}
        act = acts.get(str(told(event).get("act")))
        if act:
            act()
        sides = self.desk.sides
        return {part: value for part, value in self.desk.opened().items() if part not in sides}


class FormNote(Panel):
    """What is to be known while typing: that a run under way is not changed, that the form cannot be kept."""

    name = "form-note"

    def build(self) -> Sequence[Any]:
        """Make the component, which the news fill."""
        session = self.session

        def draw() -> str:
            lines = {"aside": "A run is under way. Changes here are for the next one."} if session.busy else {}
            lines |= {"": session.trouble} if session.trouble else {}
            return "".join(f'<p class="form-note {way}" role="status">{esc(line)}</p>' for way, line in lines.items())

        news_panel("form-note", "form-note")
        self.desk.news.add("form-note", Part(lambda run: (session.busy, session.trouble), lambda run: draw()))
        return []

    def wire(self) -> None:
        """There is nothing to click."""
