"""The tools: a form for each, and the one that is at work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from kohya_gui.form import folder_dialog
from kohya_gui.form.fields import fields, with_path
from kohya_gui.panels.desk import Panel, Seen
from kohya_gui.panels.news import Part
from kohya_gui.panels.wiring import Update, told
from kohya_gui.parts.dialogs import overlay
from kohya_gui.parts.markup import news_panel
from kohya_gui.tools import forms, state
from trainer.ground.errors import ConfigError, Problem, StateError


class ToolsPanel(Panel):
    """All tools that have a form."""

    name = "tools"

    def build(self) -> Sequence[Any]:
        """Make the place of the work and the forms."""
        worker = self.session.tools
        self.work = news_panel("tool-work", "tool")
        self.desk.news.add(
            "tool",
            Part(lambda run: worker.revision, lambda run: state.markup(worker.work, self.session.pictures)),
        )
        self.component = fields(forms.markup(), self.session.tool_forms.payload(), elem_id="tool-forms")
        return [self.component]

    def wire(self) -> None:
        """Take what is typed and clicked."""
        self.desk.on(self.component.edit, self.on_edit)
        self.desk.on(self.component.act, self.on_act, of_run=True)
        self.desk.on(self.work.act, self.on_stop, of_run=True, queue=False)

    def of_form(self, seen: Seen) -> Update:
        """Return what stands in the forms, where they were used: a tool that ended may have found something wrong."""
        return self._shown() if self.session.tool_forms.used else {}

    def opened(self) -> Update:
        """Return what stands in the forms."""
        return self._shown()

    def _shown(self) -> Update:
        return {self.component: self.session.tool_forms.payload()}

    def on_edit(self, event: gr.EventData) -> Update:
        """A field was changed or undone."""
        said = told(event)
        if said.get("undo") is True:
            self.session.tool_forms.undo(said.get("key"))
        else:
            self.session.tool_forms.edit(said.get("key"), said.get("value"))
        return self._shown()

    def on_act(self, event: gr.EventData) -> Update:
        """A tool is to be begun, or a path to be picked for a field."""
        said = told(event)
        if said.get("act") == "run":
            typed = said.get("typed")
            return self._begin(str(said.get("tool")), typed if isinstance(typed, dict) else {})
        key = str(said.get("key"))
        setting = self.session.tool_forms.setting(key)
        if setting is None:
            return {}
        lines = str(self.session.tool_forms.raw.get(key) or "").splitlines()
        return self._dialog(key, lines[-1] if lines else "")

    def on_stop(self) -> Update:
        """The tool is to end."""
        self.session.tools.stop()
        return {}

    def _begin(self, name: str, typed: Mapping[object, object]) -> Update:
        """Begin a tool with what stands in its form; `typed` is that as the page has it."""
        tool = forms.on_page().get(name)
        if tool is None:
            return {}
        session = self.session
        for key, raw in typed.items():
            session.tool_forms.edit(key, raw)
        try:
            session.tool_forms.complain(tool, ())
            arguments = session.tool_forms.arguments(tool)
            session.tools.start(tool, arguments, lambda work: session.tool_forms.complain(tool, work.problems))
        except ConfigError as error:
            session.tool_forms.complain(tool, error.problems)
            session.tools.refuse(tool, error.problems)
        except StateError as error:
            session.tools.refuse(tool, (Problem("", str(error)),))
        return self._shown()

    def _dialog(self, key: str, at: str) -> Update:
        setting = self.session.tool_forms.setting(key)
        content = folder_dialog.dialog(self.session.folders, key, at, setting)
        return self.desk.ask(overlay(self.name, content))

    def answered(self, said: Mapping[str, object]) -> Update:
        """A folder is to be looked into, or a path was picked."""
        key, path = str(said.get("key")), str(said.get("at"))
        setting = self.session.tool_forms.setting(key)
        if said.get("act") == "look":
            return self._dialog(key, path)
        if said.get("act") != "pick" or setting is None or self.session.folders.problem(path):
            return {}
        before = self.session.tool_forms.raw.get(key)
        self.session.tool_forms.edit(key, with_path(setting, before, path))
        return self._shown()
