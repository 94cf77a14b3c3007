"""kohya_ss' JSON: its shipped presets, and what its form saves. What its own code makes of one is what one means.

Its form is the ground: a field that the file leaves out is what the form holds. Then the form is written as arguments
of sd-scripts, from which all that is empty, off or 0 is left out (kohya_gui/lora_gui.py and common_gui.py, v26.0.0).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from trainer.settings.importing import kohya_form as form
from trainer.settings.importing.command_line import read_options
from trainer.settings.importing.others import json_of
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.kohya import Said
from trainer.settings.sd_scripts import is_off
from trainer.settings.walk import Setting

Values = dict[str, object]

_KIND = "LoRA_type"
"""The field that only its form has."""

_SURE = ("LoRA_type", "max_resolution", "noise_offset_type", "LyCORIS_preset", "sdxl", "lr_warmup")
"""A file that has two of these fields is one of kohya_ss'."""

_FLUX_BOX = "flux1_checkbox"

_MEANS_SOMETHING = {"max_grad_norm": 1.0, "prior_loss_weight": 1.0, "learning_rate": 2e-6}
"""Arguments of which 0 means something, with what sd-scripts takes where kohya_ss leaves the 0 out."""


class KohyaJson(Reader):
    """A preset or a saved configuration of kohya_ss."""

    name = "a JSON file of kohya_ss"

    def recognises(self, source: Source) -> bool:
        document = json_of(source)
        return isinstance(document, dict) and (_KIND in document or sum(key in document for key in _SURE) >= 2)

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        document = json_of(source)
        assert isinstance(document, dict)
        given = {key: value for key, value in document.items() if value is not None}
        opened = _opened(given)
        ticked = [of_box for box, of_box in form.BOXES.items() if opened.get(box)]
        holds = {**form.FORM, **{key: value for _, own in ticked for key, value in own.items()}}
        fields = {**holds, **{key: value for key, value in opened.items() if key in holds}}
        recipe = read_options(_unquoted(fields["additional_parameters"]), known)
        by_hand = dict(recipe.flat)
        # An empty kind is left out.
        recipe.flat = {"network_module": "networks.lora", **arguments_of(fields, opened), **by_hand}
        for family, _ in ticked:
            if family in known["model_family"].choices:
                recipe.flat["model_family"] = family
        recipe.unused += sorted(key for key in given if key not in holds and key not in form.OTHER_MODELS)
        recipe.assumed = {
            key: recipe.flat[key]
            for key in sorted(holds)
            if key not in given and key not in form.ELSEWHERE and key in recipe.flat and holds[key] != ""
        }
        recipe.origins = _origins(given)
        _tell(recipe, given, fields, by_hand)
        return recipe


def _origins(given: Mapping[str, object]) -> dict[str, tuple[str, object]]:
    """Return {what becomes an argument of the network's: field and its value in the file}."""
    of_kind = form.KINDS[kind].module if (kind := str(given.get(_KIND))) in form.KINDS else ""
    field = next((box for box, module in form.OTHER_MODELS.items() if given.get(box) and module != of_kind), _KIND)
    found = {"network_module": (field, given.get(field))}
    fields = (*form.FORM, *form.FLUX)
    names = {field: form.INSIDE.get(field, field) for field in fields if _in_network_args(field)}
    for field, name in [*names.items(), ("unit", "block_size")]:
        found[f"network_args {name}"] = (field, given.get(field))
    return found


def _opened(given: Mapping[str, object]) -> Values:
    """Return what its form shows of a file: numbers made of texts, old names brought up to date."""
    values = dict(given)
    for key, otherwise in form.WHOLE_NUMBERS.items():
        if key in values:
            values[key] = _made(int, values[key], otherwise)
    for key, number in form.NUMBERS.items():
        if key in values:
            values[key] = _made(float, values[key], number)
    values.setdefault("optimizer", "AdamW8bit" if values.get("use_8bit_adam") else "AdamW")
    kind = str(values.get("LoRA_type", "Standard"))
    values["LoRA_type"] = form.LEGACY_KINDS.get(kind, kind)
    if isinstance(values.get("xformers"), bool):
        values["xformers"] = "xformers" if values["xformers"] else "none"
    if values.get("use_wandb") == "True":
        values["log_with"] = "wandb"
    return values


def _made(make: Callable[[str], float], value: object, otherwise: float) -> float:
    try:
        return make(value if isinstance(value, int | float) else str(value))  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return otherwise


def arguments_of(fields: Mapping[str, object], opened: Mapping[str, object]) -> Values:
    """Return the arguments of sd-scripts that its form becomes."""
    passed = {
        _argument(key): value
        for key, value in fields.items()
        if key not in form.ELSEWHERE and not _in_network_args(key)
    }
    values: Values = {
        **passed,
        **_noise(fields),
        **_rates(fields),
        **_network(fields, opened),
        "lr_warmup_steps": _warmup(fields),
        "optimizer_args": _list(fields["optimizer_args"]),
        "lr_scheduler_args": _list(fields["lr_scheduler_args"]),
        "xformers": fields["xformers"] == "xformers",
        "sdpa": fields["xformers"] == "sdpa",
    }
    if fields["sdxl"]:
        values |= {
            "model_family": "sdxl",
            "cache_text_encoder_outputs": fields["sdxl_cache_text_encoder_outputs"],
            "no_half_vae": fields["sdxl_no_half_vae"],
        }
    if opened.get(_FLUX_BOX):
        ahead = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk")
        values |= {"max_token_length": None, **{name: fields[f"flux1_{name}"] for name in ahead}}
    if fields["train_inpainting"]:
        values |= {"cache_latents": False, "cache_latents_to_disk": False}
    kept = {key: value for key, value in values.items() if value == [] or value not in ("", False, None)}
    kept["max_data_loader_n_workers"] = fields["max_data_loader_n_workers"]
    if not fields["max_train_steps"] and not kept.get("max_train_epochs"):
        kept["max_train_epochs"] = fields["epoch"] or 1
    return kept


def _argument(field: str) -> str:
    """Return the argument that a field is passed as."""
    return field.removeprefix(form.OF_ANIMA) if field in form.ANIMA else form.RENAMED.get(field, field)


def _in_network_args(key: str) -> bool:
    return key in form.PACKED or key.startswith("loraplus_")


def _noise(fields: Mapping[str, object]) -> Values:
    if fields["noise_offset_type"] == "Multires":
        names: tuple[str, ...] = ("multires_noise_iterations", "multires_noise_discount")
    else:
        names = ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
    return {name: fields[name] for name in names}


def _rates(fields: Mapping[str, object]) -> Values:
    """A rate of 0 means that the part is not trained; the encoders' becomes a list of two."""
    encoder, unet = fields["text_encoder_lr"], fields["unet_lr"]
    return {
        "text_encoder_lr": [encoder, fields["t5xxl_lr"] or encoder] if encoder else None,
        "unet_lr": unet,
        "network_train_unet_only": bool(unet) and not encoder,
        "network_train_text_encoder_only": bool(encoder) and not unet,
    }


def _warmup(fields: Mapping[str, object]) -> object:
    steps = _made(int, _made(float, fields["lr_warmup_steps"], 0), 0)
    return steps if steps > 0 else _made(float, fields["lr_warmup"], 0) / 100


def _network(fields: Mapping[str, object], opened: Mapping[str, object]) -> Values:
    """Return network_module and network_args of the form's kind of LoRA."""
    name = str(fields["LoRA_type"])
    kind = form.KINDS.get(name, form.Kind(name))
    other = next((module for box, module in form.OTHER_MODELS.items() if opened.get(box)), "")
    plus = [field for field in fields if field.startswith("loraplus_")]
    filled = [field for field in (*kind.filled, *plus) if fields.get(field) not in ("", 0, None)]
    names = {**form.INSIDE, "unit": "block_size" if kind.algo else "unit"}
    arguments = [f"{names.get(field, field)}={fields[field]}" for field in (*kind.always, *filled)]
    algo = [f"algo={kind.algo}"] if kind.algo else []
    return {"network_module": other or kind.module, "network_args": [*algo, *arguments]}


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else list(_unquoted(value))


def _unquoted(value: object) -> list[str]:
    """Return the words of a text; quotes hold a word together and go, backslashes stay."""
    words = shlex.shlex(str(value), posix=True)
    words.whitespace_split, words.escape, words.commenters = True, "", ""
    try:
        return list(words)
    except ValueError:
        return str(value).replace('"', "").split()


def _tell(
    recipe: Recipe, given: Mapping[str, object], fields: Mapping[str, object], by_hand: Mapping[str, object]
) -> None:
    """Say of each field that is another argument, or another value, what has become of it."""
    flat = recipe.flat
    renamed = {**form.RENAMED, **{field: _argument(field) for field in form.ANIMA if field in fields}}
    for key, argument in renamed.items():
        if key in given and argument in flat:
            recipe.said.append(Said(key, given[key], {argument: flat[argument]}))
    became = {
        "lr_warmup": ("lr_warmup_steps",),
        "sdxl_no_half_vae": ("no_half_vae",),
        "sdxl_cache_text_encoder_outputs": ("cache_text_encoder_outputs",),
        "flux1_cache_text_encoder_outputs": ("cache_text_encoder_outputs",),
        "flux1_cache_text_encoder_outputs_to_disk": ("cache_text_encoder_outputs_to_disk",),
        **{box: ("model_family",) for box in ("sdxl", *form.BOXES) if given.get(box)},
        "text_encoder_lr": ("text_encoder_lr", "network_train_unet_only"),
        "unet_lr": ("unet_lr", "network_train_text_encoder_only"),
    }
    other = "sdxl_" if recipe.flat.get("model_family") != "sdxl" else "flux1_"
    for key, arguments in became.items():
        becomes = {argument: flat[argument] for argument in arguments if argument in flat}
        if (
            key in given
            and not key.startswith(other)
            and becomes
            and [*map(str, becomes.values())] != [str(given[key])]
        ):
            recipe.said.append(Said(key, given[key], becomes))
    if fields["additional_parameters"]:
        recipe.said.append(Said("additional_parameters", fields["additional_parameters"], by_hand))
    for key, default in _MEANS_SOMETHING.items():
        if fields[key] == 0 and key not in flat:
            recipe.said.append(Said(key, 0, {key: default}, "kohya_ss leaves a 0 out, so sd-scripts takes its default"))
    if not fields["max_train_steps"] and not fields["max_train_epochs"] and "max_train_epochs" not in by_hand:
        recipe.said.append(Said("epoch", fields["epoch"], {"max_train_epochs": flat["max_train_epochs"]}))
    elif "epoch" in given:
        key = "max_train_epochs" if flat.get("max_train_epochs") else "max_train_steps"
        recipe.said.append(Said("epoch", given["epoch"], {}, f"without effect there, since {key} is {flat.get(key)}"))
    _tell_what_is_left_out(recipe, given)


def _tell_what_is_left_out(recipe: Recipe, given: Mapping[str, object]) -> None:
    """Name the fields that reach no argument: those that are off, and those that the others leave without effect."""
    told = {each.key for each in recipe.said} | {*recipe.flat} | {*recipe.unused}
    told |= {name for name, argument in form.RENAMED.items() if argument in recipe.flat}
    packed = {str(argument).partition("=")[0] for argument in _list(recipe.flat.get("network_args", []))}
    told |= {field for name, (field, _) in recipe.origins.items() if name.removeprefix("network_args ") in packed}
    # What such a field is told to be elsewhere is said there; the field itself is off.
    elsewhere = {key for each in recipe.said if each.key in ("additional_parameters", "epoch") for key in each.becomes}
    told -= {key for key in elsewhere if is_off(given.get(key))}
    for key in sorted(set(given) - told - {_KIND, recipe.origins["network_module"][0]}):
        (recipe.off if is_off(given[key]) else recipe.unused).append(key)
