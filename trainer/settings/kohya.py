"""Recipes of sd-scripts: read into our keys, and written back.

A file that has `network_module` is one of sd-scripts': keys that it leaves out take sd-scripts' defaults, so that the
recipe means what it meant there. In any file, keys of sd-scripts that we lack are named; they are problems only where
they would change the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainer.ground.errors import Problem
from trainer.settings.problems import nearest_key, shown, unknown
from trainer.settings.sd_scripts import CHANGING, HARMLESS, INSTEAD, SHARED, WRITTEN_BY_KOHYA_SS
from trainer.settings.walk import Setting

NETWORK_MODULES = {"networks.lora": "lora"}
"""{sd-scripts' network_module: our network_type}."""

_OWN = (
    "model_family",
    "network_type",
    "conv_dim",
    "conv_alpha",
    "deterministic",
    "save_state_minutes",
    "step_down_on_out_of_memory",
    "caption_variants",
    "quantize_base",
    # sd-scripts has these in its trainers of rectified flow alone.
    "timestep_sampling",
    "sigmoid_scale",
    "discrete_flow_shift",
    "weighting_scheme",
    "logit_mean",
    "logit_std",
    "mode_scale",
    "model_prediction_type",
)
_OFF = (None, "", 0, False, "0", "0.0", "None", "none", "False", "false")
_ADAFACTOR_DEFAULTS = {"relative_step": ("True", "False"), "scale_parameter": ("True", "False")}
"""{argument: (sd-scripts' default, ours)}."""


@dataclass(slots=True)
class Imported:
    """A file's values under our keys, with what could not be taken over."""

    values: dict[str, object]
    problems: list[Problem] = field(default_factory=list)
    unsupported: list[Problem] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def import_flat(
    flat: Mapping[str, object], known: Mapping[str, Setting], *, ignore_unsupported: bool = False
) -> Imported:
    """Return the values of a flat file under our keys.

    `ignore_unsupported` makes notices of the problems that keys we lack would be.
    """
    imported = Imported(dict(flat))
    if "network_module" in flat:
        _translate(imported, known)
    _set_unsupported_aside(imported, known, from_sd_scripts="network_module" in flat)
    if imported.unused:
        imported.notices.append(f"Not used by this program, and not needed: {', '.join(imported.unused)}.")
    if ignore_unsupported:
        named = [f"{problem.key} = {shown(problem.value)}" for problem in imported.unsupported]
        imported.notices += [f"Ignored, though it changes the result: {name}." for name in named]
    else:
        imported.problems += imported.unsupported
    return imported


def _translate(imported: Imported, known: Mapping[str, Setting]) -> None:
    """Bring the file's values into our forms, and put sd-scripts' defaults under them."""
    given = {key: value for key, value in imported.values.items() if not _is_unset(key, value)}
    _rename(given)
    _unpack_network(given, imported)
    _translate_optimizer(given, known["optimizer_type"])
    _translate_logging(given)
    for key, value in given.items():
        if key in known:
            given[key] = _number(known[key], value)
    defaults = dict(SHARED)
    if given.get("max_train_epochs"):
        defaults["max_train_steps"] = None
    for alpha, rank in (("network_alpha", "network_dim"), ("conv_alpha", "conv_dim")):
        if given.get(alpha) == 0:  # sd-scripts takes alpha 0 as "the rank"
            given[alpha] = given.get(rank, SHARED.get(rank))
    given.setdefault("text_encoder_lr", given.get("learning_rate", SHARED["learning_rate"]))
    imported.values = {**defaults, **given}


def _is_unset(key: str, value: object) -> bool:
    """Say whether sd-scripts treats a value as if its key were absent."""
    return value == "" and SHARED.get(key) != ""


def _rename(given: dict[str, object]) -> None:
    if "caption_extention" in given:
        given.setdefault("caption_extension", given.pop("caption_extention"))
    if given.get("v2"):
        del given["v2"]
        given["model_family"] = "sd2"
    if given.pop("fp8_base", False) or given.get("fp8_base_unet"):
        given["quantize_base"] = "fp8"
    given.pop("fp8_base_unet", None)
    warmup = given.get("lr_warmup_steps")
    if isinstance(warmup, str) and warmup.endswith("%"):
        share = _parsed(warmup[:-1])
        given["lr_warmup_steps"] = share / 100 if isinstance(share, int | float) else warmup


def _unpack_network(given: dict[str, object], imported: Imported) -> None:
    """Replace network_module and network_args by network_type, conv_dim and conv_alpha."""
    module = str(given.pop("network_module", "networks.lora"))
    given.update(network_type=NETWORK_MODULES.get(module, "lora"), conv_dim=None, conv_alpha=None)
    if module not in NETWORK_MODULES:
        message = f"{shown(module)} is not a kind of LoRA that this version trains; it has networks.lora."
        imported.unsupported.append(Problem("network_module", message, module))
    arguments = given.pop("network_args", None) or ()
    if not isinstance(arguments, list | tuple):
        message = f'{shown(arguments)} cannot be used: it must be a list of texts, such as ["conv_dim=8"].'
        imported.problems.append(Problem("network_args", message, arguments))
        return
    for argument in arguments:
        name, _, text = str(argument).partition("=")
        if name.strip() in ("conv_dim", "conv_alpha"):
            given[name.strip()] = _parsed(text.strip())
        elif text.strip() in _OFF:
            imported.unused.append(f"network_args {name}")
        else:
            imported.unsupported.append(_unsupported("network_args", argument))


def _translate_optimizer(given: dict[str, object], optimizer_type: Setting) -> None:
    """Bring the optimizer's name into our spelling, and its defaults to sd-scripts' where they differ from ours."""
    eight_bit, lion = given.pop("use_8bit_adam", False), given.pop("use_lion_optimizer", False)
    name = given.get("optimizer_type") or ("AdamW8bit" if eight_bit else "Lion" if lion else "AdamW")
    names = {str(choice).lower(): choice for choice in optimizer_type.choices}
    given["optimizer_type"] = name = names.get(str(name).lower(), name)
    arguments = given.get("optimizer_args") or ()
    if name != "Adafactor" or not isinstance(arguments, list | tuple):
        return
    given["optimizer_args"] = _with_arguments(arguments, {key: pair[0] for key, pair in _ADAFACTOR_DEFAULTS.items()})
    if str(given.get("lr_scheduler")).startswith("adafactor"):
        given["lr_scheduler"] = "constant"  # what the schedule of that name does to a rate that Adafactor finds itself


def _with_arguments(arguments: Iterable[object], defaults: Mapping[str, str]) -> list[object]:
    given = {str(argument).partition("=")[0].strip() for argument in arguments}
    return [*arguments, *(f"{key}={value}" for key, value in defaults.items() if key not in given)]


def _translate_logging(given: dict[str, object]) -> None:
    """sd-scripts logs for TensorBoard as soon as there is a folder for it; what it sends to wandb is left out."""
    if "log_with" in given or given.get("logging_dir"):
        given["log_with"] = "" if given.get("log_with") == "wandb" else "tensorboard"


def _number(setting: Setting, value: object) -> object:
    """Return what a number means that was written as text or, for a whole number, with a decimal point."""
    if isinstance(value, str) and setting.kind in ("integer", "number"):
        value = _parsed(value)
    if isinstance(value, str) and setting.kind == "choice" and value.isdecimal():
        value = int(value) if int(value) in setting.choices else value
    if isinstance(value, float) and setting.kind == "integer" and value.is_integer():
        return int(value)
    return value


def _parsed(text: str) -> object:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _set_unsupported_aside(imported: Imported, known: Mapping[str, Setting], *, from_sd_scripts: bool) -> None:
    """Take out the keys that we lack: quietly where they change nothing, as problems where they would."""
    for key in [key for key in imported.values if key not in known]:
        value = imported.values[key]
        if key in HARMLESS or (key in CHANGING and (value == CHANGING[key] or value in _OFF or value == [])):
            imported.unused.append(key)
        elif key in CHANGING or key in INSTEAD:
            imported.unsupported.append(_unsupported(key, value))
        elif not from_sd_scripts:
            continue
        elif key in WRITTEN_BY_KOHYA_SS or not nearest_key(key, known):
            imported.unused.append(key)
        else:
            imported.problems.append(unknown(key, known))
        del imported.values[key]


def _unsupported(key: str, value: object) -> Problem:
    instead = f"; {INSTEAD[key]}" if key in INSTEAD else ""
    message = (
        f"{shown(value)} is from sd-scripts, is not supported here and would change the result{instead}. "
        "Remove it, or go on without it by --ignore-unsupported."
    )
    return Problem(key, message, value)


def export_flat(flat: Mapping[str, object], prompts_file: str = "") -> dict[str, object]:
    """Return our values as sd-scripts' flat ones, with `network_module` and `network_args` packed.

    sd-scripts reads sample prompts from a file only: prompts that are text are replaced by `prompts_file`, which the
    caller writes, or left out.
    """
    exported = {key: value for key, value in flat.items() if key not in _OWN and value not in (None, "", [])}
    modules = {kind: module for module, kind in NETWORK_MODULES.items()}
    exported["network_module"] = modules[str(flat["network_type"])]
    arguments = [f"{key}={flat[key]}" for key in ("conv_dim", "conv_alpha") if flat.get(key) is not None]
    if arguments:
        exported["network_args"] = arguments
    if flat["mixed_precision"] == "auto":
        exported["mixed_precision"] = "fp16"
    if flat["max_token_length"] == 75:  # sd-scripts calls this length None
        del exported["max_token_length"]
    if flat["lr_scheduler"] == "constant":
        exported["lr_warmup_steps"] = 0  # sd-scripts refuses a warm-up there; we don't use it
    if flat["optimizer_type"] == "Adafactor":
        ours = {key: pair[1] for key, pair in _ADAFACTOR_DEFAULTS.items()}
        exported["optimizer_args"] = _with_arguments(list(exported.get("optimizer_args", ())), ours)  # type: ignore[call-overload]
    if not names_a_file(str(flat["sample_prompts"])):
        exported.pop("sample_prompts", None)
        if flat["sample_prompts"] and prompts_file:
            exported["sample_prompts"] = prompts_file
    if flat["model_family"] == "sd2":
        exported["v2"] = True
    if flat["quantize_base"] == "fp8":
        exported["fp8_base_unet"] = True
    exported["save_model_as"] = "safetensors"
    return dict(sorted(exported.items()))


def names_a_file(prompts: str) -> bool:
    """Say whether sample prompts are the path of a prompt file, not prompts themselves."""
    return "\n" not in prompts and prompts.lower().endswith((".txt", ".toml", ".json"))
