"""Which rate each matrix of an adapter learns at: its part's, times what its block and LoRA+ say, or one of its own.

Torch-free. Numbers and names are those of sd-scripts' `networks/lora.py`; rates by name are as in its
`networks/lora_flux.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from trainer.adapters.blocks import Layout, block_index, layout_of
from trainer.targets import Target

LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
PLUS = "lora_up.weight"
"""The entry whose rate LoRA+ raises (Hayou et al. 2024)."""

_TEXT = "lora_te"
"""What kohya's names of the layers of text encoders begin with."""

SHAPES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda place: math.sin(math.pi * (1 - place) / 2),
    "sine": lambda place: math.sin(math.pi * place / 2),
    "linear": lambda place: place,
    "reverse_linear": lambda place: 1 - place,
    "zeros": lambda place: 0.0,
}
"""Courses of block weights over the way down, or up: place from 0 to 1 -> weight."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What some matrices learn at: their part's rate times `factor`, or `own`. `name` is their group's."""

    name: str
    part: str
    factor: float = 1.0
    own: float | None = None

    def of(self, rates: Mapping[str, float]) -> float:
        """Return the rate, given that of each part."""
        return (rates[self.part] if self.own is None else self.own) * self.factor


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The settings that give matrices other rates than their part's."""

    loraplus_lr_ratio: float | None = None
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None
    down_lr_weight: str = ""
    mid_lr_weight: str = ""
    up_lr_weight: str = ""
    block_lr_zero_threshold: float = 0.0
    network_reg_lrs: tuple[str, ...] = ()

    def rate(self, target: Target, entry: str) -> Rate:
        """Return what a layer's matrix learns at."""
        factor = self.weight(target)
        ratio = self._ratio(target) if entry == PLUS else None
        plus = "" if ratio is None else " plus"
        for number, (pattern, own) in enumerate(map(parted, self.network_reg_lrs)):
            if re.search(pattern, target.name):
                return Rate(f"{target.component}_reg_lr_{number}{plus}", target.component, ratio or 1.0, own)
        index = block_index(target.name) if self.by_block else None
        block = "" if index is None else f"_block{index}"
        return Rate(f"{target.component}{block}{plus}", target.component, factor * (ratio or 1.0))

    def weight(self, target: Target) -> float:
        """Return what a layer's block makes of its rate; 0 leaves it out, as does a rate of its own of 0."""
        for pattern, own in map(parted, self.network_reg_lrs):
            if re.search(pattern, target.name):
                return 1.0 if own else 0.0
        index = block_index(target.name) if self.by_block else None
        layout = layout_of(target.name)
        if index is None or layout is None:
            return 1.0
        return self.block_weights(layout)[index]

    @property
    def by_block(self) -> bool:
        """Whether blocks have rates of their own."""
        return bool(self.down_lr_weight or self.mid_lr_weight or self.up_lr_weight)

    def block_weights(self, layout: Layout) -> tuple[float, ...]:
        """Return the weight of each block of a model."""
        return _block_weights(
            layout, self.down_lr_weight, self.mid_lr_weight, self.up_lr_weight, self.block_lr_zero_threshold
        )

    def _ratio(self, target: Target) -> float | None:
        """Return LoRA+'s ratio for a layer, None where it has none."""
        text = target.name.startswith(_TEXT)
        own = self.loraplus_text_encoder_lr_ratio if text else self.loraplus_unet_lr_ratio
        return own or self.loraplus_lr_ratio


def parted(text: str) -> tuple[str, float]:
    """Return the expression and the number of "expression=number"."""
    pattern, _, number = text.rpartition("=")
    return pattern, float(number)


@cache
def _block_weights(layout: Layout, down: str, mid: str, up: str, threshold: float) -> tuple[float, ...]:
    ends = (1.0,) * layout.ends
    parts = [_weights(text, count) for text, count in ((down, layout.side), (mid, layout.middle), (up, layout.side))]
    kept = [weight if weight > threshold or not text else 0.0 for text, part in zip((down, mid, up), parts, strict=True)
            for weight in part]  # fmt: skip
    return (*ends, *kept, *ends)


def _weights(text: str, count: int) -> tuple[float, ...]:
    """Return the weights of one side or of the middle: numbers, of which missing ones are 1, or a course's."""
    name, _, base = text.partition("+")
    if name in SHAPES:
        return tuple(SHAPES[name](place / (count - 1)) + float(base or 0) for place in range(count))
    numbers = [float(part or 0) for part in text.split(",")] if text else []
    return tuple((*numbers, *(1.0,) * count)[:count])


def count_problem(key: str, text: str, count: int) -> str:
    """Return a notice where a list of weights is not as long as the blocks are many, else ""."""
    given = text.count(",") + 1
    if not text or text.partition("+")[0] in SHAPES or given == count:
        return ""
    rest = f"the last {given - count} are not used" if given > count else f"the last {count - given} get 1"
    return f"{key} has {given} numbers for {count} blocks: {rest}."


def distinct(rates: Iterable[Rate]) -> tuple[Rate, ...]:
    """Return each rate once, in order."""
    return tuple(dict.fromkeys(rates))
