"""Which of sd-scripts' trainers a recipe is for: that of Stable Diffusion, or one of the models of rectified flow."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.ground.errors import Problem

PROCESS_THERE, FLOW_THERE = "ddpm", "flow"
"""The kind of process of the models that they train, as a rule and for those of `FLOW_FAMILIES`."""

FLOW_FAMILIES = {"flux": "networks.lora_flux"}
"""{model_family: sd-scripts' module for LoRAs of it} of the models that draw by rectified flow."""

_PREDICTION = "model_prediction_type"


def process_of(model_family: object) -> str:
    """Return the kind of process of a family's models."""
    return FLOW_THERE if model_family in FLOW_FAMILIES else PROCESS_THERE


def family_of_module(module: object) -> str:
    """Return the family that one of sd-scripts' modules for LoRAs is for alone; "" where it doesn't say."""
    return next((name for name, its in FLOW_FAMILIES.items() if module == its), "")


def unsaid_prediction(given: Mapping[str, object]) -> Problem | None:
    """Return the question for a recipe that leaves what is compared with the target to a default that is a trap."""
    if _PREDICTION in given:
        return None
    message = (
        "the recipe leaves it out, which means sigma_scaled in sd-scripts: what is trained is then compared with a "
        'goal that the model itself is far from. Write "raw", which is what is recommended there, or "sigma_scaled" to '
        "train as that recipe did."
    )
    return Problem(_PREDICTION, message, None, {_PREDICTION: "raw"})
