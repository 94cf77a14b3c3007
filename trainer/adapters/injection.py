"""What every kind of adapter does with a loaded model: layers are checked and wrapped by PEFT, read out and loaded.

Names and order are those of kohya's files. A kind adds its arithmetic: the layers that are put in place.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import peft
import torch
from torch import Tensor, nn

from trainer.adapters import optimizer_states
from trainer.adapters.adapter import ALPHA_TOLERANCE, AdapterSpec, matrix
from trainer.adapters.dropouts import Dropouts, Pass
from trainer.adapters.files import ALPHA, Shape
from trainer.adapters.rates import Rate
from trainer.ground.errors import ModelError
from trainer.targets import Target

PEFT_NAME = "default"

_HELD = "component"

V = TypeVar("V", int, float)

Maker = Callable[..., nn.Module]
"""Makes the layer that takes the place of a frozen one, as PEFT calls it: (frozen layer, adapter's name, ...)."""


@dataclass(frozen=True, slots=True)
class AdaptedModule(ABC):
    """One adapted layer of a model. `shapes` are the file's, by entry."""

    target: Target
    layer: Any
    rank: int
    alpha: float
    shapes: Mapping[str, Shape]

    @property
    @abstractmethod
    def matrices(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by the entry of the file, in the file's order."""

    @property
    @abstractmethod
    def strength(self) -> float:
        """What the adapter's effect is multiplied by."""

    @abstractmethod
    def set_strength(self, value: float) -> None:
        """Set the strength."""

    def values(self) -> Mapping[str, Tensor]:
        """Return what the file has of the matrices, by entry."""
        return {entry: matrix.detach() for entry, matrix in self.matrices.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the module's entries with the file's shapes; where they can they share memory with the parameters."""
        values = {ALPHA: torch.tensor(self.alpha, dtype=torch.float32), **self.values()}
        return {
            f"{self.target.name}.{entry}": values[entry].reshape(shape).contiguous()
            for entry, shape in self.shapes.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return all that the module has of state, by key."""
        return self.tensors()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state` returned."""
        self.load(state)

    @abstractmethod
    def limit_norm(self, most: float) -> None:
        """Scale what the module adds to its weight down to a norm of at most `most`."""

    def check(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise ModelError if rank, shape or alpha of this module are others in `tensors`."""
        name = self.target.name
        for entry, parameter in self.matrices.items():
            value = tensors.get(f"{name}.{entry}")
            if value is not None and matrix(value.shape) != matrix(parameter.shape):
                raise ModelError(
                    f"{source}: {name}.{entry} is {list(value.shape)}, this LoRA has {list(parameter.shape)} "
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
        for entry, parameter in self.matrices.items():
            value = tensors.get(f"{self.target.name}.{entry}")
            if value is not None:
                # A 1x1 convolution and a linear layer are the same matrix: files have either.
                parameter.copy_(value.reshape(parameter.shape))


M = TypeVar("M", bound=AdaptedModule)


class InjectedAdapter(Generic[M]):
    """An adapter on one or more parts of a model, each of which keeps its own weights frozen."""

    def __init__(self, modules: Sequence[M], spec: AdapterSpec) -> None:
        self.modules, self.spec = tuple(modules), spec
        shares = spec.network_dropout or 0.0, spec.rank_dropout or 0.0, spec.module_dropout or 0.0
        self.dropouts = Dropouts(*shares) if any(shares) else None
        for module in modules:
            module.layer.dropouts, module.layer.name = self.dropouts, module.target.name

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts with an adapter, in file order."""
        return tuple(dict.fromkeys(module.target.component for module in self.modules))

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        """Return what is trained of one part, or of all; in file order where all of it learns at one rate."""
        return [each for rate, members in self.groups() if part in (None, rate.part) for each in members]

    def groups(self) -> list[tuple[Rate, list[nn.Parameter]]]:
        """Return what is trained by the rate that it learns at, part after part: matrices, or stacks of them."""
        found = {rate: [self.place(*each)[0] for each in members] for rate, members in self.members.items()}
        return [(rate, list(dict.fromkeys(parameters))) for rate, parameters in found.items()]

    def place(self, module: M, entry: str) -> tuple[nn.Parameter, int | None]:
        """Return the parameter that a matrix is, or the one that it is stacked in, and its place there."""
        return module.matrices[entry], None

    @cached_property
    def members(self) -> dict[Rate, list[tuple[M, str]]]:
        """The matrices, as a module and an entry, that learn at each rate, in file order."""
        found: dict[Rate, list[tuple[M, str]]] = {}
        for part in self.parts:
            for module in self.trained(part):
                for entry in module.matrices:
                    found.setdefault(self.spec.rate(module.target, entry), []).append((module, entry))
        return found

    def dropping(self, seed: int, step: int, slots: tuple[int, ...], first: int) -> AbstractContextManager[None]:
        """Within the context, passes are of these samples of a step, and leave out what theirs is."""
        return self.dropouts.during(Pass(seed, step, slots, first)) if self.dropouts else nullcontext()

    @torch.no_grad()
    def limit_norms(self, most: float) -> None:
        """Scale what layers add to their weights down to a norm of at most `most`."""
        for module in self.trained():
            module.limit_norm(most)

    def stack(self) -> None:
        """Leave each matrix a parameter of its own."""

    @property
    def stacked(self) -> bool:
        """Whether matrices are stacked."""
        return False

    def state_by_matrix(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state_dict as it is where each matrix is a parameter of its own, in file order."""
        return optimizer_states.by_matrix(saved, self._places(saved)) if self.stacked else dict(saved)

    def state_by_parameter(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state_dict for the parameters as they are. The reverse of `state_by_matrix`."""
        return optimizer_states.by_parameter(saved, self._places(saved)) if self.stacked else dict(saved)

    def _places(self, saved: Mapping[str, Any]) -> list[list[optimizer_states.Place]]:
        """Return for each group of an optimizer where its matrices are, in file order."""
        numbers = {id(each): number for _, group in self.groups() for number, each in enumerate(group)}
        members = {rate.name: matrices for rate, matrices in self.members.items()}
        return [[self._place(*each, numbers) for each in members[group["name"]]] for group in saved["param_groups"]]

    def _place(self, module: M, entry: str, numbers: Mapping[int, int]) -> optimizer_states.Place:
        parameter, index = self.place(module, entry)
        stacked = parameter.shape if index is None else parameter.shape[1:]
        return optimizer_states.Place(numbers[id(parameter)], index, module.matrices[entry].shape, stacked)

    def to(self, device: torch.device) -> None:
        """Do nothing: what is trained lies in the parts and moves with them."""

    def trained(self, part: str | None = None) -> list[M]:
        """Return the modules of one part, or of all, that get a gradient."""
        modules = [module for module in self.modules if part in (None, module.target.component)]
        return [module for module in modules if not module.target.idle]

    def tensors(self) -> dict[str, Tensor]:
        """Return key -> tensor in creation order, float32 if injected so, as the file will have them.

        The matrices share memory with the parameters: clone them to keep them over a step.
        """
        return {key: value for module in self.modules for key, value in module.tensors().items()}

    def state(self) -> dict[str, Tensor]:
        """Return all that the adapter has of state, so that `restore(state())` is exact."""
        return {key: value for module in self.modules for key, value in module.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state` returned into this one. Raises ModelError, before anything is copied."""
        _compare("The state", set(state), list(self.state()), strict=True)
        for module in self.modules:
            module.check(state, "The state")
        for module in self.modules:
            module.restore(state)

    def load(self, tensors: Mapping[str, Tensor], *, strict: bool = True, source: str = "The LoRA") -> tuple[str, ...]:
        """Copy the tensors of a file into this one and return one notice for each kind of difference.

        With `strict` every key must be there on both sides. Without it, modules that `tensors` lacks keep
        their start values and modules that only `tensors` has stay out, which the notices say. `source` begins the
        messages. Raises ModelError, before anything is copied.
        """
        tensors = under_our_names(tensors, [module.target for module in self.modules])
        wanted = [f"{module.target.name}.{entry}" for module in self.modules for entry in module.shapes]
        notices = _compare(source, set(tensors), wanted, strict=strict)
        for module in self.modules:
            module.check(tensors, source)
        for module in self.modules:
            module.load(tensors)
        return notices

    @contextmanager
    def multiplied(self, factor: float) -> Iterator[None]:
        """Within the context the adapter's effect counts `factor` times: 0 shows the model without it."""
        before = [module.strength for module in self.modules]
        try:
            for module, strength in zip(self.modules, before, strict=True):
                module.set_strength(strength * factor)
            yield
        finally:
            for module, strength in zip(self.modules, before, strict=True):
                module.set_strength(strength)


def prepare(components: Mapping[str, nn.Module], targets: Sequence[Target], spec: AdapterSpec) -> tuple[Target, ...]:
    """Freeze `components`, and return those of `targets` that `spec` selects, each of which is there.

    Raises:
        ModelError: a target is missing from its component or has another shape there.
    """
    selected = spec.select(targets)
    for target in selected:
        _check(components, target)
    for component in components.values():
        component.requires_grad_(False)
    return selected


def wrap(
    component: nn.Module,
    makers: Mapping[type[nn.Module], Maker],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float] | None = None,
) -> None:
    """Let PEFT put layers made by `makers` in the place of exactly the layers at the paths that `ranks` names.

    Makers are by the type of the frozen layer. PEFT tells them rank and alpha of each path.
    """
    by_rank, by_alpha = _paths_by_value(ranks), _paths_by_value(alphas or dict.fromkeys(ranks, 1.0))
    # PEFT tries every pattern on every layer, which takes a while: the most frequent values are told without one.
    rank = max(by_rank, key=lambda value: len(by_rank[value]))
    alpha = max(by_alpha, key=lambda value: len(by_alpha[value]))
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=_pattern([path for paths in by_rank.values() for path in paths]),
        rank_pattern={_pattern(paths): value for value, paths in by_rank.items() if value != rank},
        alpha_pattern={_pattern(paths): value for value, paths in by_alpha.items() if value != alpha},
        lora_dropout=0.0,
        init_lora_weights=False,
    )
    config._register_custom_module(dict(makers))
    # The new layers' constructors draw from torch's global generator; nothing of ours may depend on that.
    with torch.random.fork_rng(devices=[]):
        # In a holder, since PEFT asks transformers for the history of the names in its models, which takes a while.
        peft.inject_adapter_in_model(config, nn.ModuleDict({_HELD: component}), PEFT_NAME)


def _compare(source: str, found: set[str], wanted: Sequence[str], *, strict: bool) -> tuple[str, ...]:
    """Return a notice for keys that one side lacks. Raises ModelError for any with `strict`, and where none fits."""
    missing = [key for key in wanted if key not in found]
    unknown = sorted(found.difference(wanted))
    notices = []
    if missing:
        notices.append(f"{source} lacks {len(missing)} of {len(wanted)} keys, the first is {missing[0]}.")
    if unknown:
        notices.append(f"{source} has {len(unknown)} keys that this LoRA doesn't have, the first is {unknown[0]}.")
    if notices and (strict or len(missing) == len(wanted)):
        raise ModelError(" ".join(notices), "Use a LoRA for the same model, trained on the same layers.")
    return tuple(notices)


def _paths_by_value(values: Mapping[str, V]) -> dict[V, list[str]]:
    paths: dict[V, list[str]] = {}
    for path, value in values.items():
        paths.setdefault(value, []).append(f"{_HELD}.{path}")
    return paths


def _pattern(paths: Collection[str]) -> str:
    """Return a regular expression for exactly these module paths; PEFT shortens long lists, but not patterns."""
    return "|".join(re.escape(path) for path in paths)


def under_our_names(tensors: Mapping[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Return a file's tensors with the name of each module where the file has its alias."""
    names = {target.alias: target.name for target in targets if target.alias}
    parted = ((key.partition("."), value) for key, value in tensors.items())
    return {f"{names.get(module, module)}{dot}{entry}": value for (module, dot, entry), value in parted}


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
    if matrix(found) != matrix(expected):
        raise ModelError(
            f"{target.name}: expected a layer of shape {list(expected)} at {target.path}, "
            f"the model has {type(layer).__name__} {list(found)}.",
            "Its configuration and its weights don't belong together; check the checkpoint.",
        )


def _shape(layer: nn.Module) -> Shape:
    if isinstance(layer, nn.Linear):
        # Of a quantised layer the weight that is stored has another shape.
        return layer.out_features, layer.in_features
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    return ()


def ratio_to(norm: Tensor, most: float) -> Tensor:
    """Return what to multiply something of this norm by so that it is `most` at most, as sd-scripts does."""
    bounded = norm.clamp(min=most / 2)
    return bounded.clamp(max=most) / bounded
