"""Arguments of sd-scripts as kohya_ss' form has them, so that its own code makes the same arguments of it.

What has a field goes there. What its code would make otherwise of the field, such as a 0 that it leaves out, goes into
the field of additional parameters, which comes last there and so counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.settings.importing import kohya_form as form
from trainer.settings.importing.kohya_json import arguments_of
from trainer.settings.sd_scripts import is_off
from trainer.settings.section import Follows
from trainer.settings.walk import Setting

Values = dict[str, object]

_NOTHING_SAID: Values = {"LyCORIS_preset": "full", "factor": -1, "conv_dim": 0, "conv_alpha": 1}
"""Fields of its kinds of LoRA that are always said, with what means the same as silence."""

_NO_WORD = re.compile(r"[\s\"'\\;&|()<>`$]|^$")
"""Signs that its field of additional parameters cannot hold."""

_OFFSET = ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
_MULTIRES = ("multires_noise_iterations", "multires_noise_discount")
_AS_TEXT = ("optimizer_args", "lr_scheduler_args")
_RATES = ("text_encoder_lr", "unet_lr", "network_train_unet_only", "network_train_text_encoder_only")
_NOT_LEARNED = (
    "sample_prompts",
    "noise_offset_type",
    "xformers",
    "sdpa",
    "epoch",
    "save_model_as",
    "output_name",
    "max_train_steps",
)
"""Arguments that its form makes by itself and that change nothing, or stand back behind another one."""


def kohya_form(
    arguments: Mapping[str, object], known: Mapping[str, Setting], *, family: str = "", prompts: str = ""
) -> tuple[Values, tuple[str, ...]]:
    """Return {field: value} of kohya_ss' form, and the arguments that it cannot be told.

    Args:
        arguments: as `kohya.export_flat` gives them.
        family: the `model_family`, which is a box of the form.
        prompts: sample prompts as text, or the path of a file of them.
    """
    holds = {**form.FORM, **next((own for name, own in form.BOXES.values() if name == family), {})}
    off = {key: _off(value) for key, value in holds.items()}
    fields = {**off, **_plain(arguments, holds), **_network(arguments), **_rates(arguments), **_length(arguments)}
    fields |= {"xformers": "sdpa", "sdxl": family == "sdxl", "sample_prompts": prompts, "save_model_as": "safetensors"}
    fields |= _of_family(arguments, family)
    boxes = ("model_family", *form.OTHER_MODELS)
    made = {key: value for key, value in arguments_of(fields, fields).items() if key not in boxes}
    words, unsaid = _by_hand(arguments, made, known)
    return {**fields, "additional_parameters": " ".join(words)}, unsaid


def _off(value: object) -> object:
    """Return what a field holds that says nothing."""
    return False if isinstance(value, bool) else 0 if isinstance(value, int | float) else ""


def _plain(arguments: Mapping[str, object], holds: Mapping[str, object]) -> Values:
    """Return the fields whose values are arguments as they stand, or a list of them as text."""
    fields = {argument: field for field, argument in form.RENAMED.items()}
    found: Values = {}
    for key, value in arguments.items():
        field = form.OF_ANIMA + key if form.OF_ANIMA + key in holds else fields.get(key, key)
        if key in _AS_TEXT and isinstance(value, list | tuple):
            found[key] = " ".join(map(str, value))
        elif field in holds and field not in form.ELSEWHERE and field not in form.PACKED and key != "sample_prompts":
            found[field] = value
    multires = "multires_noise_iterations" in arguments and not arguments.get("noise_offset")
    names = _MULTIRES if multires else _OFFSET
    found |= {name: arguments[name] for name in names if name in arguments}
    found["noise_offset_type"] = "Multires" if multires else "Original"
    found.setdefault("max_token_length", 75)
    return found


def _network(arguments: Mapping[str, object]) -> Values:
    """Return the kind of LoRA and the fields that its code packs into network_args."""
    given = dict(str(each).partition("=")[::2] for each in _list(arguments.get("network_args")))
    algo = given.get("algo", "")
    wanted = (arguments.get("network_module"), algo)
    kinds = [name for name, kind in form.KINDS.items() if (kind.module, kind.algo) == wanted]
    name = next((name for name in kinds if ("conv_dim" in given) == ("conv_dim" in form.KINDS[name].always)), "")
    name = name or next(iter(kinds), "Standard")
    fields = {inside: field for field, inside in form.INSIDE.items()}
    found: Values = {"LoRA_type": name, **_NOTHING_SAID}
    kind = form.KINDS[name]
    for argument, text in given.items():
        field = fields.get(argument, "unit" if argument == "block_size" else argument)
        if field in (*kind.always, *kind.filled) or field.startswith("loraplus_"):
            found[field] = {"True": True, "False": False}.get(text, text)
    return found


def _rates(arguments: Mapping[str, object]) -> Values:
    """Return the rates: a rate of 0 leaves a part out there, and one that is not given is the common one."""
    unet, encoders = _parts(arguments)
    second = encoders[1] if encoders[1] != encoders[0] else 0
    return {"text_encoder_lr": encoders[0], "t5xxl_lr": second, "unet_lr": unet}


def _length(arguments: Mapping[str, object]) -> Values:
    warmup = arguments.get("lr_warmup_steps", 0)
    share = float(str(warmup)) * 100 if isinstance(warmup, float) else 0.0
    epochs = arguments.get("max_train_epochs", 0)
    return {
        "epoch": epochs or 1,
        "max_train_epochs": epochs,
        "max_train_steps": 0 if epochs else arguments.get("max_train_steps", 0),
        "lr_warmup": round(share) if warmup == round(share) / 100 else 0,
        "lr_warmup_steps": warmup if isinstance(warmup, int) else 0,
    }


def _of_family(arguments: Mapping[str, object], family: str) -> Values:
    ahead = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk")
    named = {
        "sdxl": {"sdxl_cache_text_encoder_outputs": ahead[0], "sdxl_no_half_vae": "no_half_vae"},
        "flux": {f"flux1_{name}": name for name in ahead},
    }.get(family, {})
    box: Values = {name: True for name, (own, _) in form.BOXES.items() if own == family}
    return {**box, **{field: arguments.get(argument, False) for field, argument in named.items()}}


def _by_hand(
    arguments: Mapping[str, object], made: Mapping[str, object], known: Mapping[str, Setting]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the words that make up for what the fields do not say, and the arguments that nothing says."""
    there = {setting.argument: setting.sd_scripts.default for setting in known.values() if setting.sd_scripts}
    words: list[str] = []
    unsaid: list[str] = []
    as_meant = _RATES if _parts(arguments) == _parts(made) else ()
    for key, value in arguments.items():
        same = _same(key, value, made.get(key, _standing_for(there.get(key), made)), known)
        if key in (*as_meant, "sample_prompts") or same:
            continue
        texts = [f"--{key}"] if value is True else [f"--{key}", *map(_text, _list(value))]
        if value is False or any(_NO_WORD.search(text) for text in texts):
            unsaid.append(key)
        else:
            words += texts
    for key, value in made.items():
        given = arguments.get(key, _standing_for(there.get(key), arguments))
        if key not in (*arguments, *_NOT_LEARNED, *as_meant) and not _same(key, given, value, known):
            unsaid.append(key)
    return words, tuple(unsaid)


def _parts(arguments: Mapping[str, object]) -> tuple[object, list[object]]:
    """Return the rates that arguments come to: the UNet's, and those of two text encoders."""
    rate = arguments.get("learning_rate", 0)
    encoders = _list(arguments.get("text_encoder_lr", rate))
    unet = arguments.get("unet_lr", rate)
    if arguments.get("network_train_unet_only"):
        encoders = [0]
    if arguments.get("network_train_text_encoder_only"):
        unet = 0
    return unet, encoders * 2 if len(encoders) == 1 else encoders


def _standing_for(default: object, values: Mapping[str, object]) -> object:
    return values.get(default.key) if isinstance(default, Follows) else default


def _same(key: str, one: object, other: object, known: Mapping[str, Setting]) -> bool:
    """Say whether two values of an argument are one."""
    if key == "network_args":
        return {*_said_inside(one, known)} == {*_said_inside(other, known)}
    if isinstance(one, list | tuple) or isinstance(other, list | tuple):
        return _list(one) == _list(other)
    zero_counts = any(each.argument == key and each.optional and not each.zero_is_off for each in known.values())
    if zero_counts and (one is None) is not (other is None):
        return False
    return one == other or _text(one) == _text(other) or (_is_nothing(one) and _is_nothing(other))


def _is_nothing(value: object) -> bool:
    return value in (None, "", 0, False)


def _said_inside(arguments: object, known: Mapping[str, Setting]) -> list[str]:
    """Return the network's arguments without those that mean the same as silence."""
    inside = [each for each in known.values() if each.sd_scripts and each.sd_scripts.inside]
    on = {each.sd_scripts.name or each.key for each in inside if each.sd_scripts and each.sd_scripts.default is True}
    parted = [str(each).partition("=") for each in _list(arguments)]
    silent = {form.INSIDE.get(field, field): str(value) for field, value in _NOTHING_SAID.items()}
    if not any(name == "algo" for name, _, _ in parted):
        del silent["preset"]  # only LyCORIS' own kinds have one by themselves
    said = [(name, text) for name, _, text in parted if silent.get(name) != text]
    return [f"{name}={text}" for name, text in said if name in on or not is_off(text)]


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [] if value in (None, "") else [value]


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)
