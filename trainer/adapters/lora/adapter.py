"""LoRA matrices inside a loaded model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from trainer.adapters.adapter import AdapterSpec, matrix
from trainer.adapters.injection import PEFT_NAME, AdaptedModule, InjectedAdapter, prepare, wrap
from trainer.adapters.lora import optimizer_states
from trainer.adapters.lora.layers import SlimConv2d, SlimLinear, put_into_stack
from trainer.adapters.lora.spec import DOWN, UP
from trainer.adapters.lora.stacks import Stack
from trainer.ground.randomness import stream
from trainer.targets import Target


@dataclass(frozen=True, slots=True)
class LoraModule(AdaptedModule):
    """One adapted layer: y = base(x) + up(down(x)) * alpha / rank."""

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

    @property
    def strength(self) -> float:
        """What up(down(x)) is multiplied by: alpha / rank."""
        return float(self.layer.scaling[PEFT_NAME])

    def set_strength(self, value: float) -> None:
        """Set what up(down(x)) is multiplied by."""
        self.layer.scaling[PEFT_NAME] = value


class LoraAdapter(InjectedAdapter[LoraModule]):
    """A LoRA on one or more parts of a model. Matrices of layers of one shape are made ready in stacks."""

    def __init__(self, modules: Sequence[LoraModule]) -> None:
        super().__init__(modules)
        self.stacks = {part: _stacks(self.trained(part)) for part in self.parts}

    @classmethod
    def inject(
        cls,
        components: Mapping[str, nn.Module],
        targets: Sequence[Target],
        spec: AdapterSpec,
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
                {nn.Linear: SlimLinear, nn.Conv2d: SlimConv2d},
                {target.path: spec.rank(target) for target in here},
                {target.path: spec.alpha(target) for target in here},
            )
        modules = [
            LoraModule(
                target, _lora_layer(components, target), spec.rank(target), spec.alpha(target), spec.entries(target)
            )
            for target in selected
        ]
        for module in modules:
            _initialise(module, seed, dtype)
        return cls(modules)

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        """Return what is trained of one part, or of all: the matrices in file order, or the stacks of them."""
        stacks = [stack for name in self.stacks if part in (None, name) for stack in self.stacks[name]]
        if any(stack.stacked for stack in stacks):
            return [parameter for stack in stacks for parameter in stack.parameters]
        return super().parameters(part)

    def stack(self) -> None:
        """Let the matrices of layers of one shape be one parameter."""
        for stacks in self.stacks.values():
            for each in stacks:
                each.stack()

    def to(self, device: torch.device) -> None:
        """Follow the parts to another device; parameters keep their identity."""
        for stacks in self.stacks.values():
            for each in stacks:
                each.to(device)

    def state_by_matrix(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state_dict as it is where each matrix is a parameter of its own, in file order."""
        places = self._places(saved)
        return optimizer_states.by_matrix(saved, places) if places else dict(saved)

    def state_by_parameter(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state_dict for the parameters as they are. The reverse of `state_by_matrix`."""
        places = self._places(saved)
        return optimizer_states.by_parameter(saved, places) if places else dict(saved)

    def _places(self, saved: Mapping[str, Any]) -> list[list[optimizer_states.Place]]:
        """Return for each group of an optimizer where its matrices are, in file order; empty where none is stacked."""
        if not any(each.stacked for stacks in self.stacks.values() for each in stacks):
            return []
        return [_places(self.trained(group["name"]), self.stacks[group["name"]]) for group in saved["param_groups"]]


def _stacks(modules: Sequence[LoraModule]) -> list[Stack]:
    """Put the layers of one part with the same shape and scale into one stack, in sets that share their input."""
    sorted_out: dict[object, dict[str, list[SlimLinear | SlimConv2d]]] = {}
    for module in modules:
        layer, target = module.layer, module.target
        assert isinstance(layer, SlimLinear | SlimConv2d), f"PEFT has put its own layer at {target.path}"
        shape = (*matrix(module.down.shape), module.up.shape[0])
        sets = sorted_out.setdefault((shape, module.alpha, layer.base_layer.weight.dtype), {})
        sets.setdefault(target.shares or target.path, []).append(layer)
    return [put_into_stack(list(sets.values())) for sets in sorted_out.values()]


def _places(modules: Sequence[LoraModule], stacks: Sequence[Stack]) -> list[optimizer_states.Place]:
    """Return in which parameter of its part each matrix is, and where in it, in file order."""
    numbers = {id(each): 2 * number for number, each in enumerate(stacks)}
    return [
        optimizer_states.Place(numbers[id(module.layer.siblings.stack)] + number, module.layer.index, each.shape)
        for module in modules
        for number, each in enumerate((module.down, module.up))
    ]


def _lora_layer(components: Mapping[str, nn.Module], target: Target) -> LoraLayer:
    layer = components[target.component].get_submodule(target.path)
    assert isinstance(layer, LoraLayer), f"PEFT left {target.path} as it was"
    return layer


def _initialise(module: LoraModule, seed: int, dtype: torch.dtype) -> None:
    """Give one module its start values; see `LoraAdapter.inject`."""
    layer, target = module.layer, module.target
    # PEFT gives new matrices the dtype of the base, in which small updates of half precision would be lost.
    layer.lora_A[PEFT_NAME].to(dtype)
    layer.lora_B[PEFT_NAME].to(dtype)
    assert layer.scaling[PEFT_NAME] == module.alpha / module.rank, f"PEFT scales {target.path} otherwise"
    generator = torch.Generator().manual_seed(stream(seed, 0, 0, target.name))
    start = torch.empty(module.down.shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    with torch.no_grad():
        module.down.copy_(start)
        module.up.zero_()
