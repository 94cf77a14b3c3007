"""LoRA matrices inside a loaded model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec, matrix
from trainer.adapters.files import ALPHA
from trainer.adapters.injection import PEFT_NAME, AdaptedModule, InjectedAdapter, prepare, ratio_to, wrap
from trainer.adapters.lora import apart
from trainer.adapters.lora.layers import SlimConv2d, SlimLinear, put_into_stack
from trainer.adapters.lora.spec import DOWN, UP, LoraSpec
from trainer.adapters.lora.stacks import Stack
from trainer.adapters.lora.starts import STARTS
from trainer.ground.errors import ModelError
from trainer.ground.randomness import stream
from trainer.targets import Target


@dataclass(frozen=True, slots=True)
class LoraModule(AdaptedModule):
    """One adapted layer: y = base(x) + up(down(x)) * alpha / rank.

    `begun` are the matrices at the start, [rank, in] and [out, rank], float32 on the CPU, where they were no nothing.
    """

    begun: tuple[Tensor, Tensor] | None = None

    @property
    def down(self) -> nn.Parameter:
        """The first matrix, [rank, in] or [rank, in, kh, kw]."""
        weight: nn.Parameter = self.layer.lora_A[PEFT_NAME].weight
        return weight

    @property
    def up(self) -> nn.Parameter:
        """The second matrix, [out, rank] or [out, rank, 1, 1]; zero at the start."""
        weight: nn.Parameter = self.layer.lora_B[PEFT_NAME].weight
        return weight

    @property
    def matrices(self) -> Mapping[str, nn.Parameter]:
        """The two matrices."""
        return {DOWN: self.down, UP: self.up}

    def values(self) -> Mapping[str, Tensor]:
        """Return the file's matrices and alpha: with a start of its own, less what the matrices were then."""
        if self.begun is None:
            return super(LoraModule, self).values()
        down, up = (torch.cat([now.detach().flatten(1), then.to(now)], dim) for now, then, dim in self._both)
        return {ALPHA: torch.tensor(2 * self.alpha), DOWN: down, UP: up}

    @property
    def _both(self) -> list[tuple[Tensor, Tensor, int]]:
        """The matrices, what they were at the start, the second ones with the other sign, and where they are joined."""
        assert self.begun is not None
        first, second = self.begun
        return [(self.down, first, 0), (self.up, -second, 1)]

    def state(self) -> dict[str, Tensor]:
        """Return what is trained."""
        if self.begun is None:
            return self.tensors()
        state = {ALPHA: torch.tensor(self.alpha), **{entry: value.detach() for entry, value in self.matrices.items()}}
        return {f"{self.target.name}.{entry}": value for entry, value in state.items()}

    @torch.no_grad()
    def begin(self, start: str) -> None:
        """Give the matrices parts of the frozen weight, and take them from it."""
        base, scale = self.layer.base_layer, self.alpha / self.rank
        weight = base.weight.detach().flatten(1).float().cpu()
        first, second = STARTS[start](weight, self.rank, scale, self.target.name)
        self.down[: len(first)] = first.view(-1, *self.down.shape[1:])
        self.up[:, : len(first)] = second.view(len(second), -1, *self.up.shape[2:])
        first, second = self.down.detach().flatten(1).float().cpu(), self.up.detach().flatten(1).float().cpu()
        base.weight.copy_((weight - scale * second @ first).view(base.weight.shape))
        object.__setattr__(self, "begun", (first.clone(), second.clone()))

    @property
    def strength(self) -> float:
        """What up(down(x)) is multiplied by: alpha / rank."""
        return float(self.layer.scaling[PEFT_NAME])

    def set_strength(self, value: float) -> None:
        """Set what up(down(x)) is multiplied by."""
        self.layer.scaling[PEFT_NAME] = value

    def limit_norm(self, most: float) -> None:
        """Scale both matrices alike, so that s up down has a norm of at most `most`."""
        _limit(self.down.data, self.up.data, self.alpha / self.rank, most)


@dataclass(frozen=True, slots=True)
class PartedModule(LoraModule):
    """One adapted layer whose parts are trained apart; see `trainer.adapters.lora.apart`. `alpha` is that of one."""

    def values(self) -> Mapping[str, Tensor]:
        """Return the file's matrices and alpha: one LoRA of all parts."""
        up = apart.side_by_side(self.up.detach(), self.target.parts)
        return {ALPHA: torch.tensor(self.alpha * len(self.target.parts)), DOWN: self.down.detach(), UP: up}

    def state(self) -> dict[str, Tensor]:
        """Return what is trained."""
        state = {ALPHA: torch.tensor(self.alpha), **{entry: value.detach() for entry, value in self.matrices.items()}}
        return {f"{self.target.name}.{entry}": value for entry, value in state.items()}

    def check(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise ModelError if rank, shape or alpha are others, or if parts are mixed in a file's second matrix."""
        super(PartedModule, self).check(self._as_trained(tensors, source), source)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the matrices of this module that a file or a state has."""
        super(PartedModule, self).load(self._as_trained(tensors, "The LoRA"))

    def _as_trained(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """Return a file's entries as those of a state, which are left as they are."""
        key, alpha, parts = f"{self.target.name}.{UP}", f"{self.target.name}.{ALPHA}", self.target.parts
        whole = tensors.get(key)
        if whole is None or whole.shape[1] == self.rank:
            return tensors
        own = apart.below_one_another(whole, parts)
        if own is None:
            raise ModelError(
                f"{source}: {key} mixes what split_qkv trains apart.", "Set split_qkv = false to go on training it."
            )
        found = {**tensors, key: own}
        return {**found, alpha: tensors[alpha] / len(parts)} if alpha in tensors else found

    def limit_norm(self, most: float) -> None:
        """Scale the matrices of all parts alike, so that what they add has a norm of at most `most`."""
        found = apart.norm(self.down.data, self.up.data, self.target.parts) * (self.alpha / self.rank)
        root = ratio_to(found, most).sqrt()
        for each in (self.down.data, self.up.data):
            each.mul_(root.to(each.dtype))


class LoraAdapter(InjectedAdapter[LoraModule]):
    """A LoRA on one or more parts of a model. Matrices of layers of one shape are made ready in stacks."""

    def __init__(self, modules: Sequence[LoraModule], spec: AdapterSpec) -> None:
        super().__init__(modules, spec)
        self.stacks = {part: _stacks(self.trained(part), spec) for part in self.parts}

    @classmethod
    def inject(
        cls,
        components: Mapping[str, nn.Module],
        targets: Sequence[Target],
        spec: LoraSpec,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> LoraAdapter:
        """Freeze `components` and add the matrices of `spec` to those of `targets` that it selects.

        The matrices are `dtype` whatever the dtype of the base. `down` is drawn on the CPU from Kaiming's uniform
        distribution with a = sqrt(5), that is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as a function of the seed and the
        module's name, so it is the same on every device and whatever else is trained; `up` is zero.

        Raises ModelError if a target is missing from its component or has another shape there.
        """
        selected = prepare(components, targets, spec)
        for name in dict.fromkeys(target.component for target in selected):
            here = [target for target in selected if target.component == name]
            wrap(
                components[name],
                {nn.Linear: SlimLinear.empty, nn.Conv2d: SlimConv2d.empty},
                {target.path: spec.rank(target) for target in here},
                {target.path: spec.alpha(target) for target in here},
            )
        modules = []
        for target in selected:
            rank, kind = spec.rank(target), LoraModule if spec.pieces(target) == 1 else PartedModule
            layer = _lora_layer(components, target)
            if kind is PartedModule:
                assert isinstance(layer, SlimLinear), "only linear layers have parts"
                layer.take_apart(target.parts, rank)
            modules.append(kind(target, layer, rank, spec.alpha(target), spec.entries(target)))
        for module in modules:
            _initialise(module, seed, dtype)
            if spec.init_lora_weights:
                module.begin(spec.init_lora_weights)
        return cls(modules, spec)

    def place(self, module: LoraModule, entry: str) -> tuple[nn.Parameter, int | None]:
        """Return the parameter that a matrix is, or the one that it is stacked in, and its place there."""
        stack = module.layer.siblings.stack
        if not stack.stacked:
            return super().place(module, entry)
        return stack.parameters[(DOWN, UP).index(entry)], module.layer.index

    @property
    def stacked(self) -> bool:
        """Whether the matrices of layers of one shape are one parameter."""
        return any(each.stacked for stacks in self.stacks.values() for each in stacks)

    def stack(self) -> None:
        """Let the matrices of layers of one shape be one parameter.

        Not with `module_dropout`: a layer that took no part in a step has no gradient then, and an optimizer leaves it.
        Nor where parts of layers are trained apart, whose matrices are used one by one.
        """
        if (self.dropouts and self.dropouts.module) or any(isinstance(each, PartedModule) for each in self.modules):
            return
        for stacks in self.stacks.values():
            for each in stacks:
                each.stack()

    @torch.no_grad()
    def limit_norms(self, most: float) -> None:
        """Scale what layers add to their weights down to a norm of at most `most`, a stack at once."""
        if not self.stacked:
            super().limit_norms(most)
            return
        for stacks in self.stacks.values():
            for each in stacks:
                down, up = each.parameters
                first = each.layers[0]
                _limit(down, up, first.lora_alpha[PEFT_NAME] / first.r[PEFT_NAME], most)

    @contextmanager
    def multiplied(self, factor: float) -> Iterator[None]:
        """Within the context the adapter's effect counts `factor` times; weights get back what was taken from them."""
        kept = []
        with torch.no_grad():
            for module in self.modules if factor != 1.0 else ():
                if module.begun is not None:
                    first, second = module.begun
                    weight = module.layer.base_layer.weight
                    kept.append((weight, weight.clone()))
                    taken = module.alpha / module.rank * (1 - factor) * (second @ first)
                    weight.copy_(weight.float() + taken.view(weight.shape).to(weight.device))
        try:
            with super().multiplied(factor):
                yield
        finally:
            with torch.no_grad():
                for weight, before in kept:
                    weight.copy_(before)

    def to(self, device: torch.device) -> None:
        """Follow the parts to another device; parameters keep their identity."""
        for stacks in self.stacks.values():
            for each in stacks:
                each.to(device)


def _stacks(modules: Sequence[LoraModule], spec: AdapterSpec) -> list[Stack]:
    """Put the layers of one part with the same shape, scale and rates into one stack; sets share their input."""
    sorted_out: dict[object, dict[str, list[SlimLinear | SlimConv2d]]] = {}
    for module in modules:
        layer, target = module.layer, module.target
        assert isinstance(layer, SlimLinear | SlimConv2d), f"PEFT has put its own layer at {target.path}"
        shape = (*matrix(module.down.shape), module.up.shape[0])
        rates = spec.rate(target, DOWN), spec.rate(target, UP)
        sets = sorted_out.setdefault((shape, module.alpha, layer.base_layer.weight.dtype, rates), {})
        sets.setdefault(target.shares or target.path, []).append(layer)
    return [put_into_stack(list(sets.values())) for sets in sorted_out.values()]


def _lora_layer(components: Mapping[str, nn.Module], target: Target) -> LoraLayer:
    layer = components[target.component].get_submodule(target.path)
    assert isinstance(layer, LoraLayer), f"PEFT left {target.path} as it was"
    return layer


def _initialise(module: LoraModule, seed: int, dtype: torch.dtype) -> None:
    """Give one module its start values; see `LoraAdapter.inject`."""
    layer, target = module.layer, module.target
    assert layer.scaling[PEFT_NAME] == module.alpha / module.rank, f"PEFT scales {target.path} otherwise"
    # In the adapter's dtype, not in that of the base, in which small updates of half precision would be lost.
    place: dict[str, Any] = {"dtype": dtype, "device": layer.base_layer.weight.device}
    generator = torch.Generator().manual_seed(stream(seed, 0, 0, target.name))
    start = torch.empty(module.down.shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    layer.lora_A[PEFT_NAME].weight = nn.Parameter(start.to(**place))
    layer.lora_B[PEFT_NAME].weight = nn.Parameter(torch.zeros(module.up.shape, **place))


def _limit(down: Tensor, up: Tensor, scale: float, most: float) -> None:
    """Scale matrices [..., rank, in] and [..., out, rank] alike, in place, so that s up down has no larger norm.

    The norm is that of the two matrices' own products, of rank by rank, so that no whole weight is made.
    """
    stacked = down.dim() in (3, 5)
    first = down.flatten(2 if stacked else 1).float()
    second = up.flatten(2 if stacked else 1).float()
    products = (first @ first.mT).double() * (second.mT @ second).double()
    root = ratio_to(products.sum((-1, -2)).clamp(min=0).sqrt() * scale, most).sqrt()
    for each in (down, up):
        each.mul_(root.to(each.dtype).view(-1, *(1,) * (each.dim() - 1)) if stacked else root.to(each.dtype))
