"""Folders of pictures that a recipe lists one by one, with options of their own: what they have in common is taken.

Here a folder's name says its repeats, and options are for all folders: folders are told with the name to give them, and
options in which they differ are problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.ground.errors import Problem
from trainer.settings.importing.recipe import Recipe
from trainer.settings.kohya import Said

Table = Mapping[str, object]

_NAMES = {"batch_size": "train_batch_size"}
_OF_THE_FOLDER = ("image_dir", "num_repeats", "is_reg", "class_tokens", "name", "subsets")


def subsets_of(document: Table) -> Iterator[dict[str, object]]:
    """Yield the subsets of a dataset_config of sd-scripts, each with what it inherits: general < dataset < subset."""
    general = document.get("general")
    for dataset in _tables(document.get("datasets")):
        for subset in _tables(dataset.get("subsets")):
            yield {**(general if isinstance(general, dict) else {}), **dataset, **subset}


def take(recipe: Recipe, subsets: object) -> None:
    """Take over what all subsets have in common, and tell of each folder."""
    tables = _tables(subsets)
    for key in ("train_data_dir", "reg_data_dir"):  # sd-scripts passes over them where it is given subsets
        if tables and recipe.flat.pop(key, ""):
            recipe.unused.append(key)
    for key in dict.fromkeys(key for table in tables for key in table if key not in _OF_THE_FOLDER):
        values = [table.get(key) for table in tables]
        name = _NAMES.get(key, key)
        if all(value == values[0] for value in values):
            recipe.flat[name] = values[0]
            if name != key:
                recipe.said.append(Said(key, values[0], {name: values[0]}))
        else:
            recipe.flat.pop(name, None)
            message = "folders have different values of it, and there is one for all here; it is left out."
            recipe.problems.append(Problem(key, message, values))
    train = [table for table in tables if not table.get("is_reg")]
    if len(train) == 1 and train[0].get("num_repeats", 1) == 1 and not train[0].get("class_tokens"):
        recipe.flat["train_data_dir"] = train[0].get("image_dir", "")
        recipe.said.append(
            Said("image_dir", recipe.flat["train_data_dir"], {"train_data_dir": train[0].get("image_dir")})
        )
        tables = [table for table in tables if table.get("is_reg")]
    recipe.remarks += [_told(table) for table in tables]


def _tables(value: object) -> list[dict[str, object]]:
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []


def _told(table: Table) -> str:
    kind, above = ("regularisation pictures", "reg_data_dir") if table.get("is_reg") else ("pictures", "train_data_dir")
    repeats = table.get("num_repeats", 1)
    name = f"{repeats}_{table.get('class_tokens') or 'NAME'}"
    folder = table.get("image_dir", "")
    return f"Folder of {kind}: {folder}. Put it into another folder as {name}, and name that as {above}."
