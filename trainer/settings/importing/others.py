"""What recipes of programs with other words have in common: what means the same is taken over, the rest is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from trainer.ground.errors import Problem
from trainer.settings.importing.recipe import Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.problems import shown
from trainer.settings.sd_scripts import is_off
from trainer.settings.walk import Setting

_DEEPEST = 8

Table = Mapping[str, object]


def json_of(source: Source) -> object:
    """Return the document of a JSON file, None if it is none."""
    if source.metadata is not None or not source.text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(source.text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Carried:
    """A key that means the same here: our setting, and what makes our value of the one there.

    `form` raises ValueError or TypeError, or returns None, where the value has none here.
    """

    key: str
    form: Callable[[object], object]


def number(value: object) -> object:
    """Return a number that may be written as text."""
    found = float(str(value))
    return int(found) if found.is_integer() and not isinstance(value, float) and "." not in str(value) else found


def whole(value: object) -> object:
    """Return a whole number that may be written with a decimal point."""
    found = float(str(value))
    if not found.is_integer():
        raise ValueError
    return int(found)


def text(value: object) -> object:
    """Return a text as it stands."""
    if not isinstance(value, str):
        raise TypeError
    return value


def switch(value: object) -> object:
    """Return a truth value as it stands."""
    if not isinstance(value, bool):
        raise TypeError
    return value


def reverse(value: object) -> object:
    """Return the opposite of a truth value."""
    return not switch(value)


def one_of(names: Mapping[str, object]) -> Callable[[object], object]:
    """Return what our value is for each name there."""
    return lambda value: names.get(str(value).lower())


def carry(
    recipe: Recipe, document: Table, table: Mapping[str, Carried], silent: Table, known: Mapping[str, Setting]
) -> None:
    """Take over what `table` names; tell of all else.

    Args:
        table: {key, with dots for tables in tables: what it is here}.
        silent: {our key: value} of what the other program takes where its file says nothing.
    """
    for name, value in _leaves(document):
        carried = table.get(name)
        if carried is None or carried.key not in known:
            (recipe.off if is_off(value) else recipe.ignored).append(name)
            continue
        if value is None or value == "":
            recipe.off.append(name)
            continue
        try:
            made = carried.form(value)
        except (TypeError, ValueError, OverflowError):
            made = None
        if made is None:
            message = f"{name} {shown(value)} has no value of the same meaning here."
            recipe.problems.append(Problem(carried.key, message, value))
            continue
        recipe.flat[carried.key] = made
        recipe.said.append(Said(name, value, {carried.key: made}))
    unread = {problem.key for problem in recipe.problems}
    for key, value in silent.items():
        if key in known and key not in (*recipe.flat, *unread):
            recipe.flat[key] = recipe.assumed[key] = value


def _leaves(document: Table, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and depth < _DEEPEST:
            yield from _leaves(value, f"{name}.", depth + 1)
        else:
            yield name, value


def optimizer(known: Mapping[str, Setting]) -> Callable[[object], object]:
    """Return what finds our optimizer of a name, whatever signs and letters it is written with."""
    ours = {_letters(str(choice)): str(choice) for choice in known["optimizer_type"].choices}
    return lambda value: ours.get(_letters(str(value)))


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def size(value: object) -> object:
    """Return the first size of a number, a text such as "512", "512,768" or "1024x768", or a list of sizes.

    Commas and lists part sizes there; an x parts width and height.
    """
    first = value[0] if isinstance(value, list) and value else str(value).split(",")[0]
    sides = re.findall(r"\d+", str(first))
    return ",".join(sides[:2]) if sides else None
