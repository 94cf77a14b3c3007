"""What a LoHa looks like before it exists. Keys and shapes are those of lycoris-lora 4.1.3. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.files import Shape
from trainer.adapters.lycoris import LycorisSpec, without_lengths
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.adapters.loha.layer import LohaLayer

LEFT_UP, LEFT_DOWN, LEFT_CORE = "hada_w1_a", "hada_w1_b", "hada_t1"
RIGHT_UP, RIGHT_DOWN, RIGHT_CORE = "hada_w2_a", "hada_w2_b", "hada_t2"
PLAIN = frozenset({LEFT_UP, LEFT_DOWN, RIGHT_UP, RIGHT_DOWN})
TUCKER = PLAIN | {LEFT_CORE, RIGHT_CORE}


@dataclass(frozen=True)
class LohaSpec(LycorisSpec):
    """D = s (w1_a w1_b) * (w2_a w2_b), the product in the middle element by element."""

    name: ClassVar[str] = "loha"
    title: ClassVar[str] = "a LoHa"
    algorithm: ClassVar[str] = "loha"
    cores: ClassVar[tuple[str, ...]] = (LEFT_CORE, RIGHT_CORE)

    def factors(self, target: Target) -> dict[str, Shape]:
        """Return w*_a [out, rank] and w*_b [rank, in * kh * kw]; t*, w*_a [rank, out], w*_b [rank, in] with a core."""
        rank, kernel = self.rank(target), target.kernel or ()
        if self.tucker(target):
            core, up, down = (rank, rank, *kernel), (rank, target.out_features), (rank, target.in_features)
            return {
                LEFT_CORE: core, LEFT_UP: up, LEFT_DOWN: down, RIGHT_CORE: core, RIGHT_UP: up, RIGHT_DOWN: down
            }  # fmt: skip
        up, down = (target.out_features, rank), (rank, target.in_features * math.prod(kernel))
        return {LEFT_UP: up, LEFT_DOWN: down, RIGHT_UP: up, RIGHT_DOWN: down}

    @classmethod
    def recognises(cls, entries: Collection[str]) -> bool:
        """Say whether a module has a LoHa's factors and nothing else."""
        return LEFT_UP in entries and TUCKER.issuperset(without_lengths(entries))

    @classmethod
    def rank_of(cls, entries: Mapping[str, Shape]) -> int:
        """Return the first size of w1_b. Raises ValueError if a factor is missing or does not fit."""
        wanted = TUCKER if LEFT_CORE in entries else PLAIN
        if missing := [entry for entry in sorted(wanted) if len(entries.get(entry, ())) < 2]:
            raise ValueError(f"no matrix {missing[0]}")
        place = 0 if LEFT_CORE in entries else 1
        ranks = {entries[entry][place] for entry in (LEFT_UP, RIGHT_UP)}
        ranks |= {entries[entry][0] for entry in wanted - {LEFT_UP, RIGHT_UP}}
        if len(ranks) > 1 or 0 in ranks:
            raise ValueError(f"factors of ranks {sorted(ranks)}")
        return ranks.pop()

    @classmethod
    def width_of(cls, entries: Mapping[str, Shape]) -> tuple[int, int]:
        """Return the inputs and outputs of a module in a file."""
        core = entries.get(LEFT_CORE)
        if core is None:
            return entries[LEFT_DOWN][1], entries[LEFT_UP][0]
        return entries[LEFT_DOWN][1] * math.prod(core[2:]), entries[LEFT_UP][1]

    @classmethod
    def layer_kind(cls) -> type[LohaLayer]:
        """Return the arithmetic of one layer. Imports torch."""
        from trainer.adapters.loha.layer import LohaLayer

        return LohaLayer
