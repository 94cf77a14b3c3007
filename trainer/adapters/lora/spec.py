"""What a LoRA looks like before it exists: its keys, shapes and how its files are told. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.files import ALPHA, Shape
from trainer.targets import Target

if TYPE_CHECKING:
    import torch

    from trainer.adapters.locon.layer import LoconLayer
    from trainer.adapters.lora.adapter import LoraAdapter

DOWN, UP = "lora_down.weight", "lora_up.weight"


@dataclass(frozen=True)
class LoraSpec(AdapterSpec):
    """A LoRA as kohya's `networks.lora` makes it (LoRA-C3Lier where there is a `conv_dim`).

    `init_lora_weights` is how it starts: from nothing, or from parts of the weights ("pissa", "olora"). With
    `split_qkv` layers that are several ones (query, key, value) have two matrices for each of these, of `rank`; the
    file has them as one LoRA of as many times the rank.
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "a LoRA"
    network_module: ClassVar[str] = "networks.lora"

    init_lora_weights: str = ""
    split_qkv: bool = False

    def pieces(self, target: Target) -> int:
        """Return how many layers a layer is trained as."""
        return len(target.parts) if self.split_qkv and target.parts else 1

    def rank(self, target: Target) -> int:
        """Return the rank of the matrices on `target`, those of one piece where it is trained as several."""
        rank = super().rank(target)
        return rank // self.pieces(target) if self.dynamic else rank

    def alpha(self, target: Target) -> float:
        """Return the alpha that goes with `rank`."""
        alpha = super().alpha(target)
        return alpha / self.pieces(target) if self.dynamic else alpha

    def in_file(self, target: Target) -> tuple[int, float]:
        """Return rank and alpha of a layer in a file: those of all its pieces together."""
        return self.rank(target) * self.pieces(target), self.alpha(target) * self.pieces(target)

    def module_for(self, plain: str) -> str:
        """Return the module of the model's family."""
        return plain

    def entries(self, target: Target) -> dict[str, Shape]:
        """Return alpha, down [rank, in] and up [out, rank]; with the kernel where there is one.

        With a start of its own the rank is twice that: the file has the matrices as they were at the start too.
        """
        rank = self.in_file(target)[0] * self.copies
        down, up = (rank, target.in_features), (target.out_features, rank)
        if target.kernel is None:
            return {ALPHA: (), DOWN: down, UP: up}
        return {ALPHA: (), DOWN: (*down, *target.kernel), UP: (*up, 1, 1)}

    @property
    def copies(self) -> int:
        """Two with a start of its own: the file has the matrices of then too."""
        return 2 if self.init_lora_weights else 1

    def state_shapes(self, targets: Sequence[Target]) -> dict[str, Shape]:
        """Return key -> shape of a state, which has only what is trained."""
        shapes = replace(self, init_lora_weights="").shapes(targets)
        for target in self.select(targets) if self.split_qkv else ():
            if self.pieces(target) > 1:
                shapes[f"{target.name}.{UP}"] = (target.out_features, self.rank(target))
        return shapes

    @property
    def notices(self) -> tuple[str, ...]:
        """What a start of its own makes of the file."""
        if not self.init_lora_weights:
            return ()
        return (
            f"init_lora_weights {self.init_lora_weights}: the file has rank {2 * self.network_dim} and alpha "
            f"{2 * self.network_alpha:g}, twice what is trained, so that every program reads it as a LoRA of the "
            "original model.",
        )

    @classmethod
    def recognises(cls, entries: Collection[str]) -> bool:
        """Say whether a module has `lora_down.weight` and nothing that a LoRA has not."""
        return DOWN in entries and {DOWN, UP}.issuperset(entries)

    @classmethod
    def rests_on_weight(cls, entries: Collection[str]) -> bool:
        """Say no: it adds the product of its matrices."""
        return False

    @classmethod
    def rank_of(cls, entries: Mapping[str, Shape]) -> int:
        """Return the first size of down, which is the second of up."""
        down, up = entries[DOWN], entries.get(UP, ())
        rank = down[0] if len(down) > 1 else 0
        if rank < 1 or len(up) < 2 or up[1] != rank:
            raise ValueError(f"rank {rank} in {DOWN} and {list(up)} in {UP}")
        return rank

    @classmethod
    def width_of(cls, entries: Mapping[str, Shape]) -> tuple[int, int]:
        """Return the inputs and outputs of a module in a file."""
        return math.prod(entries[DOWN][1:]), entries[UP][0]

    @classmethod
    def layer_kind(cls) -> type[LoconLayer]:
        """Return the arithmetic of one layer, as far as a file's numbers go. Imports torch."""
        from trainer.adapters.locon.layer import LoconLayer

        return LoconLayer

    def build(
        self,
        components: Mapping[str, torch.nn.Module],
        targets: Sequence[Target],
        *,
        seed: int,
        dtype: torch.dtype | None = None,
    ) -> LoraAdapter:
        """Inject this LoRA into the loaded `components` and return it, float32 unless said. Imports torch and PEFT."""
        import torch

        from trainer.adapters.lora.adapter import LoraAdapter

        return LoraAdapter.inject(components, targets, self, seed=seed, dtype=dtype or torch.float32)
