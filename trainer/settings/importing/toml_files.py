"""TOML: our own, sd-scripts' with any section names, and the nested tables of LoRA_Easy_Training_Scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.ground.errors import Problem
from trainer.settings import toml
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting


class Toml(Reader):
    """Ours, or sd-scripts': a table of keys whose sections carry no meaning."""

    name = "a TOML file of settings"

    def recognises(self, source: Source) -> bool:
        return source.metadata is None

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        flat, problems = toml.flatten(toml.parse(source.text, str(source.path)), known)
        return Recipe(flat, problems=list(problems), foreign="network_module" in flat)


_ARGUMENTS, _DATASET = "args", "dataset_args"
_EASY_NAMES = {"batch_size": "train_batch_size", "warmup_ratio": "lr_warmup_steps"}
_OF_SUBSETS = (
    "shuffle_caption",
    "keep_tokens",
    "caption_extension",
    "flip_aug",
    "color_aug",
    "random_crop",
    "face_crop_aug_range",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "token_warmup_min",
    "token_warmup_step",
    "keep_tokens_separator",
)
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
        self._take_subsets(recipe, recipe.flat.pop("subsets", None))
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

    def _take_subsets(self, recipe: Recipe, subsets: object) -> None:
        """What all folders have in common is a setting; the folders themselves are named one by one."""
        tables = [table for table in subsets if isinstance(table, dict)] if isinstance(subsets, list) else []
        for key in _OF_SUBSETS:
            values = [table.get(key) for table in tables]
            if values and values[0] is not None and all(value == values[0] for value in values):
                recipe.flat.setdefault(key, values[0])
            elif any(value not in (None, False, 0, "") for value in values):
                message = "folders have different values of it, and there is one for all here; it is left out."
                recipe.problems.append(Problem(key, message))
        for table in tables:
            kind = "regularisation pictures" if table.get("is_reg") else "pictures"
            folder, repeats = table.get("image_dir", ""), table.get("num_repeats", 1)
            above = "reg_data_dir" if table.get("is_reg") else "train_data_dir"
            recipe.remarks.append(
                f"Folder of {kind}: {folder}, {repeats} repeats. Put it into another folder as {repeats}_NAME, and "
                f"name that one as {above}."
            )
