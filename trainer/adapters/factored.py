"""A kind with arithmetic of its own in a loaded model: its layers, their factors as a file has them, and stacks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.files import ALPHA
from trainer.adapters.injection import AdaptedModule, InjectedAdapter, prepare, wrap
from trainer.adapters.joined import FactorStack
from trainer.adapters.layer import AdaptedLayer
from trainer.adapters.lycoris import DORA, RATIO, SCALAR
from trainer.ground.randomness import stream
from trainer.targets import Target


@dataclass(frozen=True, slots=True)
class FactoredModule(AdaptedModule):
    """An adapted layer whose factors are what the file has."""

    @property
    def matrices(self) -> Mapping[str, nn.Parameter]:
        """The factors, by entry."""
        factors: Mapping[str, nn.Parameter] = self.layer.factors
        return factors

    @property
    def strength(self) -> float:
        """What the effect is multiplied by."""
        return float(self.layer.strength)

    def set_strength(self, value: float) -> None:
        """Set what the effect is multiplied by."""
        self.layer.strength = value

    def values(self) -> Mapping[str, Tensor]:
        """Return the factors as the file has them: what has no entry of its own is in one that it multiplies."""
        values = dict(super(FactoredModule, self).values())
        number = values.pop(SCALAR, None)
        if number is not None:
            values[self._folded] = values[self._folded] * number
        if self._ratio is not None:
            values[self._folded] = values[self._folded] * self._ratio
        if self.layer.constant != 1.0:
            values[self._folded] = values[self._folded] * self.layer.constant
        return values | {entry: torch.tensor(value) for entry, value in self.layer.constants().items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the factors that `tensors`, which are a file's, has."""
        self._copy(tensors)
        if self.layer.scalar:
            self.matrices[SCALAR].fill_(1.0)
        if self._ratio is not None:
            self._ratio.fill_(1.0)
        if self.layer.constant != 1.0 and f"{self.target.name}.{self._folded}" in tensors:
            self.matrices[self._folded].div_(self.layer.constant)
        there = {entry: f"{self.target.name}.{entry}" in tensors for entry in self.shapes if entry != ALPHA}
        if any(there.values()) and not there.get(DORA, True):
            self.layer.take_lengths()

    def state(self) -> dict[str, Tensor]:
        """Return the factors as they are, and the learned number."""
        raw = {f"{self.target.name}.{entry}": factor.detach() for entry, factor in self.matrices.items()}
        ratio = {} if self._ratio is None else {f"{self.target.name}.{RATIO}": self._ratio}
        return {**self.tensors(), **raw, **ratio}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state` returned."""
        self._copy(state)
        if self._ratio is not None:
            self._ratio.copy_(state[f"{self.target.name}.{RATIO}"])

    def limit_norm(self, most: float) -> None:
        """Scale what the layer does down to a norm of at most `most`."""
        self.layer.limit_norm(most)

    @property
    def _ratio(self) -> Tensor | None:
        """The number that a limit of the norm has made of D's scale."""
        return getattr(self.layer, RATIO, None)

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        super(FactoredModule, self).load(tensors)
        keys = {entry: f"{self.target.name}.{entry}" for entry in self.layer.constants()}
        self.layer.take({entry: float(tensors[key]) for entry, key in keys.items() if key in tensors})

    @property
    def _folded(self) -> str:
        return next(entry for entry in self.layer.folded if entry in self.shapes)


class FactoredAdapter(InjectedAdapter[FactoredModule]):
    """An adapter of a kind with arithmetic of its own. Factors of layers of one shape can be one parameter."""

    def __init__(self, modules: Sequence[FactoredModule], spec: AdapterSpec) -> None:
        super().__init__(modules, spec)
        self.stacks: list[FactorStack] = []

    def stack(self) -> None:
        """Let the factors of layers of one shape be one parameter.

        Not with `module_dropout`: a layer that took no part in a step has no gradient then, and an optimizer leaves it.
        """
        if self.dropouts and self.dropouts.module:
            return
        alike: dict[Hashable, list[AdaptedLayer]] = {}
        for module in self.trained():
            alike.setdefault(self._likeness(module), []).append(module.layer)
        self.stacks = [FactorStack(layers) for layers in alike.values()]

    def _likeness(self, module: FactoredModule) -> Hashable:
        """Return what layers of one stack have in common."""
        target, layer = module.target, module.layer
        factors = [
            (entry, each.shape, each.dtype, self.spec.rate(target, entry)) for entry, each in module.matrices.items()
        ]
        base = type(layer.base_layer), layer.base_layer.weight.dtype
        sizes = target.out_features, target.in_features, target.kernel
        return target.component, base, sizes, module.alpha, layer.scale, tuple(factors)

    @property
    def stacked(self) -> bool:
        """Whether factors of layers of one shape are one parameter."""
        return bool(self.stacks)

    def place(self, module: FactoredModule, entry: str) -> tuple[nn.Parameter, int | None]:
        """Return the parameter that a factor is, or the one that it is stacked in, and its place there."""
        stack = module.layer.stack
        if stack is None or entry not in stack.parameters:
            return super().place(module, entry)
        return stack.parameters[entry], module.layer.index

    def load(self, tensors: Mapping[str, Tensor], *, strict: bool = True, source: str = "The LoRA") -> tuple[str, ...]:
        """Copy the tensors of a file; see `InjectedAdapter.load`."""
        notices = super().load(tensors, strict=strict, source=source)
        self._forget()
        return notices

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state` returned; see `InjectedAdapter.restore`."""
        super().restore(state)
        self._forget()

    def limit_norms(self, most: float) -> None:
        """Scale what layers add to their weights down to a norm of at most `most`."""
        super().limit_norms(most)
        self._forget()

    def to(self, device: torch.device) -> None:
        """Follow the parts to another device; parameters keep their identity."""
        for each in self.stacks:
            each.to(device)

    def _forget(self) -> None:
        for each in self.stacks:
            each.forget()


def inject(
    kind: type[AdaptedLayer],
    components: Mapping[str, nn.Module],
    targets: Sequence[Target],
    spec: AdapterSpec,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> FactoredAdapter:
    """Freeze `components` and put layers of `kind` in the place of those of `targets` that `spec` selects.

    Factors are `dtype` whatever the dtype of the base. Their start is drawn on the CPU as a function of the seed and
    the module's name, so it is the same on every device and whatever else is trained.

    Raises ModelError if a target is missing from its component or has another shape there.
    """
    selected = prepare(components, targets, spec)
    for name in dict.fromkeys(target.component for target in selected):
        here = [target for target in selected if target.component == name]
        by_layer = {id(components[name].get_submodule(target.path)): target for target in here}

        def make(base: nn.Module, *_: object, by_layer: Mapping[int, Target] = by_layer, **__: object) -> nn.Module:
            return kind(base, spec, by_layer[id(base)])

        makers: dict[type[nn.Module], Any] = dict.fromkeys((nn.Linear, nn.Conv2d), make)
        wrap(components[name], makers, {target.path: 1 for target in here})
    modules = []
    for target in selected:
        layer = components[target.component].get_submodule(target.path)
        assert isinstance(layer, kind), f"PEFT left {target.path} as it was"
        _initialise(layer, target, seed, dtype)
        modules.append(FactoredModule(target, layer, spec.rank(target), spec.alpha(target), spec.entries(target)))
    return FactoredAdapter(modules, spec)


def _initialise(layer: AdaptedLayer, target: Target, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(stream(seed, 0, 0, target.name))
    device = cast(Tensor, layer.base_layer.weight).device
    for entry, factor in layer.factors.items():
        start = torch.zeros(factor.shape)
        with torch.no_grad():
            layer.start(entry, start, generator)
        layer.replace(entry, start.to(device, dtype))
