"""What a LoKr looks like before it exists. Keys and shapes are those of lycoris-lora 4.1.3. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.factorization import factorization
from trainer.adapters.files import Shape
from trainer.adapters.lycoris import LycorisSpec, without_lengths
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.adapters.lokr.layer import LokrLayer

SMALL, SMALL_UP, SMALL_DOWN = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
LARGE, LARGE_UP, LARGE_DOWN, CORE = "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"
ALL = frozenset({SMALL, SMALL_UP, SMALL_DOWN, LARGE, LARGE_UP, LARGE_DOWN, CORE})


@dataclass(frozen=True)
class LokrSpec(LycorisSpec):
    """D = s kron(w1, w2): w1 [a, c] is small, w2 [b, d(, kh, kw)] large, out = a b, in = c d.

    `factor` is what the channels are divided by (-1: as squarely as can be). w2 is a product of two matrices where that
    is smaller, w1 too with `decompose_both`, neither with `full_matrix`. With both whole there is no rank and the scale
    is 1, as LyCORIS has it.
    """

    name: ClassVar[str] = "lokr"
    title: ClassVar[str] = "a LoKr"
    algorithm: ClassVar[str] = "lokr"
    cores: ClassVar[tuple[str, ...]] = (CORE,)
    shrinks_by_number: ClassVar[bool] = False

    factor: int = -1
    decompose_both: bool = False
    full_matrix: bool = False
    unbalanced_factorization: bool = False

    def factors(self, target: Target) -> dict[str, Shape]:
        """Return w1 or its two matrices, and w2 or its two matrices (with a core, turned round)."""
        rank, kernel = self.rank(target), target.kernel or ()
        outs, (c, d) = factorization(target.out_features, self.factor), factorization(target.in_features, self.factor)
        a, b = reversed(outs) if self.unbalanced_factorization else outs
        found: dict[str, Shape] = {SMALL: (a, c)}
        if self.decompose_both and rank < max(a, c) / 2 and not self.full_matrix:
            found = {SMALL_UP: (a, rank), SMALL_DOWN: (rank, c)}
        if rank >= max(b, d) / 2 or self.full_matrix:
            return {**found, LARGE: (b, d, *kernel)}
        if self.tucker(target):
            return {**found, CORE: (rank, rank, *kernel), LARGE_UP: (rank, b), LARGE_DOWN: (rank, d)}
        return {**found, LARGE_UP: (b, rank), LARGE_DOWN: (rank, d * math.prod(kernel))}

    def whole(self, target: Target) -> bool:
        """Say whether neither matrix on a layer is a product."""
        return {SMALL, LARGE} <= self.entries(target).keys()

    def alpha(self, target: Target) -> float:
        """Return alpha as written to the file; with both matrices whole it is the rank, as LyCORIS writes."""
        if self.given is not None or not self.whole(target):
            return super().alpha(target)
        rank = float(self.rank(target))
        return rank * math.sqrt(rank) if self.rs_lora else rank

    def scale(self, target: Target) -> float:
        """Return alpha / rank; with both matrices of a file whole it is 1, whatever its alpha."""
        return 1.0 if self.given is not None and self.whole(target) else super().scale(target)

    @property
    def notices(self) -> tuple[str, ...]:
        """Which programs read the file otherwise than it was trained."""
        found = super().notices
        if self.use_tucker and self.conv_dim is not None:
            found += ("use_tucker: ComfyUI does not apply such convolutions of a LoKr, LyCORIS does not load them.",)
        if self.unbalanced_factorization:
            found += ("unbalanced_factorization: ComfyUI reads it exactly, LyCORIS' own loader does not read it.",)
        return found

    def arguments(self) -> dict[str, str]:
        """Return `network_args` as LyCORIS takes them. It reads any text for decompose_both as yes."""
        flags = ("decompose_both", "full_matrix", "unbalanced_factorization")
        own = {name: "True" for name in flags if getattr(self, name)}
        return {**super().arguments(), "factor": str(self.factor), **own}

    @classmethod
    def option_for(cls, entry: str, shape: Shape) -> str:
        """Return which settings make an entry; factor makes the shapes of all."""
        if entry in (SMALL_UP, SMALL_DOWN):
            return "Set decompose_both = true, and factor and network_dim as for the file"
        if entry == LARGE:
            return "Set full_matrix = true, and factor as for the file"
        return super().option_for(entry, shape)

    @classmethod
    def recognises(cls, entries: Collection[str]) -> bool:
        """Say whether a module has a LoKr's factors and nothing else."""
        return not {SMALL, SMALL_UP}.isdisjoint(entries) and ALL.issuperset(without_lengths(entries))

    @classmethod
    def rank_of(cls, entries: Mapping[str, Shape]) -> int:
        """Return the rank of the factored matrices, 0 where both are whole."""
        halves = [(SMALL, SMALL_UP, SMALL_DOWN), (LARGE, LARGE_UP, LARGE_DOWN)]
        for whole, *parts in halves:
            wanted = [whole] if whole in entries else parts
            if missing := [entry for entry in wanted if len(entries.get(entry, ())) < 2]:
                raise ValueError(f"no matrix {missing[0]}")
        ranks = {entries[down][0] for _, _, down in halves if down in entries}
        ranks |= {entries[up][0 if up == LARGE_UP and CORE in entries else 1] for _, up, _ in halves if up in entries}
        if len(ranks) > 1:
            raise ValueError(f"factors of ranks {sorted(ranks)}")
        return ranks.pop() if ranks else 0

    @classmethod
    def width_of(cls, entries: Mapping[str, Shape]) -> tuple[int, int]:
        """Return the inputs and outputs of a module in a file."""
        small = entries[SMALL] if SMALL in entries else (entries[SMALL_UP][0], entries[SMALL_DOWN][1])
        if LARGE in entries:
            large = (entries[LARGE][0], math.prod(entries[LARGE][1:]))
        elif CORE in entries:
            large = (entries[LARGE_UP][1], entries[LARGE_DOWN][1] * math.prod(entries[CORE][2:]))
        else:
            large = (entries[LARGE_UP][0], entries[LARGE_DOWN][1])
        return small[1] * large[1], small[0] * large[0]

    @classmethod
    def layer_kind(cls) -> type[LokrLayer]:
        """Return the arithmetic of one layer. Imports torch."""
        from trainer.adapters.lokr.layer import LokrLayer

        return LokrLayer
