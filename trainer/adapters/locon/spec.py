"""What a LoCon looks like before it exists. Keys and shapes are those of lycoris-lora 4.1.3. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.adapter import Adapter
from trainer.adapters.files import Shape
from trainer.adapters.lycoris import LycorisSpec, without_lengths
from trainer.targets import Target

if TYPE_CHECKING:
    import torch

DOWN, CORE, UP = "lora_down.weight", "lora_mid.weight", "lora_up.weight"


@dataclass(frozen=True)
class LoconSpec(LycorisSpec):
    """D = s up down, or with a core between them."""

    name: ClassVar[str] = "locon"
    title: ClassVar[str] = "a LoCon"
    algorithm: ClassVar[str] = "locon"
    readable: ClassVar[tuple[str, ...]] = ("lora",)

    def factors(self, target: Target) -> dict[str, Shape]:
        """Return down [rank, in(, kh, kw)] and up [out, rank(, 1, 1)]; with a core [rank, rank, kh, kw] down is 1x1."""
        rank, kernel = self.rank(target), target.kernel or ()
        point = (1,) * len(kernel)
        up = (target.out_features, rank, *point)
        if self.tucker(target):
            return {DOWN: (rank, target.in_features, *point), CORE: (rank, rank, *kernel), UP: up}
        return {DOWN: (rank, target.in_features, *kernel), UP: up}

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

    def build(
        self,
        components: Mapping[str, torch.nn.Module],
        targets: Sequence[Target],
        *,
        seed: int,
        dtype: torch.dtype | None = None,
    ) -> Adapter:
        """Inject this LoCon into the loaded `components` and return it, float32 unless said. Imports torch and PEFT."""
        import torch

        from trainer.adapters.layer import inject
        from trainer.adapters.locon.layer import LoconLayer

        return inject(LoconLayer, components, targets, self, seed=seed, dtype=dtype or torch.float32)
