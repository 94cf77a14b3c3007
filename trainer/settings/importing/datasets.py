"""Datasets in recipes: in the file itself, in one that it names, or as a list of folders with options of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.ground.errors import ConfigError, Problem
from trainer.settings import toml
from trainer.settings.importing.recipe import Recipe, Source
from trainer.settings.kohya import Said

Table = Mapping[str, object]

KEY, FILE = "datasets", "dataset_config"
PARTS = ("general", KEY)
"""The tables that a dataset_config is made of."""

_FOLDERS = ("train_data_dir", "reg_data_dir", "in_json")
_ENDINGS = (".toml", ".json")


def take(recipe: Recipe, document: Table) -> None:
    """Put the tables of a dataset_config into a recipe; what that says of the same is under them."""
    general = document.get("general", {})
    repeats = recipe.flat.pop("dataset_repeats", None)
    if repeats is not None and isinstance(general, dict):
        general = {"num_repeats": int(str(repeats)) if str(repeats).isdecimal() else repeats, **general}
    recipe.unused += [key for key in _FOLDERS if recipe.flat.pop(key, "")]  # passed over by sd-scripts too
    recipe.flat[KEY] = {"general": general, KEY: document.get(KEY, [])}


def take_file(recipe: Recipe, source: Source) -> None:
    """Read the file that dataset_config names; it is looked for from the working folder, then beside the recipe."""
    name = recipe.flat.pop(FILE, None)
    if name in (None, ""):
        return
    found = source.named(str(name))
    if found is None:
        message = f"{name!r} is not there (looked at {Path(str(name)).absolute()}); give the path of the file."
        recipe.problems.append(Problem(FILE, message, name))
        return
    try:
        take(recipe, read_file(found))
    except ConfigError as error:
        recipe.problems += error.problems
        return
    recipe.said.append(Said(FILE, name, {}, "its folders and their options were read with it"))


def read_file(path: Path) -> Table:
    """Return the tables of a dataset_config, told apart by its ending: .toml or .json.

    Raises:
        ConfigError: it cannot be read, is neither, or holds something else.
    """
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        message = f"{str(path)!r} cannot be used: a file of datasets ends in {' or '.join(_ENDINGS)}."
        raise ConfigError([Problem(FILE, message, str(path))])
    text = toml.read_text(path)
    document = toml.parse(text, str(path)) if ending == ".toml" else _parse_json(text, path)
    others = [key for key in document if key not in PARTS]
    problems = [Problem(FILE, f"{path.name}: {key} {_misplaced(key)}", document[key]) for key in others]
    if not document.get(KEY):
        problems.append(Problem(FILE, f"{path.name} has no datasets; it needs at least one table [[datasets]]."))
    if problems:
        raise ConfigError(problems)
    return document


def _misplaced(key: str) -> str:
    if key == "subsets":
        return "is said of a dataset; write it as [[datasets.subsets]]."
    return "stands by itself; write it under [general] or under a table [[datasets]]."


def _parse_json(text: str, path: Path) -> Table:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError([Problem(str(path), f"this is not valid JSON: {error}.")]) from None
    except RecursionError:
        raise ConfigError([Problem(str(path), "brackets are nested too deeply to be read.")]) from None
    if not isinstance(document, dict):
        raise ConfigError([Problem(str(path), "it must be an object with general and datasets.")])
    return document
