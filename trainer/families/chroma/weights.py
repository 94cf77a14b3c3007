"""Every weight of Chroma's transformer with its shape, from its configuration alone. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainer.families.chroma.weight_names import APPROXIMATOR
from trainer.families.flux import weights
from trainer.families.flux.weight_names import SWAPPED
from trainer.families.reading.folders import Shapes
from trainer.targets import Target


def transformer_shapes(config: Mapping[str, Any], targets: Iterable[Target]) -> Shapes:
    """Return {weight of the module that runs: shape}."""
    width, inner = config["num_attention_heads"] * config["attention_head_dim"], config["approximator_hidden_dim"]
    shapes = weights.transformer_shapes(config, targets)
    found = {name: shape for name, shape in shapes.items() if not name.startswith(SWAPPED)}
    layers = {"in_proj": (inner, config["approximator_num_channels"]), "out_proj": (width, inner)}
    for number in range(config["approximator_layers"]):
        found[f"{APPROXIMATOR}.norms.{number}.weight"] = (inner,)
        layers |= {f"layers.{number}.linear_{which}": (inner, inner) for which in (1, 2)}
    for layer, shape in layers.items():
        found |= {f"{APPROXIMATOR}.{layer}.weight": shape, f"{APPROXIMATOR}.{layer}.bias": shape[:1]}
    return found
