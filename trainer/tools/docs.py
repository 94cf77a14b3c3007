"""The page about all tools, made from their classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from trainer.settings.problems import rule, shown
from trainer.settings.walk import Setting
from trainer.settings.wording import PROGRAM
from trainer.tools.tool import Tool

DOCUMENT = "docs/tools.md"

_INTRODUCTION = """# Tools

Made from the classes in `trainer/tools` by `python -m trainer.tools`; edit those, not this page.

What can be asked for at the terminal: `python launch.py NAME ...`, or `python -m trainer NAME ...` inside the program's
environment. The exit code is 0 when it was done, 1 when it failed on the way, 2 when it was refused before, 3 when it
was stopped. Names of arguments are those of sd-scripts where it has such a tool; `-` may stand for `_` in them."""


def page(tools: Mapping[str, Tool[Any]]) -> str:
    """Return docs/tools.md."""
    return "\n\n".join([_INTRODUCTION, *(_section(tool) for tool in tools.values())]) + "\n"


def _section(tool: Tool[Any]) -> str:
    words = " ".join((PROGRAM, tool.name, *tool.positional.values()))
    about = inspect.getdoc(type(tool)) or ""
    arguments = "\n".join(_argument(tool, setting) for setting in tool.settings.values())
    return f"## {tool.name}\n\n{tool.help[:1].upper()}{tool.help[1:]}.\n\n    {words}\n\n{about}\n\n{arguments}"


def _argument(tool: Tool[Any], setting: Setting) -> str:
    name = tool.positional.get(setting.key) or f"--{setting.key.rstrip('_')}"
    must = tool.arguments.model_fields[setting.key].is_required()
    facts = [f"must be {rule(setting)}"] if setting.kind in ("integer", "number") else []
    facts += ["must be given"] if must else []
    if not must and setting.default not in (None, "", (), False):
        facts.append(f"default `{shown(setting.default)}`")
    said = " ".join(part for part in (setting.help, setting.tooltip) if part)
    in_brackets = f" *({', '.join(facts)})*" if facts else ""
    return f"- `{name}`: {said}{in_brackets}"
