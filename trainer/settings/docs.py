"""The page about all settings, made from their declarations."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from trainer.settings.problems import rule, shown
from trainer.settings.section import PROCESS
from trainer.settings.walk import Setting, sections_of, settings_of

_INTRODUCTION = """# Settings

Made from the declarations in `trainer/config` by `python -m trainer.config`; edit those, not this page.

A setting's name is its key in a TOML file and in `--set key=value`. Names are sd-scripts' wherever sd-scripts has the
setting. In a file, sections group the settings and carry no meaning. A setting that says "or 0 for off" is off when it
is 0; everywhere else 0 is a number like any other."""


def page(config: type) -> str:
    """Return docs/settings.md for a configuration whose fields are sections."""
    parts = [_INTRODUCTION]
    known = settings_of(config).values()
    for name, section in sections_of(config).items():
        parts.append(f"## [{name}]\n\n{inspect.getdoc(section)}")
        parts += [_entry(setting) for setting in known if setting.section == name]
    return "\n\n".join(parts) + "\n"


def _entry(setting: Setting) -> str:
    paragraphs = [f"### {setting.key}", f"**{setting.show.label}.** {setting.help}", setting.tooltip, _facts(setting)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _facts(setting: Setting) -> str:
    facts = [
        f"*{_capital(rule(setting))}{f', in {setting.show.unit}' if setting.show.unit else ''}*",
        f"default {_default(setting)}",
        f"{setting.show.tab} tab, {setting.show.group}",
    ]
    return " · ".join(facts + [_condition(key, wanted) for key, wanted in setting.show.when.items()])


def _default(setting: Setting) -> str:
    if setting.default is None or setting.default == "":
        return "not set" if not setting.zero_is_off else "off"
    return f"`{shown(setting.default)}`"


def _condition(key: str, wanted: tuple[object, ...] | str) -> str:
    if key == PROCESS:
        return f"for models of the process {_alternatives(map(str, wanted))}"
    if isinstance(wanted, str):
        return f"shown when `{key}` is set"
    return f"shown when `{key}` is {_alternatives(shown(value) for value in wanted)}"


def _alternatives(values: Iterable[str]) -> str:
    *others, last = [f"`{value}`" for value in values]
    return f"{', '.join(others)} or {last}" if others else last


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
