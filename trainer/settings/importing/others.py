"""Files of programs whose settings have other meanings: recognised, named, and what means the same is taken over."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from trainer.ground.errors import Problem
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting

_NONE = "has no meaning of the same kind here"


def json_of(source: Source) -> object:
    """Return the document of a JSON file, None if it is none."""
    if source.metadata is not None or not source.text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(source.text)
    except (ValueError, RecursionError):
        return None


_ONE_TRAINER: Mapping[str, tuple[str, Callable[[Any], object]]] = {
    "lora_rank": ("network_dim", int),
    "lora_alpha": ("network_alpha", float),
    "learning_rate": ("learning_rate", float),
    "batch_size": ("train_batch_size", int),
    "gradient_accumulation_steps": ("gradient_accumulation_steps", int),
    "epochs": ("max_train_epochs", int),
    "resolution": ("resolution", str),
    "clip_grad_norm": ("max_grad_norm", float),
    "base_model_name": ("pretrained_model_name_or_path", str),
}


class OneTrainer(Reader):
    """A preset or saved configuration of OneTrainer."""

    name = "a file of OneTrainer"

    def recognises(self, source: Source) -> bool:
        document = json_of(source)
        return isinstance(document, dict) and "training_method" in document

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        document = json_of(source)
        assert isinstance(document, dict)
        recipe = _taken(document, _ONE_TRAINER)
        optimizer = document.get("optimizer")
        name = optimizer.get("optimizer") if isinstance(optimizer, dict) else None
        _take_optimizer(recipe, "optimizer", name, known)
        return recipe


_TOOLKIT = {
    "linear": "network_dim",
    "linear_alpha": "network_alpha",
    "lr": "learning_rate",
    "steps": "max_train_steps",
    "batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "name_or_path": "pretrained_model_name_or_path",
}
_PAIR = re.compile(r"^[ \t-]*([a-z_]+):[ \t]*(?:\"([^\"\n]*)\"|'([^'\n]*)'|([^#\n]*?))[ \t]*(?:#.*)?$", re.MULTILINE)


class AiToolkit(Reader):
    """A YAML file of ai-toolkit. Only its plain `key: value` lines are looked at."""

    name = "a file of ai-toolkit"

    def recognises(self, source: Source) -> bool:
        return source.metadata is None and bool(re.search(r"^job:\s*['\"]?extension", source.text, re.MULTILINE))

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        pairs = {match[1]: match[2] or match[3] or match[4] or "" for match in _PAIR.finditer(source.text)}
        recipe = _taken(pairs, {key: (name, _plain) for key, name in _TOOLKIT.items()})
        sizes = re.search(r"^\s*resolution:\s*\[\s*(\d+)", source.text, re.MULTILINE)
        if sizes:
            recipe.flat["resolution"] = sizes[1]
            recipe.said.append(Said("resolution", sizes[0].strip(), {"resolution": sizes[1]}, "the first of them"))
        _take_optimizer(recipe, "optimizer", pairs.get("optimizer"), known)
        return recipe


def _taken(document: Mapping[str, Any], names: Mapping[str, tuple[str, Callable[[Any], object]]]) -> Recipe:
    recipe = Recipe()
    for key, value in document.items():
        if key not in names or value in (None, ""):
            if key != "optimizer" and not isinstance(value, dict | list) and value not in (None, "", False):
                recipe.unused.append(key)
            continue
        name, form = names[key]
        try:
            recipe.flat[name] = form(value)
            recipe.said.append(Said(key, value, {name: recipe.flat[name]}))
        except (TypeError, ValueError):
            recipe.problems.append(Problem(key, f"{value!r} {_NONE}.", value))
    return recipe


def _take_optimizer(recipe: Recipe, key: str, name: object, known: Mapping[str, Setting]) -> None:
    """Take the optimizer over where one of ours has its name, whatever signs and letters it is written with."""
    if name is None:
        return
    ours = {_letters(str(choice)): str(choice) for choice in known["optimizer_type"].choices}
    found = ours.get(_letters(str(name)))
    if found is None:
        recipe.problems.append(
            Problem(key, f'"{name}" is not an optimizer of this program; choose one of its own.', name)
        )
        return
    recipe.flat["optimizer_type"] = found
    recipe.said.append(Said(key, name, {"optimizer_type": found}))


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def _plain(text: str) -> object:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
