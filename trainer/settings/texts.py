"""Values that other programs write as text."""

from __future__ import annotations

from trainer.settings.walk import Setting


def number(setting: Setting, value: object) -> object:
    """Return what a number means that was written as text or, for a whole number, with a decimal point."""
    if isinstance(value, str) and setting.kind in ("integer", "number"):
        value = parsed(value)
    if isinstance(value, str) and setting.kind == "switch":
        value = {"true": True, "false": False}.get(value.lower(), value)
    if isinstance(value, list) and setting.accepts_list:
        value = [parsed(each) if isinstance(each, str) else each for each in value]
    if isinstance(value, str) and setting.kind == "choice" and value.isdecimal():
        value = int(value) if int(value) in setting.choices else value
    if isinstance(value, float) and setting.kind == "integer" and value.is_integer():
        return int(value)
    return value


def parsed(text: str) -> object:
    """Return a number that is written as text; other text as it stands."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
