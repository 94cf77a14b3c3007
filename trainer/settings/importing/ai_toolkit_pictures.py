"""What a job of ai-toolkit says of pictures: its folders become datasets, its sample prompts lines of a prompt file."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainer.settings.importing.others import number, size, switch, text, whole
from trainer.settings.importing.recipe import Recipe
from trainer.settings.kohya import Said
from trainer.settings.sd_scripts import is_off

_SIZE = 512
"""Pixels of a folder that says none, as in ai-toolkit's DatasetConfig."""

_FORMS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "folder_path": ("image_dir", text),
    "dataset_path": ("image_dir", text),
    "num_repeats": ("num_repeats", whole),
    "is_reg": ("is_reg", switch),
    "mask_path": ("conditioning_data_dir", text),
    "alpha_mask": ("alpha_mask", switch),
    "default_caption": ("class_tokens", text),
    "caption_ext": ("caption_extension", lambda value: f".{text(value)}".replace("..", ".")),
    "caption_dropout_rate": ("caption_dropout_rate", number),
    "token_dropout_rate": ("caption_tag_dropout_rate", number),
    "shuffle_tokens": ("shuffle_caption", switch),
    "keep_tokens": ("keep_tokens", whole),
    "flip_x": ("flip_aug", switch),
}
"""{its key: ours in a subset, and what makes our value of its value}."""

_OF_DATASET: Mapping[str, tuple[str, Callable[[object], object]]] = {"buckets": ("enable_bucket", switch)}
_OF_RUN = {"cache_latents_to_disk": "cache_latents_to_disk", "cache_latents": "cache_latents"}

_FLAGS = (
    ("w", "width", whole),
    ("h", "height", whole),
    ("s", "sample_steps", whole),
    ("l", "guidance_scale", number),
    ("d", "seed", whole),
    ("n", "neg", text),
)
"""(option of a prompt line, its key, what makes our value)."""


def take_datasets(recipe: Recipe, process: dict[str, object]) -> None:
    """Make a dataset of each folder, with its sizes; a plain folder of pictures is no folder of concepts here."""
    given = process.get("datasets")
    tables = [_dataset(recipe, each) for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    if not tables:
        return
    del process["datasets"]
    recipe.flat["datasets"] = {"general": {}, "datasets": tables}
    count = "1 folder" if len(tables) == 1 else f"{len(tables)} folders"
    recipe.said.append(Said("datasets", count, {"datasets": "a dataset for each"}, "with what is said of it"))


def _dataset(recipe: Recipe, folder: Mapping[object, object]) -> dict[str, object]:
    """Return the dataset of one folder. A value that is none is left as it stands, for the datasets' own rules."""
    subset: dict[str, object] = {}
    sizes = folder.get("resolution", _SIZE)
    each = [size(one) for one in (sizes if isinstance(sizes, list) else [sizes])]
    dataset: dict[str, object] = {"resolutions": each if all(each) else sizes}
    for key, value in folder.items():
        name = str(key)
        if name == "resolution":
            continue
        if value is None or value == "":
            _name(recipe.off, name)
        elif name in _FORMS:
            ours, form = _FORMS[name]
            subset[ours] = _formed(value, form)
        elif name in _OF_DATASET:
            ours, form = _OF_DATASET[name]
            dataset[ours] = _formed(value, form)
        elif name in _OF_RUN and isinstance(value, bool):
            recipe.flat[_OF_RUN[name]] = value or bool(recipe.flat.get(_OF_RUN[name], False))
        else:
            _name(recipe.off if is_off(value) else recipe.ignored, name)
    if subset.get("conditioning_data_dir") or subset.get("alpha_mask"):
        recipe.flat["masked_loss"] = True
    return {**dataset, "subsets": [subset]}


def _name(keys: list[str], name: str) -> None:
    """Add a key of a folder to a list, once for all folders."""
    if (whole_name := f"datasets.{name}") not in keys:
        keys.append(whole_name)


def _formed(value: object, form: Callable[[object], object]) -> object:
    try:
        return form(value)
    except (TypeError, ValueError, OverflowError):
        return value


def take_samples(recipe: Recipe, process: dict[str, object]) -> None:
    """Make prompt lines of the samples, with their size, steps, guidance and seed; the seed grows where it walks."""
    sample = process.get("sample")
    if not isinstance(sample, dict):
        return
    prompts = sample.get("prompts") or sample.get("samples")
    options = {name: sample.get(name) for _, name, _ in _FLAGS}
    walks = sample.get("walk_seed")
    trigger = str(process.get("trigger_word") or "")
    lines: list[str] = []
    for index, each in enumerate(prompts if isinstance(prompts, list) else []):
        own = each if isinstance(each, dict) else {"prompt": each}
        words = str(own.get("prompt") or "").strip().replace("\n", " ").replace("[trigger]", trigger)
        if not words:
            continue
        told = {**options, **{key: value for key, value in own.items() if key != "prompt"}}
        if walks is True and isinstance(options["seed"], int) and "seed" not in own:
            told["seed"] = options["seed"] + index
        lines.append(words + _flags(words, told))
    if lines:
        for name in ("prompts", "samples", "walk_seed", *options):
            sample.pop(name, None)
        recipe.flat["sample_prompts"] = "\n".join(lines)
        recipe.said.append(Said("sample.prompts", f"{len(lines)} prompts", {"sample_prompts": "a line for each"}))


def _flags(words: str, told: Mapping[str, object]) -> str:
    """Return the options that a prompt does not say itself."""
    found = ""
    for letter, name, form in _FLAGS:
        value = told.get(name)
        if value in (None, "") or f" --{letter} " in f"{words} ":
            continue
        found += f" --{letter} {_formed(value, form)}"
    return found
