"""The page about all settings, made from their declarations."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

from trainer.settings import sd_scripts
from trainer.settings.problems import rule, shown
from trainer.settings.section import PROCESS, Follows, Resume, Section, Within
from trainer.settings.walk import Setting, sections_of, settings_in, settings_of

_INTRODUCTION = """# Settings

Made from the declarations in `trainer/config` by `python -m trainer.config`; edit those, not this page.

A setting's name is its key in a TOML file and in `--set key=value`. Names are sd-scripts' wherever sd-scripts has the
setting. In a file, sections group the settings and carry no meaning. A setting that says "or 0 for off" is off when it
is 0; everywhere else 0 is a number like any other.

Under each setting stands what it is in sd-scripts, what another value means to a run that is resumed, and the entry of
the LoRA file's metadata that tells it. The last sections have every argument of sd-scripts' trainer of LoRAs, and what
else its recipes hold that is no setting here."""

_RESUMED: dict[Resume, str] = {
    "free": "may differ when a run is resumed",
    "rounding": "differs by rounding from the next step on when a run is resumed",
    "learning": "holds from the next step on when a run is resumed",
    "schedule": "changes the schedule of a run that is resumed",
    "data": "gives a run that is resumed another series of pictures and noise",
    "beginning": "without effect when a run is resumed",
    "fixed": "must stay when a run is resumed",
}

_WITHIN: dict[Within, str] = {
    "dataset": "may be said of a dataset",
    "subset": "may be said of a dataset and of a folder in it",
}

_EVERY = """## Every argument of sd-scripts

Of its trainers of LoRAs for the models here: the setting that it is here, or why it is none."""

_LACKING = """## Of sd-scripts, but no settings here

A file that holds one of these is read all the same where it changes nothing: those without a mark, and those marked
with a value that means "off" or is named beside them. With any other value they are refused by name, or left out with
`--ignore-unsupported` and "Open without these". Of keys in neither table nothing is known: in a file of sd-scripts they
are named and ignored, in one of ours refused."""


def page(config: type, tables: Mapping[str, type[Section]]) -> str:
    """Return docs/settings.md for a configuration whose fields are sections, and {name: section} of lists of tables."""
    parts = [_INTRODUCTION]
    known = settings_of(config).values()
    for name, section in sections_of(config).items():
        parts.append(f"## [{name}]\n\n{inspect.getdoc(section)}")
        parts += [_entry(setting) for setting in known if setting.section == name]
    for name, section in tables.items():
        parts.append(f"## [[{name}]]\n\n{inspect.getdoc(section)}")
        parts += [_entry(setting, "datasets tab") for setting in settings_in(name, section).values()]
    parts += [_EVERY, _arguments(known), _LACKING, _others()]
    return "\n\n".join(parts) + "\n"


def _entry(setting: Setting, place: str = "") -> str:
    title, help_line = f"### {setting.key}", f"**{setting.show.label}.** {setting.help}"
    paragraphs = [title, help_line, setting.tooltip, _facts(setting, place), _elsewhere(setting)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _facts(setting: Setting, place: str) -> str:
    facts = [
        f"*{_capital(rule(setting))}{f', in {setting.show.unit}' if setting.show.unit else ''}*",
        f"default {_default(setting)}",
        place or f"{setting.show.tab} tab, {setting.show.group}",
    ]
    if setting.within:
        facts.append(_WITHIN[setting.within])
    return " · ".join(facts + [_condition(key, wanted) for key, wanted in setting.show.when.items()])


def _elsewhere(setting: Setting) -> str:
    facts = [_there(setting), _RESUMED[setting.resume]]
    return "*" + " · ".join(facts + [f"`{setting.entry}`"] * bool(setting.entry)) + "*"


def _there(setting: Setting) -> str:
    there = setting.sd_scripts
    if there is None or (there.name is None and not there.switches):
        return "Not in sd-scripts"
    where = f"In sd-scripts `{setting.argument}`" if setting.argument not in (setting.key, "") else "In sd-scripts"
    if there.inside:
        where = f"In sd-scripts inside `{there.inside}`"
    switches = "".join(f", `{name}` for `{shown(value)}`" for name, value in there.switches.items())
    if there.name is None:
        return f"{where} {switches.removeprefix(', ')}"
    if not sd_scripts.has_default(setting):
        return f"{where} without a default{switches}"
    if isinstance(there.default, Follows):
        return f"{where} as `{there.default.key}` by default{switches}"
    default = "not set" if there.default in (None, "", ()) else f"`{shown(there.default)}`"
    return f"{where} {default} by default{switches}"


def _arguments(known: Iterable[Setting]) -> str:
    """Return the table of all arguments, those of settings and those that are none."""
    rows = {name: here for setting in known for name, here in _of_setting(setting)}
    lacking = {name: each for name, each in sd_scripts.ARGUMENTS.items() if name in sd_scripts.OF_THE_TRAINER}
    rows |= {name: _refused(name, each) for name, each in lacking.items()}
    rows["network_args"] = "settings of their own, each listed here as `network_args NAME`"
    lines = [f"| `{name}` | {here} |" for name, here in sorted(rows.items())]
    return "\n".join(["| argument | here |", "|---|---|", *lines])


def _of_setting(setting: Setting) -> Iterable[tuple[str, str]]:
    """Yield the arguments that a setting is there, with what it is here."""
    there, here = setting.sd_scripts, f"[{setting.key}](#{setting.key})"
    if there is None:
        return
    if there.inside:
        yield f"{there.inside} {there.name or setting.key}", here
    elif setting.argument:
        yield setting.argument, here
    for name in (*there.once, *filter(None, [there.opposite])):
        yield f"{there.inside} {name}".strip(), f"a former name of {here}"
    for name, value in there.switches.items():
        yield name, f"{here} as `{shown(value)}`"


def _others() -> str:
    """Return the table of what else recipes hold."""
    every = {name: each for name, each in sd_scripts.ARGUMENTS.items() if name not in sd_scripts.OF_THE_TRAINER}
    every |= {f"network_args {key}": each for key, each in sd_scripts.NETWORK_ARGUMENTS.items()}
    lines = [f"| `{name}` | {_refused(name.rpartition(' ')[2], each)} |" for name, each in sorted(every.items())]
    return "\n".join(["| key | here |", "|---|---|", *lines])


def _refused(name: str, lacking: sd_scripts.Argument) -> str:
    neutral = ", ".join(f"`{shown(value)}`" for value in lacking.neutral)
    mark = f" **(not with {neutral})**" if lacking.changes and neutral else " **(refused)**" if lacking.changes else ""
    return f"{sd_scripts.reason(name, lacking)}{mark}"


def _default(setting: Setting) -> str:
    if setting.default is None or setting.default == "":
        return "not set" if not setting.zero_is_off else "off"
    return f"`{shown(setting.default)}`"


def _condition(key: str, wanted: tuple[object, ...] | str) -> str:
    if key == PROCESS:
        return f"for models of the process {_alternatives(map(str, wanted))}"
    if isinstance(wanted, str):
        return f"shown when `{key}` is set"
    return f"shown when `{key}` is {_alternatives(dict.fromkeys(map(shown, wanted)))}"


def _alternatives(values: Iterable[str]) -> str:
    *others, last = [f"`{value}`" for value in values]
    return f"{', '.join(others)} or {last}" if others else last


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
