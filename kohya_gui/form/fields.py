"""Settings as HTML fields, generated from their declarations, and the values that come back from them.

One component holds many settings. The browser reports each change as the event `edit` with a key and the
text typed; the server keeps the values, and answers with what every field shall show. So the form survives reloads,
and costs Gradio one component instead of a hundred.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from kohya_gui.parts.markup import ASSETS, esc, number
from trainer.settings.section import FILES, PATHS
from trainer.settings.walk import Setting

WIKI = "https://github.com/bmaltais/kohya_ss/wiki/LoRA-training-parameters"
"""Kohya's own page on these parameters; opened only when somebody clicks it."""

EMPTY_CHOICE = "none"
OTHER_CHOICE = "Another, by its name…"

_SCRIPT = (ASSETS / "fields.js").read_text(encoding="utf-8")


def fields(markup: str, value: Mapping[str, object], **options: Any) -> gr.HTML:
    """Return the component of a set of settings. `value` says what to show: see `draft.payload`."""
    return gr.HTML(dict(value), html_template=markup, js_on_load=_SCRIPT, apply_default_css=False, **options)


# --- values <-> texts -------------------------------------------------------------------------------------------------


def read(setting: Setting, raw: object) -> object:
    """Return the value that was typed, in the setting's own kind; what cannot be read stays text, to be refused."""
    if setting.kind == "switch":
        return raw if isinstance(raw, bool) else str(raw)
    text = str(raw) if setting.show.widget == "multiline" else str(raw).strip()
    return _READERS[setting.kind](setting, text)


def _read_choice(setting: Setting, text: str) -> object:
    return next((choice for choice in setting.choices if str(choice) == text), text)


def _read_number(setting: Setting, text: str) -> object:
    if not text:
        return 0 if setting.zero_is_off else None if setting.optional else ""
    if setting.accepts_list and re.search(r"[,;\s]", text):
        return [_one_number(part) for part in re.split(r"[,;\s]+", text.strip("[] ")) if part]
    return _one_number(text)


def _one_number(text: str) -> object:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _read_list(setting: Setting, text: str) -> object:
    """Read "name=value" words: one a line, or several in a line."""
    words = re.split(r"\n|\s+(?=[A-Za-z_]\w*=)", text)
    return [word.strip() for word in words if word.strip()]


_READERS: dict[str, Callable[[Setting, str], object]] = {
    "choice": _read_choice,
    "integer": _read_number,
    "number": _read_number,
    "text": lambda setting, text: text,
    "list": _read_list,
    "tables": lambda setting, text: text,
}


def write(setting: Setting, value: object) -> object:
    """Return what the field shows for a value: a text, or a truth value for a switch."""
    if setting.kind == "switch":
        return bool(value)
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ("\n" if setting.kind == "list" else ", ").join(plain(each) for each in value)
    return plain(value)


def plain(value: object) -> str:
    """Return a value without thousands separators: 2500, 5e-5, cosine."""
    if isinstance(value, float) and not isinstance(value, bool):
        short = re.sub(r"e([+-])0?(\d)", r"e\1\2", repr(value))
        return short.removesuffix(".0")
    return str(value)


def named(setting: Setting, value: object) -> str:
    """Return a value in words, for the list of what a preset changes."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if setting.kind == "tables" and isinstance(value, list | tuple):
        return "1 dataset" if len(value) == 1 else f"{len(value) or 'no'} datasets"
    if value is None or value in ("", (), []):
        return "off" if setting.zero_is_off else "empty"
    return str(write(setting, value)).replace("\n", " ")


def assignment(setting: Setting, value: object) -> str:
    """Return what a click does to a setting, in words: "Set Rank to 32", "Clear UNet learning rate"."""
    if value is None and not setting.zero_is_off:
        return f"Clear {setting.show.label}"
    return f"Set {setting.show.label} to {named(setting, value)}"


def with_path(setting: Setting, held: object, path: str) -> str:
    """Return what a field holds once a path was picked for it: a list of files has one more than it `held`."""
    if setting.show.widget != FILES:
        return path
    lines = [str(each) for each in held] if isinstance(held, list | tuple) else str(held or "").splitlines()
    return "\n".join([*lines, path])


# --- markup -----------------------------------------------------------------------------------------------------------


def fields_markup(settings: Iterable[Setting]) -> str:
    """Return the fields in a grid."""
    return f'<div class="fields">{"".join(map(field_markup, settings))}</div>'


def group_markup(name: str, settings: Iterable[Setting]) -> str:
    """Return one foldable group of the advanced tab."""
    fields = fields_markup(settings)
    return (
        f'<details class="group" data-group="{esc(name)}"><summary><span>{esc(name)}</span>'
        f'<span class="count" data-count></span></summary>{fields}</details>'
    )


def field_markup(setting: Setting, facts: str = "") -> str:
    """Return one field: label, unit, help line, control, tooltip and room for its problem.

    `facts` is the last line of the tooltip; left out, it is that of a setting.
    """
    key = setting.key
    wide = " wide" if _is_wide(setting) else ""
    words = f"{setting.show.label} {key} {key.replace('_', ' ')} {setting.show.group} {setting.help}".lower()
    unit = f'<span class="unit">{esc(setting.show.unit)}</span>' if setting.show.unit else ""
    switch = setting.kind == "switch"
    control = _control(setting)
    label = f'<label for="{key}">{esc(setting.show.label)}</label>'
    head = f"{control}{label}" if switch else f"{label}{unit}"
    tools = (
        f'<span class="tools"><button type="button" class="undo" data-undo="{key}" hidden></button>'
        f'<button type="button" class="more" tabindex="-1" data-more="{key}" aria-expanded="false" '
        f'aria-controls="{key}-more" title="More, or F1 in the field" '
        f'aria-label="More about {esc(setting.show.label)}">?</button></span>'
    )
    return (
        f'<div class="field{wide}{" switch" if switch else ""}" data-field="{key}" data-words="{esc(words)}">'
        f'<div class="field-head">{head}{tools}</div>'
        f"{'' if switch else control}"
        f'<p class="help" id="{key}-help">{esc(setting.help)}</p>'
        f'<p class="note" hidden></p><p class="offers" hidden></p>'
        f'<p class="problem" id="{key}-problem" role="alert" hidden></p>'
        f"{_tooltip(setting, facts or _facts(setting))}</div>"
    )


def _is_wide(setting: Setting) -> bool:
    """True for what needs a whole row: paths, long texts, and names in the basic tab."""
    name = setting.kind == "text" and setting.show.tab == "basic" and not setting.show.unit
    return name or setting.kind == "list" or setting.show.widget in (*PATHS, "multiline")


def _tooltip(setting: Setting, facts: str) -> str:
    paragraphs = "".join(f"<p>{esc(part)}</p>" for part in setting.tooltip.split("\n\n") if part)
    return f'<div class="tooltip" id="{setting.key}-more" hidden>{paragraphs}{facts}</div>'


def _facts(setting: Setting) -> str:
    default = named(setting, setting.default)
    return (
        f'<p class="facts"><code>{setting.key}</code> Default: {esc(default)}. '
        f'<a href="guide/settings#{setting.key}" target="_blank" rel="noopener">All settings</a> '
        f'<a href="{WIKI}" target="_blank" rel="noopener noreferrer">Kohya wiki</a></p>'
    )


def _control(setting: Setting) -> str:
    key, widget = setting.key, setting.show.widget
    common = f'id="{key}" data-key="{key}" aria-describedby="{key}-help {key}-problem" aria-keyshortcuts="F1"'
    if setting.kind == "switch":
        return f'<input type="checkbox" {common}>'
    if setting.kind == "choice":
        other = f'<option value="" data-other>{OTHER_CHOICE}</option>' if setting.open_choices else ""
        return f"<select {common}>{''.join(map(_option, setting.choices))}{other}</select>"
    if widget == "multiline" or (setting.kind == "list" and widget != "text"):
        area = f'<textarea {common} rows="3" spellcheck="false" placeholder="{esc(_placeholder(setting))}"></textarea>'
        return f'<div class="with-button">{area}{_browse(setting)}</div>' if widget == FILES else area
    mode = ' inputmode="decimal"' if setting.kind in ("integer", "number") else ""
    box = (
        f'<input type="text" {common}{mode} autocomplete="off" spellcheck="false" '
        f'placeholder="{esc(_placeholder(setting))}">'
    )
    if widget in PATHS:
        return f'<div class="with-button">{box}{_browse(setting)}</div>'
    if setting.kind in ("integer", "number") and not setting.accepts_list:
        return f'<div class="with-stepper">{box}{_stepper(setting)}</div>'
    return box


def _browse(setting: Setting) -> str:
    return (
        f'<button type="button" class="small" data-browse="{setting.key}" '
        f'aria-label="Choose {esc(setting.show.label)}">Browse</button>'
    )


def _option(choice: object) -> str:
    return f'<option value="{esc(choice)}">{esc(choice if choice != "" else EMPTY_CHOICE)}</option>'


def _stepper(setting: Setting) -> str:
    """Return the minus and plus of a number; learning rates move by a tenth of themselves, so they have none."""
    if setting.kind == "number":
        return ""
    label = esc(setting.show.label)
    return (
        f'<button type="button" tabindex="-1" data-step="-1" aria-label="Less {label}">&minus;</button>'
        f'<button type="button" tabindex="-1" data-step="1" aria-label="More {label}">+</button>'
    )


def _placeholder(setting: Setting) -> str:
    if setting.kind in ("integer", "number"):
        if setting.zero_is_off:
            return "off"
        return "not set" if setting.optional else number(_as_float(setting.default))
    if setting.kind == "list":
        return "one file a line" if setting.show.widget == FILES else setting.rule or "one a line"
    return "" if setting.show.widget in PATHS else "empty"


def _as_float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def absolute(setting: Setting, value: object, folder: Path) -> object:
    """Return a path setting's relative value as seen from `folder`; any other value as it is.

    It stays as it is where the working folder has the same file under it.
    """
    if setting.show.widget == FILES and isinstance(value, list | tuple):
        return [_absolute(str(each), folder) for each in value]
    if setting.show.widget not in PATHS or not isinstance(value, str) or not value:
        return value
    return _absolute(value, folder)


def _absolute(value: str, folder: Path) -> str:
    whole = folder / Path(value).expanduser()
    return value if Path(value).resolve() == whole.resolve() else str(whole)
