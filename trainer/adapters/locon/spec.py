"""What a LoCon looks like before it exists. Keys and shapes are those of lycoris-lora 4.1.3. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.files import Shape
from trainer.adapters.lycoris import DORA, LycorisSpec, without_lengths
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.adapters.locon.layer import LoconLayer

DOWN, CORE, UP = "lora_down.weight", "lora_mid.weight", "lora_up.weight"


@dataclass(frozen=True)
class LoconSpec(LycorisSpec):
    """D = s up down, or with a core between them."""

    name: ClassVar[str] = "locon"
    title: ClassVar[str] = "a LoCon"
    algorithm: ClassVar[str] = "locon"
    readable: ClassVar[tuple[str, ...]] = ("lora",)
    cores: ClassVar[tuple[str, ...]] = (CORE,)
    without: ClassVar[frozenset[str]] = frozenset({"network_dropout"})

    def factors(self, target: Target) -> dict[str, Shape]:
        """Return down [rank, in(, kh, kw)] and up [out, rank(, 1, 1)]; with a core [rank, rank, kh, kw] down is 1x1."""
        rank, kernel = self.rank(target), target.kernel or ()
        point = (1,) * len(kernel)
        up = (target.out_features, rank, *point)
        if self.tucker(target):
            return {DOWN: (rank, target.in_features, *point), CORE: (rank, rank, *kernel), UP: up}
        return {DOWN: (rank, target.in_features, *kernel), UP: up}

    @classmethod
    def title_of(cls, modules: Collection[Collection[str]]) -> str:
        """Return what a file is: with lengths and no core it is what people call a DoRA."""
        plain = not any(CORE in entries for entries in modules)
        return "a DoRA" if plain and any(DORA in entries for entries in modules) else super().title_of(modules)

    @classmethod
    def recognises(cls, entries: Collection[str]) -> bool:
        """Say whether a module has a LoRA's factors, a core and DoRA's lengths at most."""
        return DOWN in entries and {DOWN, CORE, UP}.issuperset(without_lengths(entries))

    @classmethod
    def rank_of(cls, entries: Mapping[str, Shape]) -> int:
        """Return the first size of down, which is the second of up."""
        down, up, core = entries[DOWN], entries.get(UP, ()), entries.get(CORE)
        rank = down[0] if len(down) > 1 else 0
        if rank < 1 or len(up) < 2 or up[1] != rank or (core is not None and tuple(core[:2]) != (rank, rank)):
            raise ValueError(f"rank {rank} in {DOWN} and {list(up)} in {UP}")
        return rank

    @classmethod
    def width_of(cls, entries: Mapping[str, Shape]) -> tuple[int, int]:
        """Return the inputs and outputs of a module in a file."""
        return math.prod(entries[DOWN][1:]) * math.prod(entries.get(CORE, ())[2:]), entries[UP][0]

    @classmethod
    def layer_kind(cls) -> type[LoconLayer]:
        """Return the arithmetic of one layer. Imports torch."""
        from trainer.adapters.locon.layer import LoconLayer

        return LoconLayer
