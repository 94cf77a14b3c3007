"""TOML: our own, sd-scripts' with any section names, LoRA_Easy_Training_Scripts' nested tables; datasets as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.ground.errors import ConfigError, Problem
from trainer.settings import toml
from trainer.settings.importing import datasets
from trainer.settings.importing.others import json_of
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting


class Toml(Reader):
    """Ours, or sd-scripts': a table of keys whose sections carry no meaning."""

    name = "a TOML file of settings"

    def recognises(self, source: Source) -> bool:
        return source.metadata is None

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        if json_of(source) is not None:
            message = "it is JSON, but of no program that is known here; known are kohya_ss and OneTrainer."
            raise ConfigError([Problem(str(source.path), message)])
        document = toml.parse(source.text, str(source.path))
        listed = datasets.KEY in document
        flat, problems = toml.flatten(
            {key: document[key] for key in document if not listed or key not in datasets.PARTS}, known
        )
        recipe = Recipe(flat, problems=list(problems), foreign="network_module" in flat or (listed and not flat))
        if listed:
            datasets.take(recipe, document)
        return recipe


class DatasetsJson(Reader):
    """The tables of a dataset_config as JSON, which sd-scripts takes as well."""

    name = "a JSON file of datasets"

    def recognises(self, source: Source) -> bool:
        document = json_of(source)
        return isinstance(document, dict) and datasets.KEY in document and document.keys() <= {*datasets.PARTS}

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        document = json_of(source)
        assert isinstance(document, dict)
        recipe = Recipe({}, foreign=True)
        datasets.take(recipe, document)
        return recipe


_ARGUMENTS, _DATASET = "args", "dataset_args"
_EASY_NAMES = {"batch_size": "train_batch_size", "warmup_ratio": "lr_warmup_steps"}
_PACKED = ("network_args", "optimizer_args", "lr_scheduler_args")


class EasyToml(Reader):
    """Tables such as `[network_args.args]`, folders in `[[subsets]]`; what it packs into lists are tables there."""

    name = "a TOML file of LoRA_Easy_Training_Scripts"

    def recognises(self, source: Source) -> bool:
        if source.metadata is not None or ".args" not in source.text:
            return False
        tables = toml.parse(source.text, str(source.path)).values()
        return any(isinstance(table, dict) and isinstance(table.get(_ARGUMENTS), dict) for table in tables)

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        recipe = Recipe({"network_module": "networks.lora"})
        for key, value in self._pairs(toml.parse(source.text, str(source.path))):
            name = _EASY_NAMES.get(key, key)
            if name != key:
                recipe.said.append(Said(key, value, {name: value}))
            recipe.flat[name] = value
        subsets = recipe.flat.pop("subsets", None)
        if isinstance(subsets, list):
            folders = [{key: value for key, value in each.items() if key != "name"} for each in subsets]
            datasets.take(recipe, {datasets.KEY: [{"subsets": folders}]})
        for key in _PACKED:
            table = recipe.flat.get(key)
            if isinstance(table, dict):
                recipe.flat[key] = [f"{name}={value}" for name, value in table.items()]
        mode = recipe.flat.pop("train_mode", "lora")
        if mode != "lora":
            recipe.problems.append(
                Problem("train_mode", f'"{mode}" is not what this program trains; it has "lora".', mode)
            )
        if recipe.flat.pop("sdxl", False):
            recipe.said.append(Said("sdxl", True, {"model_family": "sdxl"}))
            recipe.flat["model_family"] = "sdxl"
        self._choose_network(recipe)
        return recipe

    def _pairs(self, document: Mapping[str, object]) -> Iterator[tuple[str, object]]:
        for name, table in document.items():
            if not isinstance(table, dict):
                yield name, table
                continue
            if name == "train_mode":
                yield name, table.get("train_mode", "lora")
                continue
            for part in (_ARGUMENTS, _DATASET):
                inner = table.get(part)
                yield from inner.items() if isinstance(inner, dict) else ()

    def _choose_network(self, recipe: Recipe) -> None:
        """An `algo` among the network's arguments means LyCORIS there, and ranks beside it are arguments."""
        arguments = recipe.flat.get("network_args")
        kind = str(recipe.flat.pop("algo", "") or recipe.flat.pop("lora_type", "") or "").lower()
        if isinstance(arguments, list) and any(str(argument).startswith("algo=") for argument in arguments):
            kind = "lycoris"
        if kind not in ("", "lora", "locon"):
            recipe.flat["network_module"] = "lycoris.kohya"
