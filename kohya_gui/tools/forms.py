"""The forms of the tools: what was typed, and the arguments that it comes to. Everything else is the declarations'."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kohya_gui.form import fields
from kohya_gui.parts.folders import Folders, Refused
from kohya_gui.parts.markup import esc
from trainer.ground.errors import ConfigError, Problem
from trainer.settings.section import FILES, PATHS
from trainer.settings.walk import Setting, visible
from trainer.settings.wording import PROGRAM, in_labels
from trainer.tools import TOOLS
from trainer.tools.command_line import typed
from trainer.tools.tool import Tool

BETWEEN = "-"
"""Stands between a tool's name and an argument's in the names of fields; neither has one."""


def on_page() -> dict[str, Tool[Any]]:
    """Return the tools that have a form, by name."""
    return {name: tool for name, tool in TOOLS.items() if tool.on_page}


def keyed(tool: Tool[Any]) -> list[Setting]:
    """Return a tool's arguments under the names of their fields."""
    return [dataclasses.replace(each, key=f"{tool.name}{BETWEEN}{key}") for key, each in tool.settings.items()]


class Forms:
    """What stands in the fields, by field's name, and what is wrong with it; `revision` counts the latter's changes."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._settings = {each.key: each for tool in on_page().values() for each in keyed(tool)}
        self.raw: dict[str, object] = {}
        self.revision = 0
        self._problems: dict[str, str] = {}

    def setting(self, key: object) -> Setting | None:
        """Return the argument that a field is for."""
        return self._settings.get(str(key))

    def edit(self, key: object, raw: object) -> None:
        """Take what was typed. A field that is not there is nobody's; what it has already changes nothing."""
        if self.setting(key) is not None and isinstance(raw, str | bool) and self.raw.get(str(key)) != raw:
            self.raw[str(key)] = raw
            self._problems.pop(str(key), None)

    def undo(self, key: object) -> None:
        """Let a field be as it was at first."""
        self.raw.pop(str(key), None)
        self._problems.pop(str(key), None)

    def complain(self, tool: Tool[Any], problems: Iterable[Problem]) -> None:
        """Take note of what is wrong with a tool's arguments."""
        own = f"{tool.name}{BETWEEN}"
        self._problems = {key: text for key, text in self._problems.items() if not key.startswith(own)}
        for problem in problems:
            text = in_labels(problem.message, tool.settings, problem.key)
            self._problems.setdefault(f"{own}{problem.key}", text)
        self.revision += 1

    @property
    def used(self) -> bool:
        """Whether anything was done with a form."""
        return bool(self.raw or self._problems)

    def arguments(self, tool: Tool[Any]) -> Any:
        """Return the arguments that a form comes to; each path is the one that was judged.

        What does not matter for what the other fields hold, and so is not shown, is left out.

        Raises:
            ConfigError: with every one that is missing or wrong, or names what the page may not touch.
        """
        given, problems = {}, []
        hidden = _hidden(tool, self._shown())
        for key, setting in tool.settings.items():
            if f"{tool.name}{BETWEEN}{key}" in hidden:
                continue
            raw = self.raw.get(f"{tool.name}{BETWEEN}{key}", "")
            if raw == "" and tool.arguments.model_fields[key].is_required():
                problems.append(Problem(key, "is empty; fill it in."))
            if raw == "" or (setting.kind == "switch" and raw is False and not setting.default):
                continue
            value = typed(setting, tool.arguments, _read(setting, raw))
            try:
                given[key] = self._judged(setting, value)
            except Refused as refusal:
                problems.append(Problem(key, str(refusal), value))
        if problems:
            raise ConfigError(problems)
        return tool.read(given)

    def _judged(self, setting: Setting, value: object) -> object:
        """Return a path as the absolute one that may be used, and any other value as it is. Raises Refused."""
        if setting.show.widget in PATHS and isinstance(value, str):
            return str(self._folders.check(value))
        if setting.show.widget == FILES and isinstance(value, list):
            return [str(self._folders.check(str(each))) for each in value]
        return value

    def _first(self) -> dict[str, object]:
        """Return what the fields show before anything is typed."""
        return {key: fields.write(setting, setting.default) for key, setting in self._settings.items()}

    def _shown(self) -> dict[str, object]:
        return {key: self.raw.get(key, value) for key, value in self._first().items()}

    def payload(self) -> dict[str, object]:
        """Return what the fields are to show."""
        first, shown = self._first(), self._shown()
        own = [key for key, value in shown.items() if value != first[key]]
        hidden = [key for tool in on_page().values() for key in _hidden(tool, shown)]
        return {
            "values": shown,
            "problems": dict(self._problems),
            "notes": {},
            "undo": dict.fromkeys(own, "Back to what it was"),
            "changed": own,
            "hidden": [key for key in hidden if key not in self._problems],
            "offers": {},
        }


def _hidden(tool: Tool[Any], shown: Mapping[str, object]) -> list[str]:
    """Return the fields that do not matter for what the others hold."""
    values = {key: shown[f"{tool.name}{BETWEEN}{key}"] for key in tool.settings}
    return [f"{tool.name}{BETWEEN}{key}" for key, each in tool.settings.items() if not visible(each, values)]


def _read(setting: Setting, raw: object) -> object:
    """Return what was typed in the argument's own kind."""
    if setting.kind != "list":
        return fields.read(setting, raw)
    parts = re.split(r"\n" if setting.show.widget == FILES else r"[\s,;]+", str(raw))
    return [part.strip() for part in parts if part.strip()]


def markup() -> str:
    """Return the forms of all tools, each to be opened and closed."""
    return f'<div class="form tools">{"".join(map(_markup, on_page().values()))}</div>'


def _markup(tool: Tool[Any]) -> str:
    inside = "".join(fields.field_markup(each, _facts(tool, each)) for each in keyed(tool))
    begin = f'<button type="button" class="small primary" data-run="{tool.name}">{esc(tool.title)}</button>'
    words = f"{tool.help[:1].upper()}{tool.help[1:]}."
    return (
        f'<details class="group" data-group="{esc(tool.title)}" id="tool-{tool.name}"><summary>'
        f'<span>{esc(tool.title)}</span><span class="about">{esc(words)}</span><span class="count" data-count></span>'
        f'</summary><div class="fields">{inside}</div><div class="begin">{begin}'
        f'<code>{PROGRAM} {tool.name}</code><a href="guide/tools#{tool.name}" target="_blank" '
        f'rel="noopener">Guide</a></div></details>'
    )


def _facts(tool: Tool[Any], setting: Setting) -> str:
    must = tool.arguments.model_fields[setting.key.partition(BETWEEN)[2]].is_required()
    rule = "Must be given." if must else f"Default: {esc(fields.named(setting, setting.default))}."
    return f'<p class="facts"><code>--{esc(setting.key.partition(BETWEEN)[2])}</code> {rule}</p>'
