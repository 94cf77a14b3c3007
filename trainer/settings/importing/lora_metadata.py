"""What a LoRA file tells of its own training: all that is needed to do it again, but the pictures and the model."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping

from trainer.ground.errors import ConfigError, Problem
from trainer.settings import sd_scripts
from trainer.settings.importing import datasets
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting

SETTINGS_ENTRY = "trainer_config"
"""The entry of files of ours with all settings as JSON, without paths."""

_NETWORK = "ss_network_module"
_BASE = {
    "sd_v1": "sd15",
    "sd_v2": "sd2",
    "sd_v2_v": "sd2",
    "sdxl_base_v1-0": "sdxl",
    "flux1": "flux",
    "chroma": "chroma",
    "anima": "anima",
}
_OF_MODELSPEC = ("title", "author", "description", "license", "tags")
_DATASETS = "ss_datasets"
_OF_DATASET = {
    "batch_size_per_device": "batch_size",
    **{key: key for key in ("resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso")},
    "resize_interpolation": "resize_interpolation",
}
"""{what sd-scripts calls it in the metadata: its key in a dataset}."""
_NO_SETTINGS = ("img_count", "image_dir", "metadata_file")
"""What the metadata says of a subset beside its settings: of folders and files only their names."""
_OPTIMIZER = re.compile(r"([\w.]+?)(?:\((.*)\))?$", re.DOTALL)


class LoraMetadata(Reader):
    """A LoRA of ours, or of sd-scripts."""

    name = "a LoRA file with the settings that it was trained with"

    def recognises(self, source: Source) -> bool:
        return source.metadata is not None

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        metadata = source.metadata or {}
        ours = _of_ours(metadata, known)
        recipe = Recipe(ours) if ours else self._of_sd_scripts(source.path.name, metadata, known)
        _tell_pictures(recipe, metadata)
        model = metadata.get("ss_sd_model_name", "None")
        if model != "None":
            recipe.remarks.append(
                f"Base model: {model}. The file does not tell where it is, nor the pictures: choose both."
            )
        return recipe

    def _of_sd_scripts(self, name: str, metadata: Mapping[str, str], known: Mapping[str, Setting]) -> Recipe:
        if _NETWORK not in metadata:
            message = "the file tells nothing of its training; it was saved without metadata, or by another program."
            raise ConfigError([Problem(name, message)])
        told = {key: _value(text) for key, text in metadata.items() if text not in ("None", "")}
        recipe = Recipe({"network_module": told[_NETWORK]})
        for setting in known.values():
            entry = setting.entry
            if entry in told and setting.argument and entry == f"ss_{setting.argument}" and entry != _NETWORK:
                recipe.flat[setting.argument] = told[entry]
        for entry, argument in (
            ("ss_batch_size_per_device", "train_batch_size"),
            ("ss_debiased_estimation", "debiased_estimation_loss"),
            ("ss_scale_weight_norms", "scale_weight_norms"),
            ("ss_network_dropout", "network_dropout"),
        ):
            if entry in told:
                recipe.flat[argument] = told[entry]
        self._take_forms(recipe, told)
        tables = _datasets(told)
        if tables:
            recipe.flat[datasets.KEY] = [_table(each) for each in tables]
            recipe.remarks.append("Of datasets the file tells neither steps of buckets nor how captions are dropped.")
        return recipe

    def _take_forms(self, recipe: Recipe, told: Mapping[str, object]) -> None:
        flat = recipe.flat
        if isinstance(told.get("ss_resolution"), tuple):
            width, height = (*told["ss_resolution"], 0)[:2]  # type: ignore[misc]
            flat["resolution"] = f"{width},{height}"
        if flat.get("network_dim") == "Dynamic":
            for key in ("network_dim", "network_alpha"):
                flat.pop(key, None)
            recipe.remarks.append("Its layers have ranks of their own, which came from another LoRA.")
        arguments = told.get("ss_network_args")
        if isinstance(arguments, dict):
            flat["network_args"] = [f"{key}={value}" for key, value in arguments.items() if value is not None]
        match = _OPTIMIZER.match(str(told.get("ss_optimizer", "")))
        if match:
            flat["optimizer_type"] = match[1].rpartition(".")[2]
            flat["optimizer_args"] = _split(match[2] or "")
            recipe.said.append(Said("ss_optimizer", told["ss_optimizer"], {"optimizer_type": flat["optimizer_type"]}))
        family = _BASE.get(str(told.get("ss_base_model_version")))
        if family:
            flat["model_family"] = family
            recipe.said.append(Said("ss_base_model_version", told["ss_base_model_version"], {"model_family": family}))
        for name in _OF_MODELSPEC:
            if told.get(f"modelspec.{name}"):
                flat[f"metadata_{name}"] = str(told[f"modelspec.{name}"])
        flat["v_parameterization"] = told.get("modelspec.prediction_type") == "v"


def _of_ours(metadata: Mapping[str, str], known: Mapping[str, Setting]) -> dict[str, object]:
    """Return the settings of a file of ours; what is off comes as the 0 that says so."""
    try:
        found = json.loads(metadata.get(SETTINGS_ENTRY, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    off = {key for key, value in found.items() if value is None and key in known and known[key].zero_is_off}
    return {key: 0 if key in off else value for key, value in found.items() if value is not None or key in off}


def _value(text: str) -> object:
    """Return what an entry's text stands for: Python's words for values, JSON's for tables, else the text."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _split(arguments: str) -> list[str]:
    """Return the "name=value" of a list whose values may hold commas inside brackets."""
    parts = re.split(r",\s*(?=[A-Za-z_]\w*=)", arguments)
    return [part.strip() for part in parts if "=" in part]


def _datasets(told: Mapping[str, object]) -> list[dict[str, object]]:
    """Return what sd-scripts writes of several datasets; nothing where a part of it is no table."""
    found = told.get(_DATASETS)
    tables = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    whole = bool(tables) and all(isinstance(each.get("subsets"), list) and each["subsets"] for each in tables)
    return tables if whole and all(isinstance(subset, dict) for each in tables for subset in each["subsets"]) else []


def _table(told: Mapping[str, object]) -> dict[str, object]:
    """Return a dataset's table of what the metadata says of it, without what is off."""
    own = {key: told[name] for name, key in _OF_DATASET.items() if told.get(name) is not None}
    subsets = [
        {key: value for key, value in subset.items() if key not in _NO_SETTINGS and not sd_scripts.is_off(value)}
        for subset in told["subsets"]  # type: ignore[attr-defined]
    ]
    return {**own, "subsets": subsets}


def _tell_pictures(recipe: Recipe, metadata: Mapping[str, str]) -> None:
    """Say what the pictures were: the file names no folder by its path, so each has to be chosen."""
    for entry, kind in (("ss_dataset_dirs", "pictures"), ("ss_reg_dataset_dirs", "regularisation pictures")):
        folders = _value(metadata.get(entry, "{}"))
        for name, facts in folders.items() if isinstance(folders, dict) else ():
            if isinstance(facts, dict):
                _tell_folder(recipe, f"Folder of {kind}", name, facts.get("img_count"), facts.get("n_repeats"))
    for number, table in enumerate(_datasets({_DATASETS: _value(metadata.get(_DATASETS, "[]"))}), 1):
        for index, subset in enumerate(table["subsets"], 1):  # type: ignore[arg-type, var-annotated]
            kind = "regularisation pictures" if subset.get("is_reg") else "pictures"
            what = f"list {subset['metadata_file']}" if subset.get("metadata_file") else subset.get("image_dir")
            place = f"Dataset {number}, subset {index}, {kind}"
            _tell_folder(recipe, place, what, subset.get("img_count"), subset.get("num_repeats"))


def _tell_folder(recipe: Recipe, kind: str, name: object, count: object, repeats: object) -> None:
    recipe.remarks.append(f"{kind}: {name}, {_of(count, 'picture')}, {_of(repeats, 'repeat')}.")


def _of(count: object, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
