"""Which of sd-scripts' trainers a recipe is for: that of Stable Diffusion, or one of the models of rectified flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.ground.errors import Problem
from trainer.settings.sd_scripts import is_off
from trainer.settings.texts import parsed

PROCESS_THERE, FLOW_THERE = "ddpm", "flow"
"""The kind of process of the models that they train, as a rule and for those of `FLOW_FAMILIES`."""

FLOW_FAMILIES = {
    "flux": "networks.lora_flux",
    "chroma": "networks.lora_flux",
    "anima": "networks.lora_anima",
}
"""{model_family: sd-scripts' module for LoRAs of it} of the models that draw by rectified flow."""
MODEL_TYPES = {"chroma": "chroma"}
"""{model_family: the model_type that tells it from another with the same module}."""
NO_CHOICE: Mapping[str, Mapping[str, object]] = {"chroma": {"apply_t5_attn_mask": True, "guidance_scale": 0.0}}
"""{model_family: what its trainer has to be told, and is no choice here}."""
NOT_READ: Mapping[str, tuple[str, ...]] = {
    "anima": ("guidance_scale", "model_prediction_type", "apply_t5_attn_mask", "t5xxl_max_token_length"),
}
"""{model_family: settings that its trainer has not, though those of other models of rectified flow have them}."""
OWN_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "anima": {"timestep_sampling": "sigmoid", "discrete_flow_shift": 1.0, "model_prediction_type": "raw"},
}
"""{model_family: what a recipe means that leaves it out, where that is not what the others mean}."""

_OF_ANY_MODEL = ("lycoris.kohya", "networks.loha", "networks.lokr")
"""Modules for LoRAs that say nothing of the model."""
_OF_FLUX, _OF_ANIMA = ("guidance_scale", "t5xxl"), ("qwen3",)
_OF_OTHERS = ("clip_g", "gemma2", "byt5", "text_encoder")
"""Arguments of two trainers alone, and those beside which they are of a trainer for another model."""

_PREDICTION = "model_prediction_type"

_SWAPPABLE = {"flux": 38, "chroma": 38, "anima": 28}
"""{model_family: how many blocks `blocks_to_swap` counts}; FLUX.1's are a double block, or two single ones."""
_SPLIT_MODE = 18
"""The blocks that sd-scripts' former `split_mode` stands for."""


def process_of(model_family: object) -> str:
    """Return the kind of process of a family's models; of whatever a file says that is no family, the usual one."""
    return FLOW_THERE if isinstance(model_family, str) and model_family in FLOW_FAMILIES else PROCESS_THERE


def family_of_module(given: Mapping[str, object]) -> str:
    """Return the family that a recipe's module for LoRAs, with its model_type, is for alone; "" where it's not said."""
    module, kind = given.get("network_module", ""), given.get("model_type")
    having = [name for name, its in FLOW_FAMILIES.items() if module == its]
    return next((name for name in having if MODEL_TYPES.get(name, "") == kind), having[0] if having else "")


def relative_of(family: str, given: Mapping[str, object]) -> str:
    """Return the family that a recipe for a trainer's usual one means by its model_type, else that one."""
    same = (name for name, module in FLOW_FAMILIES.items() if module == FLOW_FAMILIES.get(family))
    return next((name for name in same if name in MODEL_TYPES and given.get("model_type") == MODEL_TYPES[name]), family)


def without_choice(given: dict[str, object], known: Mapping[str, Any]) -> list[str]:
    """Put our defaults, in place, for what a family's models leave no choice of; return what was said of it."""
    family = str(given.get("model_family"))
    always = (*NO_CHOICE.get(family, {}), *NOT_READ.get(family, ()))
    said = [key for key in always if key in given]
    given |= {key: known[key].default for key in always}
    return said


def tell_model(model_family: str, exported: dict[str, object]) -> None:
    """Write, in place, what the trainer of a family's models is told otherwise or has to be told."""
    if FLOW_FAMILIES.get(model_family) == FLOW_FAMILIES["flux"] and "vae" in exported:
        exported["ae"] = exported.pop("vae")
    for key in NOT_READ.get(model_family, ()):
        exported.pop(key, None)
    if model_family in MODEL_TYPES:
        exported["model_type"] = MODEL_TYPES[model_family]
    exported |= NO_CHOICE.get(model_family, {})


def family_of_arguments(given: Mapping[str, object]) -> str:
    """Return the family whose trainer alone takes what is given, where the module is one for any; "" where it is open.

    A file of arguments does not name the script that it is for.
    """
    if given.get("network_module") not in _OF_ANY_MODEL or any(name in given for name in _OF_OTHERS):
        return ""
    if any(name in given for name in _OF_ANIMA):
        return "anima"
    family = next((name for name, kind in MODEL_TYPES.items() if given.get("model_type") == kind), "flux")
    return family if any(name in given for name in _OF_FLUX) else ""


def streamed_share(given: Mapping[str, object]) -> dict[str, float]:
    """Return {argument: share of the denoiser's weights} of what sd-scripts keeps in the computer's memory.

    Empty where it keeps none there, or does not read the argument for the family.
    """
    most = _SWAPPABLE.get(str(given.get("model_family")), 0)
    swapped = parsed(str(given.get("blocks_to_swap", "")))
    if most and isinstance(swapped, int) and swapped > 0:
        return {"blocks_to_swap": min(1.0, round(swapped / most, 2))}
    if most and "blocks_to_swap" not in given and not is_off(given.get("split_mode")):
        return {"split_mode": round(_SPLIT_MODE / most, 2)}
    return {}


def unsaid_prediction(given: Mapping[str, object]) -> Problem | None:
    """Return the question for a recipe that leaves what is compared with the target to a default that is a trap."""
    if _PREDICTION in given or _PREDICTION in OWN_DEFAULTS.get(str(given.get("model_family")), {}):
        return None
    message = (
        "the recipe leaves it out, which means sigma_scaled in sd-scripts: what is trained is then compared with a "
        'goal that the model itself is far from. Write "raw", which is what is recommended there, or "sigma_scaled" to '
        "train as that recipe did."
    )
    return Problem(_PREDICTION, message, None, {_PREDICTION: "raw"})
