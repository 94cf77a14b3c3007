"""Layers of one kind and shape whose factors lie in one tensor for each entry, so that one call does for all of them.

To clip, to update and to make ready some hundred small factors one by one takes longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from trainer.adapters.layer import AdaptedLayer

_LIGHT = 128 * 1024
"""Numbers in a weight up to which calls cost more than arithmetic."""
_SHARED = 4_000_000
"""Numbers in the weights of a stack up to which they are made together; all their gradients are in memory at once."""
_PIECE = 256 * 1024
"""Numbers that a processor's cache holds with what is made of them."""
_NEVER = -1, 0.0


class FactorStack:
    """Layers whose factors have the same shapes, and everything that is made of factors alone.

    What is made ready for a pass with gradients serves until a factor changes or the pass goes back through it.
    """

    def __init__(self, layers: Sequence[AdaptedLayer]) -> None:
        """Let the factors be one parameter for each entry; those of the layers become views of it.

        Numbers stay with their layers: an optimizer's state could not be told from its count of steps.
        """
        self.layers = tuple(layers)
        shaped = [entry for entry, factor in layers[0].factors.items() if factor.dim()]
        self.parameters = {
            entry: nn.Parameter(torch.stack([layer.factors[entry].data for layer in layers])) for entry in shaped
        }
        self._watched = next(iter(layers[0].factors.values()))
        self._bases: Tensor | None = None
        self._mark = _NEVER
        self._values: list[dict[str, Tensor]] = []
        self._prepared: Sequence[Tensor] = ()
        self._tie()
        for index, layer in enumerate(layers):
            layer.stack, layer.index = self, index

    def _tie(self) -> None:
        for entry, parameter in self.parameters.items():
            for layer, values in zip(self.layers, parameter.data, strict=True):
                factor = layer.factors[entry]
                factor.data = values
                factor.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Follow the layers to another device, in place."""
        self.forget()
        self._bases = None
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(device)
        self._tie()

    def values(self, index: int) -> dict[str, Tensor]:
        """Return the factors of one layer as parts of the parameters, which get its gradients."""
        self._renew()
        if not self._values:
            parts = {entry: each.unbind() for entry, each in self._whole().items()}
            self._values = [
                {entry: parts[entry][number] if entry in parts else factor for entry, factor in layer.factors.items()}
                for number, layer in enumerate(self.layers)
            ]
        return self._values[index]

    def prepared(self, index: int) -> Tensor:
        """Return what the kind makes of one layer's factors before it sees an input, made for all layers at once."""
        self._renew()
        if not self._prepared:
            make = self.layers[0].prepare
            self._prepared = for_a_pass(lambda: make(self.parameters), self.forget).unbind()
        return self._prepared[index]

    @cached_property
    def light(self) -> bool:
        """Whether weights are made for all layers together: calls cost more than arithmetic; it does not change."""
        bases = [layer.base_layer for layer in self.layers]
        if any(type(base) not in (nn.Linear, nn.Conv2d) or hasattr(base, "streamed") for base in bases):
            return False
        weights = [cast(Tensor, base.weight) for base in bases]
        small = weights[0].numel() <= _LIGHT and sum(weight.numel() for weight in weights) <= _SHARED
        return small and all(weight.dtype == torch.float32 for weight in weights)

    def weights(self) -> Tensor:
        """Return the frozen weights, [layers, out, in * kh * kw]; the layers' own become views, so it takes no room."""
        weights = [cast(Tensor, layer.base_layer.weight) for layer in self.layers]
        if self._bases is None or self._bases.data_ptr() != weights[0].data_ptr():
            self._bases = torch.stack([weight.data.flatten(1) for weight in weights])
            for weight, values in zip(weights, self._bases, strict=True):
                weight.data = values.view(weight.shape)
        return self._bases

    def pieces(self, weights: Tensor, values: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor, dict[str, Tensor]]]:
        """Yield places of some layers, their frozen weights and their factors, float32, of those of all layers."""
        step = max(1, _PIECE // weights[0].numel()) if weights.device.type == "cpu" else len(weights)
        for first in range(0, len(weights), step):
            some = slice(first, first + step)
            factors = {entry: each[some].float() for entry, each in zip(self.parameters, values, strict=True)}
            yield some, weights[some], factors

    def _whole(self) -> dict[str, Tensor]:
        return {entry: for_a_pass(partial(each.view_as, each), self.forget) for entry, each in self.parameters.items()}

    def _renew(self) -> None:
        """Forget what was made of factors that have changed since; changes are of all layers at once."""
        version = self._watched._version + sum(each._version for each in self.parameters.values())
        mark = version, self.layers[0].strength
        if mark != self._mark:
            self.forget()
            self._mark = mark

    def forget(self, _: Tensor | None = None) -> None:
        """Forget what was made."""
        self._mark, self._values, self._prepared = _NEVER, [], ()


def for_a_pass(make: Callable[[], Tensor], forget: Callable[[Tensor], None]) -> Tensor:
    """Make what serves for a whole pass; `forget` is called when the pass has come back to it."""
    # Where a block is checkpointed, what is made for all must not count as the block's.
    with saved_tensors_hooks(_itself, _itself):
        made = make()
    if made.requires_grad:
        # A pass that comes back here cannot come a second time.
        made.register_hook(forget)
    return made


def _itself(value: Tensor) -> Tensor:
    return value
