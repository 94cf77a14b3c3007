"""What an OFT looks like before it exists. Keys and shapes are those of lycoris-lora 4.1.3's diag-oft. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.factorization import factorization
from trainer.adapters.files import ALPHA, Shape
from trainer.adapters.rates import LORAPLUS
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.adapters.oft.layer import OftLayer

BLOCKS, RESCALE = "oft_blocks", "rescale"


@dataclass(frozen=True)
class OftSpec(AdapterSpec):
    """W' = R^T W with R = (I + Q)(I - Q)^-1 in blocks, Q = B - B^T.

    The rank is the block's side as it is asked for; it becomes a divisor of the outputs. `constraint` limits the norm
    of Q to so much times the outputs, 0 not at all, and is what the file has for an alpha. `rescaled` multiplies the
    outputs by learned numbers too.
    """

    name: ClassVar[str] = "oft"
    title: ClassVar[str] = "an OFT"
    algorithm: ClassVar[str] = "diag-oft"
    without: ClassVar[frozenset[str]] = frozenset({"network_dropout", *LORAPLUS})
    alpha_keys: ClassVar[tuple[str, str]] = ("constraint", "constraint")

    constraint: float = 0.0
    rescaled: bool = False

    def rank(self, target: Target) -> int:
        """Return the side of the blocks."""
        return super().rank(target) if self.given else factorization(target.out_features, self._dim(target))[0]

    def alpha(self, target: Target) -> float:
        """Return the constraint."""
        return self.constraint if self.given is None else self.given[self._given_name(target)].alpha or 0.0

    def entries(self, target: Target) -> dict[str, Shape]:
        """Return the constraint, the blocks [count, side, side], and the multipliers [out, 1(, 1, 1)]."""
        if self.given is not None:
            return {ALPHA: (), **self.given[self._given_name(target)].entries}
        side = self.rank(target)
        ones = (1,) * (1 + len(target.kernel or ()))
        own = {RESCALE: (target.out_features, *ones)} if self.rescaled else {}
        return {ALPHA: (), BLOCKS: (target.out_features // side, side, side), **own}

    @property
    def notices(self) -> tuple[str, ...]:
        """Which programs read the file otherwise than it was trained."""
        found: tuple[str, ...] = (
            "network_type oft: at half strength ComfyUI shows a quarter of an OFT; at full strength it is exact.",
        )
        if self.constraint:
            found += ("constraint: ComfyUI takes it for another limit and loses nearly all of the effect; 0 is exact.",)
        if self.rescaled:
            found += ("rescaled: ComfyUI leaves the multipliers out, about an eighth of the effect.",)
        return found

    def arguments(self) -> dict[str, str]:
        """Return `network_args` as LyCORIS takes them."""
        own = {"constraint": f"{self.constraint:g}"} if self.constraint else {}
        own |= {"rescaled": "True"} if self.rescaled else {}
        return {**super().arguments(), **own}

    @classmethod
    def option_for(cls, entry: str, shape: Shape) -> str:
        """Return which setting makes multipliers."""
        return "Set rescaled = true" if entry == RESCALE else ""

    @classmethod
    def recognises(cls, entries: Collection[str]) -> bool:
        """Say whether a module has blocks and multipliers at most."""
        return BLOCKS in entries and {BLOCKS, RESCALE}.issuperset(entries)

    @classmethod
    def rank_of(cls, entries: Mapping[str, Shape]) -> int:
        """Return the side of the blocks."""
        shape = entries[BLOCKS]
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 1:
            raise ValueError(f"{list(shape)} in {BLOCKS}, which is no row of square blocks")
        return shape[1]

    @classmethod
    def alpha_of(cls, alpha: float, rank: int) -> float | None:
        """Return the constraint; 0 means none."""
        return alpha

    @classmethod
    def width_of(cls, entries: Mapping[str, Shape]) -> tuple[int, int]:
        """Return the outputs; the inputs are not said."""
        return 0, entries[BLOCKS][0] * entries[BLOCKS][1]

    @classmethod
    def layer_kind(cls) -> type[OftLayer]:
        """Return the arithmetic of one layer. Imports torch."""
        from trainer.adapters.oft.layer import OftLayer

        return OftLayer
