"""LoRA matrices inside a loaded model: PEFT injects them, the files' names and order are kohya's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.adapters.lora import optimizer_states
from trainer.adapters.lora.layers import SlimConv2d, SlimLinear, stack
from trainer.adapters.lora.lora_header import ALPHA, DOWN, UP
from trainer.adapters.lora.spec import ALPHA_TOLERANCE, LoraSpec, module_shapes
from trainer.adapters.lora.stacks import PEFT_NAME, Stack
from trainer.ground.errors import ModelError
from trainer.ground.randomness import stream
from trainer.targets import Target

_HELD = "component"


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """One adapted layer: y = base(x) + up(down(x)) * alpha / rank."""

    target: Target
    layer: LoraLayer
    rank: int
    alpha: float

    @property
    def down(self) -> nn.Parameter:
        """The first matrix, [rank, in] or [rank, in, kh, kw]."""
        return self.layer.lora_A[PEFT_NAME].weight

    @property
    def up(self) -> nn.Parameter:
        """The second matrix, [out, rank] or [out, rank, 1, 1]; zero at the start."""
        return self.layer.lora_B[PEFT_NAME].weight

    def tensors(self) -> dict[str, Tensor]:
        """Return the module's three entries with the file's shapes; the matrices share memory with the parameters."""
        shapes = module_shapes(self.target, self.rank)
        values = (torch.tensor(self.alpha, dtype=torch.float32), self.down.detach(), self.up.detach())
        return {
            key: value.reshape(shape).contiguous() for (key, shape), value in zip(shapes.items(), values, strict=True)
        }

    def check(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise ModelError if rank, shape or alpha of this module are others in `tensors`."""
        name = self.target.name
        for part, parameter in ((DOWN, self.down), (UP, self.up)):
            value = tensors.get(f"{name}.{part}")
            if value is not None and _matrix(value.shape) != _matrix(parameter.shape):
                raise ModelError(
                    f"{source}: {name}.{part} is {list(value.shape)}, this LoRA has {list(parameter.shape)} "
                    f"(rank {self.rank}).",
                    "Use the rank of the file (network_dim, conv_dim), or dim_from_weights = true.",
                )
        alpha = tensors.get(f"{name}.{ALPHA}")
        if alpha is not None and not math.isclose(float(alpha), self.alpha, rel_tol=ALPHA_TOLERANCE):
            raise ModelError(
                f"{source}: {name} has alpha {float(alpha):g}, this LoRA has {self.alpha:g}.",
                "Use the alpha of the file (network_alpha, conv_alpha), or dim_from_weights = true.",
            )

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the matrices of this module that `tensors` has."""
        for part, parameter in ((DOWN, self.down), (UP, self.up)):
            value = tensors.get(f"{self.target.name}.{part}")
            if value is not None:
                # A 1x1 convolution and a linear layer are the same matrix: files have either.
                parameter.copy_(value.reshape(parameter.shape))


class Adapter:
    """A LoRA on one or more components of a model, each of which keeps its own weights frozen."""

    def __init__(self, modules: Sequence[AdaptedLayer]) -> None:
        self.modules = tuple(modules)
        self.stacks = {component: _stacks(self._trained(component)) for component in self.components}

    @classmethod
    def inject(
        cls,
        components: Mapping[str, nn.Module],
        targets: Sequence[Target],
        spec: LoraSpec,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> Adapter:
        """Freeze `components` and add the matrices of `spec` to those of `targets` that it selects.

        The matrices are `dtype` whatever the dtype of the base. `down` is drawn on the CPU from Kaiming's uniform
        distribution with a = sqrt(5), that is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as a function of the seed and the
        module's name, so it is the same on every device and whatever else is trained; `up` is zero.

        Raises ModelError if a target is missing from its component or has another shape there.
        """
        selected = spec.select(targets)
        for target in selected:
            _check(components, target)
        for component in components.values():
            component.requires_grad_(False)
        for name in dict.fromkeys(target.component for target in selected):
            _inject(components[name], [target for target in selected if target.component == name], spec)
        modules = [
            AdaptedLayer(target, _lora_layer(components, target), spec.rank(target), spec.alpha(target))
            for target in selected
        ]
        for module in modules:
            _initialise(module, seed, dtype)
        return cls(modules)

    @property
    def components(self) -> tuple[str, ...]:
        """The components with matrices, in file order."""
        return tuple(dict.fromkeys(module.target.component for module in self.modules))

    def parameters(self, component: str | None = None) -> list[nn.Parameter]:
        """Return what is trained of one component, or of all: the matrices in file order, or what joins them."""
        stacks = [stack for name in self.stacks if component in (None, name) for stack in self.stacks[name]]
        if any(stack.joined for stack in stacks):
            return [parameter for stack in stacks for parameter in stack.parameters]
        return [matrix for module in self._trained(component) for matrix in (module.down, module.up)]

    def join(self) -> None:
        """Let the matrices of layers of one shape be one parameter; for optimizers to which that makes no difference.

        Their state has another layout then. `apart` and `together` translate it.
        """
        for stacks in self.stacks.values():
            for each in stacks:
                each.join()

    def to(self, device: torch.device) -> None:
        """Follow the components to another device; parameters keep their identity."""
        for stacks in self.stacks.values():
            for each in stacks:
                each.to(device)

    def apart(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state_dict as it is where each matrix is a parameter of its own, in file order."""
        places = self._places(saved)
        return optimizer_states.apart(saved, places) if places else dict(saved)

    def together(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state_dict for the parameters as they are. The reverse of `apart`."""
        places = self._places(saved)
        return optimizer_states.together(saved, places) if places else dict(saved)

    def _places(self, saved: Mapping[str, Any]) -> list[list[optimizer_states.Place]]:
        """Return for each group of an optimizer where its matrices are, in file order; nothing where none is joined."""
        if not any(each.joined for stacks in self.stacks.values() for each in stacks):
            return []
        return [_places(self._trained(group["name"]), self.stacks[group["name"]]) for group in saved["param_groups"]]

    def _trained(self, component: str | None) -> list[AdaptedLayer]:
        """Return the modules of one component, or of all, that get a gradient."""
        modules = [module for module in self.modules if component in (None, module.target.component)]
        return [module for module in modules if not module.target.idle]

    def tensors(self) -> dict[str, Tensor]:
        """Return key -> tensor in creation order, float32 if injected so, as the file will have them.

        The matrices share memory with the parameters: clone them to keep them over a step. They are all that the
        adapter has of state, so `load(tensors())` is exact.
        """
        result: dict[str, Tensor] = {}
        for module in self.modules:
            result |= module.tensors()
        return result

    def load(self, tensors: Mapping[str, Tensor], *, strict: bool = True, source: str = "The LoRA") -> tuple[str, ...]:
        """Copy a LoRA's tensors into this one and return one notice for each kind of difference.

        With `strict` every key must be there on both sides. Without it, modules that `tensors` lacks keep their start
        values and modules that only `tensors` has stay out, which the notices say. `source` begins the messages.
        Raises ModelError, before anything is copied.
        """
        tensors = _under_our_names(tensors, [module.target for module in self.modules])
        wanted = [key for module in self.modules for key in module_shapes(module.target, module.rank)]
        missing = [key for key in wanted if key not in tensors]
        unknown = sorted(set(tensors) - set(wanted))
        notices = []
        if missing:
            notices.append(f"{source} lacks {len(missing)} of {len(wanted)} keys, the first is {missing[0]}.")
        if unknown:
            notices.append(f"{source} has {len(unknown)} keys that this LoRA doesn't have, the first is {unknown[0]}.")
        if notices and (strict or len(missing) == len(wanted)):
            raise ModelError(" ".join(notices), "Use a LoRA for the same model, trained on the same layers.")
        for module in self.modules:
            module.check(tensors, source)
        for module in self.modules:
            module.load(tensors)
        return tuple(notices)

    @contextmanager
    def multiplied(self, factor: float) -> Iterator[None]:
        """Within the context the matrices count `factor` times: 0 shows the model without the LoRA."""
        before = [module.layer.scaling[PEFT_NAME] for module in self.modules]
        try:
            for module, scale in zip(self.modules, before, strict=True):
                module.layer.scaling[PEFT_NAME] = scale * factor
            yield
        finally:
            for module, scale in zip(self.modules, before, strict=True):
                module.layer.scaling[PEFT_NAME] = scale


def _under_our_names(tensors: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return a file's tensors with the name of each module where the file has its alias."""
    names = {target.alias: target.name for target in targets if target.alias}
    parted = ((key.partition("."), value) for key, value in tensors.items())
    return {f"{names.get(module, module)}{dot}{part}": value for (module, dot, part), value in parted}


def _matrix(shape: torch.Size) -> tuple[int, ...]:
    """Return a weight's shape without the 1x1 kernel that a convolution has over a linear layer."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)


def _check(components: Mapping[str, nn.Module], target: Target) -> None:
    """Raise ModelError unless the layer that `target` names is there and has its shape."""
    try:
        layer = components[target.component].get_submodule(target.path)
    except (KeyError, AttributeError) as error:
        raise ModelError(
            f"The model has no layer {target.path} in its {target.component} ({target.name}).",
            "Its configuration and its weights don't belong together; check the checkpoint.",
        ) from error
    expected = (target.out_features, target.in_features, *(target.kernel or ()))
    found = _shape(layer)
    if _matrix(torch.Size(found)) != _matrix(torch.Size(expected)):
        raise ModelError(
            f"{target.name}: expected a layer of shape {list(expected)} at {target.path}, "
            f"the model has {type(layer).__name__} {list(found)}.",
            "Its configuration and its weights don't belong together; check the checkpoint.",
        )


def _shape(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        # Of a quantised layer the weight that is stored has another shape.
        return layer.out_features, layer.in_features
    return tuple(layer.weight.shape) if isinstance(layer, nn.Conv2d) else ()


def _inject(component: nn.Module, targets: Sequence[Target], spec: LoraSpec) -> None:
    """Let PEFT wrap exactly the layers of `targets`."""
    ranks: dict[int, list[str]] = {}
    alphas: dict[float, list[str]] = {}
    for target in targets:
        ranks.setdefault(spec.rank(target), []).append(f"{_HELD}.{target.path}")
        alphas.setdefault(spec.alpha(target), []).append(f"{_HELD}.{target.path}")
    # PEFT tries every pattern on every layer, which takes a while: the most frequent values are told without one.
    rank, alpha = (max(each, key=lambda value: len(each[value])) for each in (ranks, alphas))
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=_pattern([path for paths in ranks.values() for path in paths]),
        rank_pattern={_pattern(paths): value for value, paths in ranks.items() if value != rank},
        alpha_pattern={_pattern(paths): value for value, paths in alphas.items() if value != alpha},
        lora_dropout=0.0,
        init_lora_weights=False,
    )
    config._register_custom_module({nn.Linear: SlimLinear, nn.Conv2d: SlimConv2d})
    # The new layers' constructors draw from torch's global generator; nothing of ours may depend on that.
    with torch.random.fork_rng(devices=[]):
        # In a holder, since PEFT asks transformers for the history of the names in its models, which takes a while.
        peft.inject_adapter_in_model(config, nn.ModuleDict({_HELD: component}), PEFT_NAME)


def _stacks(modules: Sequence[AdaptedLayer]) -> list[Stack]:
    """Put the layers of one component with the same shape and scale into one stack, in sets that share their input."""
    sorted_out: dict[object, dict[str, list[SlimLinear | SlimConv2d]]] = {}
    for module in modules:
        layer, target = module.layer, module.target
        assert isinstance(layer, SlimLinear | SlimConv2d), f"PEFT has put its own layer at {target.path}"
        shape = (*_matrix(module.down.shape), module.up.shape[0])
        sets = sorted_out.setdefault((shape, module.alpha, layer.base_layer.weight.dtype), {})
        sets.setdefault(target.shares or target.path, []).append(layer)
    return [stack(list(sets.values())) for sets in sorted_out.values()]


def _places(modules: Sequence[AdaptedLayer], stacks: Sequence[Stack]) -> list[optimizer_states.Place]:
    """Return in which parameter of its component each matrix is, and where in it, in file order."""
    numbers = {id(each): 2 * number for number, each in enumerate(stacks)}
    return [
        optimizer_states.Place(numbers[id(module.layer.siblings.stack)] + part, module.layer.index, matrix.shape)
        for module in modules
        for part, matrix in enumerate((module.down, module.up))
    ]


def _pattern(paths: Sequence[str]) -> str:
    """Return a regular expression for exactly these module paths; PEFT shortens long lists, but not patterns."""
    return "|".join(re.escape(path) for path in paths)


def _lora_layer(components: Mapping[str, nn.Module], target: Target) -> LoraLayer:
    layer = components[target.component].get_submodule(target.path)
    assert isinstance(layer, LoraLayer), f"PEFT left {target.path} as it was"
    return layer


def _initialise(module: AdaptedLayer, seed: int, dtype: torch.dtype) -> None:
    """Give one module its start values; see `Adapter.inject`."""
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
