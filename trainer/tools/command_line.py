"""The grammar of `python -m trainer NAME ...`, made from the tools."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.ground.errors import ConfigError, Problem
from trainer.results.sinks import writable
from trainer.settings.section import Section
from trainer.settings.walk import Setting
from trainer.settings.wording import PROGRAM
from trainer.tools.tool import Tool

_NUMBERS = ("integer", "number")
WORD = "tool"
"""May stand before a tool's name: `python -m trainer tool merge` is `python -m trainer merge`."""

_TOOL = "tool"
"""Where the grammar keeps the chosen tool; no argument is called so."""


class _Parser(argparse.ArgumentParser):
    """As argparse's, but nothing that was given reaches the terminal raw."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(writable(message, sys.stderr), file or sys.stderr)


def read(tools: Mapping[str, Tool[Any]], words: Sequence[str] | None) -> tuple[Tool[Any], Any]:
    """Return the tool that the words ask for and its arguments. Ends the program where they ask for help.

    Raises:
        ConfigError: an argument is missing, unknown or wrong.
        SystemExit: no tool is named so; what there is was printed.
    """
    words = sys.argv[1:] if words is None else words
    if words[:1] == [WORD]:
        words = words[1:]
    given, unknown = grammar(tools).parse_known_args(words)
    values = vars(given)
    tool: Tool[Any] = values.pop(_TOOL)
    arguments = {key: typed(tool.settings[key], tool.arguments, value) for key, value in values.items()}
    strangers = [word[2:].partition("=")[0].replace("-", "_") for word in unknown if word.startswith("--")]
    if unknown and not strangers:
        raise ConfigError(Problem(word, f"is one word too many; {tool.usage()}.") for word in unknown)
    return tool, tool.read({**arguments, **dict.fromkeys(strangers)})


def grammar(tools: Mapping[str, Tool[Any]]) -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = _Parser(prog=PROGRAM, description="Train LoRAs without the page.", allow_abbrev=False)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for tool in tools.values():
        own = commands.add_parser(tool.name, help=_plain(tool.help), description=_plain(tool.help), allow_abbrev=False)
        own.set_defaults(**{_TOOL: tool})
        for setting in tool.settings.values():
            _add(own, tool, setting)
    return top


def _add(parser: argparse.ArgumentParser, tool: Tool[Any], setting: Setting) -> None:
    """Add one argument. What is not given is left out, so that its declared default holds."""
    key, about = setting.key, {"help": _plain(setting.help), "default": argparse.SUPPRESS}
    shown = tool.positional.get(key) or setting.show.unit or key.upper()
    if key in tool.positional:
        parser.add_argument(key, metavar=shown, nargs="*" if setting.kind == "list" else "?", **about)  # type: ignore[arg-type]
        return
    # A word that pydantic keeps for itself has an underscore after it.
    option = key.rstrip("_")
    names = dict.fromkeys((f"--{option}", f"--{option.replace('_', '-')}"))
    if setting.kind == "switch":
        action = argparse.BooleanOptionalAction if setting.default else "store_true"
        parser.add_argument(*names, dest=key, action=action, **about)  # type: ignore[arg-type]
    elif key in tool.repeated:
        parser.add_argument(*names, dest=key, action="append", metavar=shown, **about)  # type: ignore[arg-type]
    elif setting.kind == "list":
        parser.add_argument(*names, dest=key, action="extend", nargs="+", metavar=shown, **about)  # type: ignore[arg-type]
    else:
        choices = "{" + ",".join(map(str, setting.choices)) + "}" if setting.choices else shown
        parser.add_argument(*names, dest=key, metavar=choices, **about)  # type: ignore[arg-type]


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def typed(setting: Setting, section: type[Section], value: object) -> object:
    """Return what was given in the type that its declaration wants; a text that is none stays one, to be refused."""
    if setting.kind in _NUMBERS:
        return _number(value)
    if isinstance(value, list):
        of_numbers = float in _members(section.model_fields[setting.key].annotation)
        return [_number(item) for item in value] if of_numbers else value
    return value


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return every type that an annotation is made of."""
    inner = typing.get_args(annotation)
    return (annotation, *(member for each in inner for member in _members(each)))


def _number(value: object) -> object:
    for number in (int, float):
        try:
            return number(str(value))
        except ValueError:
            continue
    return value
