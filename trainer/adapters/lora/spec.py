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

    `init_lora_weights` is how it starts: from nothing, or from parts of the weights ("pissa", "olora").
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "a LoRA"
    network_module: ClassVar[str] = "networks.lora"

    init_lora_weights: str = ""

    def module_for(self, plain: str) -> str:
        """Return the module of the model's family."""
        return plain

    def entries(self, target: Target) -> dict[str, Shape]:
        """Return alpha, down [rank, in] and up [out, rank]; with the kernel where there is one.

        With a start of its own the rank is twice that: the file has the matrices as they were at the start too.
        """
        rank = self.rank(target) * self.copies
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
        return replace(self, init_lora_weights="").shapes(targets)

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
