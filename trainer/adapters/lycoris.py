"""What kinds of LyCORIS have in common before they exist: DoRA, Tucker's form, a learned number. Torch-free.

Keys, shapes and arguments are those of lycoris-lora 4.1.3.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.files import ALPHA, Shape
from trainer.adapters.rates import LORAPLUS
from trainer.targets import Target

DORA, SCALAR, RATIO = "dora_scale", "use_scalar", "ratio"
"""The entry of DoRA's lengths; the setting, and in states the entry, of the number that D is multiplied by; in states
the number that a limit of the norm has made of it."""


@dataclass(frozen=True)
class LycorisSpec(AdapterSpec):
    """A difference D that is added to weights, made of factors.

    `use_tucker` gives kernels larger than 1 a core of their own, `use_scalar` multiplies D by a number that is learned
    (and is part of a factor in the file), `dora_wd` trains the lengths of the weight's rows apart from their direction,
    or of its columns where `wd_on_output` is false.
    """

    cores: ClassVar[tuple[str, ...]] = ()
    """Entries of Tucker's form."""

    without: ClassVar[frozenset[str]] = frozenset({"network_dropout", *LORAPLUS})
    shrinks_by_number: ClassVar[bool] = True
    """Whether a limit of the norm is a number that D is multiplied by; else it is part of each factor."""

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

    @classmethod
    def title_of(cls, modules: Collection[Collection[str]]) -> str:
        """Return what a file is, with DoRA where a module has lengths."""
        return f"{cls.title} with DoRA" if any(DORA in entries for entries in modules) else cls.title

    @classmethod
    def option_for(cls, entry: str, shape: Shape) -> str:
        """Return which settings make an entry of DoRA or of Tucker's form."""
        if entry == DORA:
            return f"Set dora_wd = true and wd_on_output = {'false' if shape[0] == 1 else 'true'}"
        return "Set use_tucker = true" if entry in cls.cores else ""

    @classmethod
    def rests_on_weight(cls, entries: Collection[str]) -> bool:
        """Say whether it has DoRA's lengths."""
        return DORA in entries

    def tucker(self, target: Target) -> bool:
        """Say whether a layer has Tucker's form."""
        return self.use_tucker and target.kernel not in (None, (1, 1))

    @property
    def notices(self) -> tuple[str, ...]:
        """Which programs read the file otherwise than it was trained: measured on files of each form."""
        if not self.dora_wd:
            return ()
        if self.wd_on_output:
            return (
                "dora_wd with wd_on_output: ComfyUI shows 7 to 22 % of the effect otherwise than it was trained, and "
                "diffusers leaves the lengths out; wd_on_output = false is read exactly by ComfyUI.",
            )
        return (
            "dora_wd without wd_on_output: ComfyUI reads it exactly, diffusers leaves the lengths out, and the loader "
            "of LyCORIS refuses it.",
        )

    def state_shapes(self, targets: Sequence[Target]) -> dict[str, Shape]:
        """Return key -> shape of a state, which has the learned number too."""
        entry = SCALAR if self.use_scalar else RATIO if self.scale_weight_norms and self.shrinks_by_number else ""
        numbers = {f"{target.name}.{entry}": () for target in self.select(targets) if entry}
        return {**self.shapes(targets), **numbers}

    def arguments(self) -> dict[str, str]:
        """Return `network_args` as LyCORIS takes them."""
        flags = [name for name in ("rs_lora", "use_tucker", "use_scalar", "dora_wd") if getattr(self, name)]
        axis = {"wd_on_output": str(self.wd_on_output)} if self.dora_wd else {}
        return {**super().arguments(), **dict.fromkeys(flags, "True"), **axis}


def without_lengths(entries: Collection[str]) -> set[str]:
    """Return a module's entries but for DoRA's."""
    return set(entries) - {DORA}
