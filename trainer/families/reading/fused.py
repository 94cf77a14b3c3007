"""Layers that are one in a model's own layout, and so under one name in LoRA files, and several in the module that we
run: query, key and value above all. They are made one again, and each of the several hands out its share of it.

So a file's name means one layer of ours, and every kind of adapter trains it as the model's authors have it: with one
first matrix for all of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn


class Shares:
    """Computes the whole layer once for each tensor that it is given, and hands out each part of the output once.

    Nothing outlives a forward pass in which every part is asked for.
    """

    def __init__(self, parent: nn.Module, name: str, widths: Sequence[int]) -> None:
        # By name: an adapter puts a layer of its own there.
        self._parent, self._name = parent, name
        self._places = [slice(*place) for place in pairwise(accumulate(widths, initial=0))]
        self._input: Tensor | None = None
        self._left: dict[int, Tensor] = {}

    def part(self, number: int, x: Tensor) -> Tensor:
        """Return one part of the layer's output for `x`."""
        if torch.compiler.is_compiling():
            return self._whole(x)[..., self._places[number]]
        if self._input is not x or number not in self._left:
            output = self._whole(x)
            self._input, self._left = x, {each: output[..., place] for each, place in enumerate(self._places)}
        part = self._left.pop(number)
        if not self._left:
            self._input = None
        return part

    def _whole(self, x: Tensor) -> Tensor:
        output: Tensor = getattr(self._parent, self._name)(x)
        return output


class Share(nn.Module):
    """Stands in the place of one of the layers. It has no weights."""

    def __init__(self, shares: Shares, number: int) -> None:
        super().__init__()
        self._shares, self._number = shares, number

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self._shares.part(self._number, x)


def fuse(module: nn.Module, paths: Sequence[str], name: str) -> nn.Linear:
    """Make linear layers that are given one and the same tensor one layer of `module`, and return it.

    Args:
        paths: of the layers, in the order that their rows have in the whole.
        name: what the whole is called in `module`; its state has the weights, and the layers' own are gone.
    """
    layers = [layer for path in paths if isinstance(layer := module.get_submodule(path), nn.Linear)]
    assert len(layers) == len(paths), "only linear layers are fused"
    first = layers[0]
    widths = [layer.out_features for layer in layers]
    device = first.weight.device
    whole = nn.Linear(first.in_features, sum(widths), first.bias is not None, device="meta", dtype=first.weight.dtype)
    for kind in ("weight", "bias") if whole.bias is not None else ("weight",):
        joined = torch.cat([getattr(layer, kind).detach() for layer in layers])
        setattr(whole, kind, nn.Parameter(joined.to(device), requires_grad=first.weight.requires_grad))
    module.add_module(name, whole)
    shares = Shares(module, name, widths)
    for number, path in enumerate(paths):
        parent, _, own = path.rpartition(".")
        setattr(module.get_submodule(parent), own, Share(shares, number))
    return whole
