"""The approximator's weights in Chroma's own layout; all others have FLUX.1's names. No torch."""

from __future__ import annotations

import re

from trainer.families.flux import weight_names

APPROXIMATOR = "distilled_guidance_layer"
_LAYER = re.compile(rf"({APPROXIMATOR}\.layers\.\d+)\.linear_([12])\.(\w+)")
_NORM = re.compile(rf"({APPROXIMATOR}\.norms\.\d+)\.weight")
_ENDS = {"1": "in_layer", "2": "out_layer"}


def original_name(name: str) -> str:
    """Return the original's name of a weight of ours."""
    if found := _LAYER.fullmatch(name):
        layer, number, kind = found.groups()
        return f"{layer}.{_ENDS[number]}.{kind}"
    if found := _NORM.fullmatch(name):
        return f"{found[1]}.scale"
    return name if name.startswith(APPROXIMATOR) else weight_names.original_name(name)
