"""Which layers each of LyCORIS' presets adapts, by what a target says and by its kohya name.

The lists are those of lycoris-lora 3.2.0.post2. Later versions meet a layer twice on SD 1.5. Its preset "ia3" meets no
layer at all; here it has those that it was written for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from trainer.targets import Target

_ATTENTION = re.compile(r"_(attn1|attn2|self_attn)_")
_IA3 = re.compile(r"_(to_k|to_v|k_proj|v_proj|ff_net_2|mlp_fc2)$")
_SQUARE = (3, 3)


def _is_text(target: Target) -> bool:
    return target.name.startswith("lora_te")


PRESETS: Mapping[str, Callable[[Target], bool]] = {
    "full": lambda target: True,
    "full-lin": lambda target: target.kernel != _SQUARE,
    "attn-mlp": lambda target: not target.extra,
    "attn-only": lambda target: bool(_ATTENTION.search(target.name)),
    "unet-only": lambda target: not _is_text(target),
    "unet-transformer-only": lambda target: not _is_text(target) and not target.extra,
    "unet-convblock-only": lambda target: target.extra and not (target.rim and target.kernel is None),
    "ia3": lambda target: bool(_IA3.search(target.name)),
}
"""Preset -> whether a layer is adapted. Kernels larger than 1 need a `conv_dim` too."""


def adapts(preset: str, target: Target) -> bool:
    """Say whether a preset adapts a layer."""
    return PRESETS[preset](target)
