"""What is wrong with a setting, in our words: the value, the rule, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from trainer.ground.errors import Problem
from trainer.settings.walk import DOCUMENT, Bounds, Setting

_LONGEST_VALUE = 80
_NEAR = 0.72
_WORDS = {"switch": "true or false", "integer": "a whole number", "number": "a number", "text": "text"}


def problems_of_section(error: ValidationError, settings: Mapping[str, Setting]) -> tuple[Problem, ...]:
    """Return one Problem for each setting that pydantic refused, in the order of the fields."""
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        key = str(detail["loc"][0])
        reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
        value = detail["input"]
        if key in problems:
            continue
        problems[key] = refused(settings[key], value, reason) if key in settings else unknown(key, settings)
    return tuple(problems.values())


def refused(setting: Setting, value: object, reason: str = "") -> Problem:
    """Return the Problem of a value that its own setting does not allow."""
    because = reason or f"it must be {rule(setting)}"
    hint = near_choice(setting, value)
    return Problem(setting.key, f"{shown(value)} cannot be used: {because}{hint} ({default_of(setting)}).", value)


def unknown(key: str, known: Mapping[str, Setting]) -> Problem:
    """Return the Problem of a key that no setting has."""
    near = nearest_key(key, known)
    way_out = f"did you mean {near}?" if near else f"all settings are listed in {DOCUMENT}."
    return Problem(key, f"there is no such setting; {way_out}")


def nearest_key(key: str, known: Mapping[str, Setting]) -> str:
    """Return the key that was probably meant, "" if none is near: by its own name or another one people know."""
    names = {name: setting.key for setting in known.values() for name in setting.show.also} | {
        name: name for name in known
    }
    return names.get(nearest(key, names), "")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word most like this one, "" if none is near."""
    matches = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=_NEAR)
    return matches[0] if matches else ""


def near_choice(setting: Setting, value: object) -> str:
    if not isinstance(value, str):
        return ""
    names = {str(choice).lower(): choice for choice in setting.choices if choice != ""}
    near = nearest(value, names)
    return f"; did you mean {shown(names[near])}?" if near else ""


def default_of(setting: Setting) -> str:
    return "default: not set" if setting.default in (None, "") else f"default {shown(setting.default)}"


def rule(setting: Setting) -> str:
    """Return what values a setting allows, to follow "it must be"."""
    words = setting.rule or _rule(setting)
    if setting.zero_is_off:
        return f"{words}, or 0 for off"
    return words


def _rule(setting: Setting) -> str:
    if setting.kind == "choice":
        return "one of " + ", ".join(shown(choice) for choice in setting.choices)
    if setting.kind == "list":
        return 'a list of texts, such as ["weight_decay=0.1"]'
    many = " or a list of numbers" if setting.accepts_list else ""
    empty = "that is not empty" if setting.bounds.min_length and setting.kind == "text" else ""
    return " ".join(part for part in (_WORDS[setting.kind] + many, limits(setting.bounds), empty) if part)


def limits(bounds: Bounds) -> str:
    """Return the bounds of a number in words, "" if it has none."""
    words = []
    if bounds.ge is not None and bounds.le is not None:
        words.append(f"from {bounds.ge:g} to {bounds.le:.15g}")
    elif bounds.ge is not None:
        words.append(f"of at least {bounds.ge:.15g}")
    elif bounds.le is not None:
        words.append(f"of at most {bounds.le:.15g}")
    if bounds.gt is not None:
        words.append(f"above {bounds.gt:.15g}")
    if bounds.lt is not None:
        words.append(f"below {bounds.lt:.15g}")
    if bounds.multiple_of is not None:
        words.append(f"divisible by {bounds.multiple_of:g}")
    return " and ".join(words)


def shown(value: object) -> str:
    """Return a value as a TOML file would spell it, cut where it is too long for a message."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        value = list(value)
    text = f'"{value}"' if isinstance(value, str) and "\n" not in value else _printed(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _printed(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python refuses to print whole numbers of several thousand digits
        return "a number of thousands of digits"
