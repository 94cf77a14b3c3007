"""Layers for kinds with arithmetic of their own: a frozen layer, and what is trained beside it.

An adapted layer computes with W' in place of the frozen weight W. Where W' = W + D, `AdditiveLayer` makes the
difference D of its factors in each pass and again on the way back: between the two only the input and the factors are
kept, not a second copy of the model. In half precision the product with D is made for itself, since what is small in
D would be lost in the sum W + D.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.dropouts import Dropouts
from trainer.adapters.files import ALPHA
from trainer.adapters.injection import AdaptedModule, InjectedAdapter, prepare, ratio_to, wrap
from trainer.adapters.lycoris import DORA, RATIO, SCALAR
from trainer.ground.randomness import stream
from trainer.targets import Target

Pull = Callable[[Tensor], Sequence[Tensor]]
"""The gradient of a weight that factors are part of -> those of the factors."""


class AdaptedLayer(nn.Module):
    """A frozen layer and its factors, which are parameters under the file's entries."""

    folded: ClassVar[tuple[str, ...]] = ()
    """Entries of which the first that is there takes, in the file, what has no entry of its own."""
    fixed: ClassVar[tuple[str, ...]] = (ALPHA,)
    """Entries that are not trained."""
    name: str
    dropouts: Dropouts | None = None

    def __init__(self, base: nn.Module, spec: AdapterSpec, target: Target) -> None:
        super().__init__()
        self.base_layer = base
        self.scale, self.strength = spec.scale(target), 1.0
        self.constant = 1.0
        entries = {entry: shape for entry, shape in spec.entries(target).items() if entry not in self.fixed}
        self._names = {entry: f"factor_{entry.replace('.', '_')}" for entry in entries}
        for entry, shape in entries.items():
            self.register_parameter(self._names[entry], nn.Parameter(torch.zeros(shape)))
        if getattr(spec, SCALAR, False):
            self.register_parameter(SCALAR, nn.Parameter(torch.zeros(())))
            self._names[SCALAR] = SCALAR

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        """What is trained, by the entry of the file."""
        return {entry: getattr(self, name) for entry, name in self._names.items()}

    @property
    def scalar(self) -> bool:
        """Whether D is multiplied by a number that is learned; it is 0 at the start, and no factor is then."""
        return SCALAR in self._names

    @classmethod
    @abstractmethod
    def norm_of(cls, factors: Mapping[str, Tensor], alpha: float, rank: int) -> float:
        """Return how much a module of a file does; see `AdapterSpec.norm_of`. Factors are float32, by entry."""

    def start(self, entry: str, factor: Tensor, generator: torch.Generator) -> None:
        """Give a factor, float32 on the CPU and zero so far, its start value."""

    def constants(self) -> dict[str, float]:
        """Return the entries that are not trained, but for alpha."""
        return {}

    def take(self, constants: Mapping[str, float]) -> None:
        """Take over what a file or a state has of them."""

    def left_out(self) -> bool:
        """Say whether the layer takes no part in the pass under way."""
        dropouts = self.dropouts
        return not self.strength or (dropouts is not None and dropouts.active and dropouts.leaves_out(self.name))

    def limit_norm(self, most: float) -> None:
        """Scale the factors down so that what they do has a norm of at most `most`; nothing where a kind has none."""

    def plain(self, x: Tensor) -> Tensor:
        """Return what the frozen layer makes of `x` without its bias."""
        base = self.base_layer
        if type(base) in (nn.Linear, nn.Conv2d):
            return self.product(x, cast(Tensor, base.weight))
        return cast(Tensor, base(x)) if base.bias is None else cast(Tensor, base(x)) - self.bias()

    @abstractmethod
    def whole(self, strength: float) -> Tensor:
        """Return W' at a strength, float32 in the shape of W."""

    def bias(self) -> Tensor | float:
        """Return the frozen bias, in a shape that adds to the layer's output; 0 where there is none."""
        bias = cast("Tensor | None", self.base_layer.bias)
        if bias is None:
            return 0.0
        return bias[:, None, None] if isinstance(self.base_layer, nn.Conv2d) else bias

    def weight(self) -> Tensor:
        """Return the frozen weight, float32 [out, in(, kh, kw)], also of a layer that stores it in few bits."""
        whole = getattr(self.base_layer, "whole", None)
        weight = self.base_layer.weight if whole is None else whole(torch.float32)
        return cast(Tensor, weight).detach().float()

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """Return the frozen weight's dtype, or the input's where the weight is stored in few bits."""
        dtype = cast(Tensor, self.base_layer.weight).dtype
        return dtype if dtype.is_floating_point else x.dtype

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what the frozen layer's operation makes of `x` with another weight."""
        if isinstance(self.base_layer, nn.Conv2d):
            return self.base_layer._conv_forward(x, weight, bias)
        return F.linear(x, weight, bias)


class AdditiveLayer(AdaptedLayer):
    """y = base(x) with W + D, where D is the kind's function of its factors.

    With a `dora_scale` the directions of W + D are trained apart from their lengths: W' = m (W + D) / |W + D|, the
    norm taken for each output or for each input (DoRA, Liu et al. 2024). The norm has a gradient, as in LyCORIS.
    `scale_weight_norms` scales D by S, or by a number beside it that is not learned, as LyCORIS does.
    """

    ratio: Tensor | None

    @classmethod
    @abstractmethod
    def difference(cls, factors: Mapping[str, Tensor], scale: float) -> Tensor:
        """Return D / S, float32 in the shape of W or [out, in * kh * kw], of the factors in float32."""

    @classmethod
    def norm_of(cls, factors: Mapping[str, Tensor], alpha: float, rank: int) -> float:
        """Return the norm of D."""
        return float(cls.difference(factors, alpha / rank if rank else 1.0).norm())

    def __init__(self, base: nn.Module, spec: AdapterSpec, target: Target) -> None:
        super().__init__(base, spec, target)
        limited = spec.scale_weight_norms and not self.scalar and getattr(spec, "shrinks_by_number", False)
        self.register_buffer(RATIO, torch.ones(()) if limited else None, persistent=False)

    @abstractmethod
    def draw(self, entry: str, factor: Tensor, generator: torch.Generator) -> None:
        """Give a factor of D, zero so far, its start value."""

    def start(self, entry: str, factor: Tensor, generator: torch.Generator) -> None:
        """Give a factor its start value: the lengths are those of W, the learned number is 0."""
        if entry == DORA:
            factor.copy_(self._norm(self.weight(), factor).reshape(factor.shape))
        elif entry != SCALAR:
            self.draw(entry, factor, generator)

    def limit_norm(self, most: float) -> None:
        """Scale D, without DoRA's lengths, down to a norm of at most `most`."""
        number = self.factors[SCALAR] if self.scalar else self.ratio
        assert number is not None
        norm = self.difference({entry: factor.float() for entry, factor in self.factors.items()}, self.scale).norm()
        number.mul_(ratio_to(norm * number.float(), most))

    def take_lengths(self) -> None:
        """Give DoRA the lengths of W + D, where D comes from a file without any, which then does what it did."""
        factors = {entry: factor.detach().float() for entry, factor in self.factors.items()}
        difference = self.scaled(self.difference(factors, self.scale), factors).view(self.weight_shape)
        length = self.factors[DORA]
        length.copy_(self._norm(self.weight() + difference, length).reshape(length.shape))

    def added(self, x: Tensor, factors: Mapping[str, Tensor]) -> Tensor | None:
        """Return the product of `x` with D / S, of factors in the dtype of `x`, where that needs no D; else None."""
        return None

    def lengthened(self, x: Tensor) -> Tensor | None:
        """Return the layer's output with DoRA's lengths, where that needs no D; else None."""
        return None

    def _thin(self, x: Tensor) -> Tensor | None:
        """Return the layer's output without making D, where that can be."""
        if DORA in self._names:
            return self.lengthened(x) if self.strength == 1.0 and not torch.compiler.is_compiling() else None
        factors = {entry: factor.to(x.dtype) for entry, factor in self.factors.items()}
        added = self.added(x, factors)
        if added is None:
            return None
        added = self.scaled(added, factors)
        if (rows := self.rows()) is not None:
            added = added * (rows[:, None, None] if isinstance(self.base_layer, nn.Conv2d) else rows).to(added.dtype)
        return cast(Tensor, self.base_layer(x)) + (added if self.strength == 1.0 else added * self.strength)

    def scaled(self, added: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
        """Return D, or its product, with the numbers that D is multiplied by."""
        if self.scalar:
            added = added * factors[SCALAR]
        return added if self.ratio is None else added * self.ratio.to(added.dtype)

    def rows(self) -> Tensor | None:
        """Return which rows of D take part in the pass under way; None where all do."""
        if self.dropouts is None or not self.dropouts.active:
            return None
        return self.dropouts.rows(self.weight_shape[0], self.name, cast(Tensor, self.base_layer.weight).device)

    def effect(self, values: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
        """Return what is added to W, of the factors in their order, with the strength; `rows` are those of D."""
        factors = {entry: value.float() for entry, value in zip(self._names, values, strict=True)}
        difference = self.scaled(self.difference(factors, self.scale), factors).view(self.weight_shape)
        if rows is not None:
            difference = difference * rows.view(-1, *(1,) * (difference.dim() - 1))
        if DORA in factors:
            weight = self.weight()
            whole, length = weight + difference, factors[DORA]
            norm = self._norm(whole, length)
            difference = whole * (length.view_as(norm) / (norm + torch.finfo(torch.float32).eps)) - weight
        return difference if self.strength == 1.0 else difference * self.strength

    def made(self, values: Sequence[Tensor], rows: Tensor | None) -> Tensor:
        """Return W', float32 in the shape of W."""
        return self.weight() + self.effect(values, rows)

    def pull(self, values: Sequence[Tensor], rows: Tensor | None) -> tuple[Tensor, Pull]:
        """Return W', and a function from its gradient to those of the factors."""
        with torch.enable_grad():
            factors = [factor.detach().requires_grad_() for factor in values]
            effect = self.effect(factors, rows)
        return self.weight() + effect.detach(), lambda outer: torch.autograd.grad(effect, factors, outer)

    def is_plain(self, entries: Collection[str], rows: Tensor | None) -> bool:
        """Say whether these are all the factors, and nothing else takes part."""
        return self.strength == 1.0 and rows is None and self.ratio is None and self._names.keys() == set(entries)

    def whole(self, strength: float) -> Tensor:
        """Return W + D, with DoRA's lengths, at a strength."""
        return self.weight() + self.effect(tuple(self.factors.values())) * strength

    def _norm(self, weight: Tensor, length: Tensor) -> Tensor:
        """Return the norms of a weight along the axis that `length` has: [out, 1, ...] or [1, in, ...]."""
        axis = 0 if length.shape[0] == weight.shape[0] and length.shape[1] == 1 else 1
        others = [dim for dim in range(weight.dim()) if dim != axis]
        return torch.linalg.vector_norm(weight, dim=others, keepdim=True)

    @property
    def weight_shape(self) -> torch.Size:
        """The shape of W."""
        base = self.base_layer
        if isinstance(base, nn.Linear):
            return torch.Size((base.out_features, base.in_features))
        return cast(Tensor, base.weight).shape

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or [b, in, h, w] -> [b, out, h', w']."""
        if self.left_out():
            return cast(Tensor, self.base_layer(x))
        x = x.to(self.compute_dtype(x))
        if (output := self._thin(x)) is not None:
            return output
        factors = tuple(self.factors.values())
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return _added(self, x, factors, None)
        return cast(Tensor, _Added.apply(x, self, self.rows(), *factors))


def _added(layer: AdditiveLayer, x: Tensor, factors: Sequence[Tensor], rows: Tensor | None) -> Tensor:
    base = layer.base_layer
    if x.dtype == torch.float32 and type(base) in (nn.Linear, nn.Conv2d):
        return layer.product(x, layer.made(factors, rows), cast("Tensor | None", base.bias))
    return cast(Tensor, base(x)) + layer.product(x, layer.effect(factors, rows).to(x.dtype))


class _Added(torch.autograd.Function):
    """The forward of `AdditiveLayer` where D is made, which keeps its input and makes D again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: AdditiveLayer, rows: Tensor | None, *factors: Tensor) -> Tensor:
        ctx.layer, ctx.strength, ctx.rows = layer, layer.strength, rows
        ctx.save_for_backward(x, *factors)
        return _added(layer, x, factors, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), layer = gradients, ctx.layer
        x, *saved = ctx.saved_tensors
        whole, pull = layer.pull(saved, ctx.rows)
        inner, outer = _gradients(layer.base_layer, gradient, x, whole.to(x.dtype), needed=ctx.needs_input_grad[0])
        return inner, None, None, *pull(outer.float())


def _gradients(
    base: nn.Module, gradient: Tensor, x: Tensor, weight: Tensor, *, needed: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of a layer's input, where needed, and of its weight."""
    if isinstance(base, nn.Conv2d):
        inner, outer, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, base.stride, base.padding, base.dilation, False, [0, 0], base.groups,
            [needed, True, False],
        )  # fmt: skip
        return inner, outer
    rows = gradient.reshape(-1, gradient.shape[-1])
    return gradient @ weight if needed else None, rows.t() @ x.reshape(-1, x.shape[-1])


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


def inject(
    kind: type[AdaptedLayer],
    components: Mapping[str, nn.Module],
    targets: Sequence[Target],
    spec: AdapterSpec,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> InjectedAdapter[FactoredModule]:
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
    return InjectedAdapter(modules, spec)


def _initialise(layer: AdaptedLayer, target: Target, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(stream(seed, 0, 0, target.name))
    device = cast(Tensor, layer.base_layer.weight).device
    for entry, factor in layer.factors.items():
        start = torch.zeros(factor.shape)
        with torch.no_grad():
            layer.start(entry, start, generator)
        factor.data = start.to(device, dtype)
        factor.requires_grad_(True)
