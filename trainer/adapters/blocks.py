"""Which block of the UNet a LoRA module belongs to, as kohya's block weights count them. Torch-free.

SD1.x and 2.x have 25 blocks: 0 for conv_in, down 1-11, mid 12, up 13-24. SDXL has 23: 0 and 22 for the embeddings and
the output, input blocks 1-9, middle 10-12, output 13-21. Numbers as in sd-scripts' `networks/lora.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DIFFUSERS = re.compile(r"lora_unet_(down|mid|up)_block(?:s_(\d+))?_(resnets|attentions|downsamplers|upsamplers)_(\d+)")
_ORIGINAL = re.compile(r"lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)")

_FIRST_OF = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}
_DOWN, _MID, _UP = 1, 12, 13
_LAYERS = 3
"""Places of a block: two layers and the down-sampler, or three layers of which the last has the up-sampler."""
_SAMPLER_PLACE = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """How blocks are counted: `side` ones down and as many up, `middle` ones between, `ends` before and after all."""

    side: int
    middle: int
    ends: int = 0

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return 2 * (self.side + self.ends) + self.middle


_OF_DIFFUSERS, _OF_ORIGINAL = Layout(12, 1), Layout(9, 3, 1)


def block_index(name: str) -> int | None:
    """Return the block of a kohya module name, or None for what is in no block: text encoders, embeddings."""
    original = _ORIGINAL.match(name)
    if original:
        return _FIRST_OF[original[1]] + int(original[2])
    diffusers = _DIFFUSERS.match(name)
    if not diffusers:
        return None
    part, block, kind, layer = diffusers.groups()
    if part == "mid":
        return _MID
    place = _SAMPLER_PLACE if kind.endswith("samplers") else int(layer)
    return (_DOWN if part == "down" else _UP) + _LAYERS * int(block) + place


def block_count(names: Iterable[str]) -> int:
    """Return how many blocks the model of these layers has: 25, 23 for SDXL, 0 where it has no such blocks."""
    layouts = (layout_of(name) for name in names)
    return next((layout.count for layout in layouts if layout), 0)


def layout_of(name: str) -> Layout | None:
    """Return how the blocks are counted of the model that has a layer of this name; None where it tells of none."""
    if _ORIGINAL.match(name):
        return _OF_ORIGINAL
    return _OF_DIFFUSERS if _DIFFUSERS.match(name) else None
