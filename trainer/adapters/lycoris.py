"""What kinds of LyCORIS have in common before they exist: DoRA, Tucker's form, a learned number. Torch-free.

Keys, shapes and arguments are those of lycoris-lora 4.1.3.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.files import ALPHA, Shape
from trainer.targets import Target

DORA = "dora_scale"


@dataclass(frozen=True)
class LycorisSpec(AdapterSpec):
    """A difference D that is added to weights, made of factors.

    `use_tucker` gives kernels larger than 1 a core of their own, `use_scalar` multiplies D by a number that is learned
    (and is part of a factor in the file), `dora_wd` trains the lengths of the weight's rows apart from their direction,
    or of its columns where `wd_on_output` is false.
    """

    use_tucker: bool = False
    use_scalar: bool = False
    dora_wd: bool = False
    wd_on_output: bool = True

    @abstractmethod
    def factors(self, target: Target) -> dict[str, Shape]:
        """Return the factors of D on a layer, with their shapes, in creation order."""

    def entries(self, target: Target) -> dict[str, Shape]:
        """Return alpha, the factors and DoRA's lengths; of a module that a file gives, what the file has."""
        if self.given is not None:
            return {ALPHA: (), **self.given[self._given_name(target)].entries}
        lengths = {DORA: self._lengths(target)} if self.dora_wd else {}
        return {ALPHA: (), **self.factors(target), **lengths}

    def _lengths(self, target: Target) -> Shape:
        ones = (1,) * len(target.kernel or ())
        return (target.out_features, 1, *ones) if self.wd_on_output else (1, target.in_features, *ones)

    def tucker(self, target: Target) -> bool:
        """Say whether a layer has Tucker's form."""
        return self.use_tucker and target.kernel not in (None, (1, 1))

    def arguments(self) -> dict[str, str]:
        """Return `network_args` as LyCORIS takes them."""
        found = {"conv_dim": str(self.conv_dim or 0), **super().arguments()}
        flags = {"rs_lora": False, "use_tucker": False, "use_scalar": False, "dora_wd": False, "wd_on_output": True}
        return found | {name: str(getattr(self, name)) for name, plain in flags.items() if getattr(self, name) != plain}


def without_lengths(entries: Collection[str]) -> set[str]:
    """Return a module's entries but for DoRA's."""
    return set(entries) - {DORA}
