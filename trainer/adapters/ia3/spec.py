"""What an (IA)^3 looks like before it exists. Keys and shapes are those of lycoris-lora 4.1.3. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.files import Shape
from trainer.adapters.rates import LORAPLUS
from trainer.targets import Target

if TYPE_CHECKING:
    from trainer.adapters.ia3.layer import Ia3Layer

WEIGHT, ON_INPUT = "weight", "on_input"


@dataclass(frozen=True)
class Ia3Spec(AdapterSpec):
    """W' = W (1 + weight), along the outputs, or along the inputs with `train_on_input`. No rank and no alpha."""

    name: ClassVar[str] = "ia3"
    title: ClassVar[str] = "an (IA)^3"
    algorithm: ClassVar[str] = "ia3"
    without: ClassVar[frozenset[str]] = frozenset({"network_dropout", "rank_dropout", "scale_weight_norms", *LORAPLUS})

    train_on_input: bool = False

    def entries(self, target: Target) -> dict[str, Shape]:
        """Return weight [channels], of a convolution [1, channels, 1, 1], and a number that says which channels."""
        if self.given is not None:
            return dict(self.given[self._given_name(target)].entries)
        channels = target.in_features if self.train_on_input else target.out_features
        return {WEIGHT: (channels,) if target.kernel is None else (1, channels, 1, 1), ON_INPUT: ()}

    @property
    def notices(self) -> tuple[str, ...]:
        """Which programs read the file: hardly any."""
        return ("network_type ia3: neither ComfyUI nor diffusers reads an (IA)^3; its file is for LyCORIS alone.",)

    def arguments(self) -> dict[str, str]:
        """Return `network_args` as LyCORIS takes them."""
        own = {"train_on_input": "True"} if self.train_on_input else {}
        return {**super().arguments(), **own}

    @classmethod
    def recognises(cls, entries: Collection[str]) -> bool:
        """Say whether a module is a weight that says which channels it is for."""
        return set(entries) == {WEIGHT, ON_INPUT}

    @classmethod
    def rank_of(cls, entries: Mapping[str, Shape]) -> int:
        """Return 0: there is none."""
        if not entries[WEIGHT] or math.prod(entries[WEIGHT]) < 1:
            raise ValueError(f"{list(entries[WEIGHT])} in {WEIGHT}")
        return 0

    @classmethod
    def alpha_of(cls, alpha: float, rank: int) -> float | None:
        """Return None: there is none."""
        return None

    @classmethod
    def width_of(cls, entries: Mapping[str, Shape]) -> tuple[int, int]:
        """Return nothing: the shapes don't say of which channels the weight is."""
        return 0, 0

    @classmethod
    def layer_kind(cls) -> type[Ia3Layer]:
        """Return the arithmetic of one layer. Imports torch."""
        from trainer.adapters.ia3.layer import Ia3Layer

        return Ia3Layer
