"""Adapted layers of one shape, whose matrices lie in one tensor and are made ready in a few operations for all.

A small model has some hundred layers with two small matrices each: to scale, to cast, to add to a weight, to clip and
to update them one by one takes longer than the arithmetic. Here each of these is one operation for a whole stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, chain, pairwise

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from trainer.adapters.injection import PEFT_NAME
from trainer.adapters.joined import for_a_pass

_SHARED = 4_000_000
"""Numbers in the weights of a stack up to which they are made together. Larger ones cost arithmetic, not calls, and
their gradients had better not lie in memory at the same time."""


_NONE = (-1, 0.0)


class Stack:
    """Layers of one shape and scale, in sets that are given one and the same tensor; a set of one is the rule.

    What is made ready for a pass with gradients serves until a matrix changes or the pass goes back through it.
    """

    def __init__(self, sets: Sequence[Sequence[LoraLayer]]) -> None:
        self.layers = tuple(chain.from_iterable(sets))
        self._starts = (0, *accumulate(len(layers) for layers in sets))
        self._stacked: tuple[nn.Parameter, nn.Parameter] | None = None
        self._matrices: tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]] | None = None
        self._bases: Tensor | None = None
        self._mark = _NONE
        self._thin: dict[torch.dtype, tuple[Sequence[Tensor], Sequence[Tensor]]] = {}
        self._merged: Sequence[Tensor] = ()

    @property
    def matrices(self) -> tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]]:
        """The first and the second matrix of each layer, as PEFT has them."""
        if self._matrices is None:
            first = [layer.lora_A[PEFT_NAME].weight for layer in self.layers]
            self._matrices = first, [layer.lora_B[PEFT_NAME].weight for layer in self.layers]
        return self._matrices

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns: two tensors for the whole stack once they are stacked, before that two for each layer."""
        return list(self._stacked or chain.from_iterable(zip(*self.matrices, strict=True)))

    @property
    def stacked(self) -> bool:
        """Whether the matrices are one parameter."""
        return self._stacked is not None

    def stack(self) -> None:
        """Let all first matrices be one parameter and all second ones another; PEFT's become views of them."""
        down, up = (nn.Parameter(torch.stack([_flat(each.data) for each in part])) for part in self.matrices)
        self._stacked = down, up
        self._tie()

    def to(self, device: torch.device) -> None:
        """Follow the layers to another device, in place."""
        self._forget()
        self._bases = None
        if self._stacked:
            for parameter in self._stacked:
                parameter.data = parameter.data.to(device)
            self._tie()

    def _tie(self) -> None:
        assert self._stacked is not None
        for whole, part in zip(self._stacked, self.matrices, strict=True):
            for values, each in zip(whole.data, part, strict=True):
                each.data = values.view(each.shape)
                each.requires_grad_(False)

    def thin(self, number: int, dtype: torch.dtype) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the matrices of the layers of one set: the first ones below one another, scaled, and the second ones.

        The scale is on the first, where it costs least and is rounded once.

        Returns:
            [layers * rank, in] or [layers * rank, in, kh, kw]; each [out, rank] or [out, rank, 1, 1].
        """
        begin, end = self._starts[number : number + 2]
        if not torch.is_grad_enabled():
            first, second = ([_flat(each) for each in part[begin:end]] for part in self.matrices)
            return (torch.cat(first) * self._scale).to(dtype), [each.to(dtype) for each in second]
        self._renew()
        if dtype not in self._thin:
            down, up = self._whole()
            sizes = [down.shape[1] * (after - before) for before, after in pairwise(self._starts)]
            # A view costs nothing, where a factor of 1 takes a pass over all matrices and another over their gradients.
            scaled = for_a_pass(lambda: down.view_as(down) if self._scale == 1 else down * self._scale, self._forget)
            self._thin[dtype] = scaled.to(dtype).flatten(0, 1).split(sizes), up.to(dtype).unbind()
        downs, ups = self._thin[dtype]
        return downs[number], ups[begin:end]

    def merged(self, index: int) -> Tensor:
        """Return W + s B A of one layer, float32 [out, in]. The scale is a factor of the product and costs nothing."""
        if not torch.is_grad_enabled():
            down, up = (_flat(part[index]) for part in self.matrices)
            return self._alone(index, down, up)
        self._renew()
        if self._merged:
            return self._merged[index]
        down, up = self._whole()
        if self._streamed or self.layers[index].base_layer.weight.numel() * len(self.layers) > _SHARED:
            return self._alone(index, down[index], up[index])
        bases = self._base_weights()
        made = for_a_pass(lambda: torch.baddbmm(bases, up, down, alpha=self._scale), self._forget)
        self._merged = made.unbind()
        return self._merged[index]

    @cached_property
    def _streamed(self) -> bool:
        """Whether frozen weights are there one block at a time; that is settled before the first pass."""
        return any(hasattr(layer.base_layer, "streamed") for layer in self.layers)

    def _alone(self, index: int, down: Tensor, up: Tensor) -> Tensor:
        return torch.addmm(self.layers[index].base_layer.weight.flatten(1), up, down, alpha=self._scale)

    @property
    def _scale(self) -> float:
        return float(self.layers[0].scaling[PEFT_NAME])

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Return all first and all second matrices, [layers, rank, in(, kh, kw)] and [layers, out, rank(, 1, 1)]."""
        if self._stacked:
            return self._stacked
        down, up = (torch.stack([_flat(each) for each in part]) for part in self.matrices)
        return down, up

    def _base_weights(self) -> Tensor:
        """Return the frozen weights, [layers, out, in]; the layers' own become views of it, so it takes no room."""
        weights = [layer.base_layer.weight for layer in self.layers]
        first = weights[0]
        if self._bases is None or self._bases.data_ptr() != first.data_ptr() or self._bases.dtype != first.dtype:
            self._bases = torch.stack([weight.data.flatten(1) for weight in weights])
            for weight, values in zip(weights, self._bases, strict=True):
                weight.data = values.view(weight.shape)
        return self._bases

    def _renew(self) -> None:
        """Forget what was made of matrices that have changed since; changes are of all layers at once."""
        first, second = self.matrices
        version = first[0]._version + second[0]._version
        if self._stacked:
            version += self._stacked[0]._version + self._stacked[1]._version
        mark = version, self._scale
        if mark != self._mark:
            self._forget()
            self._mark = mark

    def _forget(self, _: Tensor | None = None) -> None:
        self._mark, self._thin, self._merged = _NONE, {}, ()


def _flat(matrix: Tensor) -> Tensor:
    """Return a matrix without the 1x1 kernel that convolutions have over linear layers."""
    return matrix.flatten(1) if matrix.shape[2:] == (1, 1) else matrix
