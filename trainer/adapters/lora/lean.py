"""LoRA layers that cost little more than the frozen layer under them. PEFT injects them in place of its own.

PEFT's forward makes the adapter's output, scales it and adds it: three passes over the layer's output, each with a
tensor of its own, and as many again on the way back. Here the second product is added, scaled, into the frozen layer's
output as it is made, and layers that are given the same tensor (the query, key and value of an attention) share the
product with their first matrices. Everything is computed in the dtype of the frozen weight, so that no autocast is
needed; the matrices themselves stay as they are, float32 as a rule.

What is not a plain LoRA (dropout, a variant such as DoRA, several adapters, merged or disabled ones) goes through
PEFT's forward; so does autocast to another dtype than the frozen weight's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn
from torch.nn import functional as F

PEFT_NAME = "default"

_POINT = (1, 1)

_WORTH_FEWER_CALLS = 500_000
"""Multiplications that take about as long as the calls that a merged weight saves; measured on one core."""

Shape = tuple[int, int, int]
"""Inputs, outputs and rank of an adapted layer."""


class _Lean(peft_layers.LoraLayer):
    """What linear layers and convolutions have in common: when they may leave PEFT's way, and their matrices."""

    def plain(self, x: Tensor) -> bool:
        """Say whether this layer adds up(down(x)) * scale and nothing else, in the dtype that it computes in anyway."""
        kind = x.device.type
        return (
            not (self._disable_adapters or self.merged_adapters or self.lora_variant)
            and self._active_adapter in (PEFT_NAME, [PEFT_NAME])
            and isinstance(self.lora_dropout[PEFT_NAME], nn.Identity)
            and not self.lora_bias[PEFT_NAME]
            and not (torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != self.compute_dtype(x))
        )

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """Return the frozen weight's dtype, or the input's where the weight is stored in few bits."""
        dtype: torch.dtype = self.base_layer.weight.dtype
        return dtype if dtype.is_floating_point else x.dtype

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the two matrices, [rank, in] or [rank, in, kh, kw] and [out, rank] or [out, rank, 1, 1].

        The scale is on the first, where it costs least and is rounded once.
        """
        down, up = self.lora_A[PEFT_NAME].weight * self.scaling[PEFT_NAME], self.lora_B[PEFT_NAME].weight
        return (down, up) if down.dtype == dtype else (down.to(dtype), up.to(dtype))

    def adapted_weight(self) -> Tensor:
        """Return W + s B A, float32 [out, in]; the scale is a factor of the product and costs nothing there."""
        down, up = self.lora_A[PEFT_NAME].weight.flatten(1), self.lora_B[PEFT_NAME].weight.flatten(1)
        return torch.addmm(self.base_layer.weight.flatten(1), up, down, alpha=self.scaling[PEFT_NAME])


class LeanLinear(_Lean, peft_layers.Linear):
    """A LoRA on a linear layer: y = x W^T + b + s (x A^T) B^T. Hu et al. 2021 (arXiv 2106.09685), eq. 3."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.siblings = Siblings([self])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        if args or kwargs or not self.plain(x):
            return cast(Tensor, super().forward(x, *args, **kwargs))
        base = self.base_layer
        if torch.compiler.is_compiling():
            # A compiler joins products by itself, and what siblings keep for one another would be in its way.
            down, up = self.matrices(self.compute_dtype(x))
            return cast(Tensor, base(x)) + F.linear(F.linear(x.to(down.dtype), down), up)
        if self.siblings.merge(x):
            return F.linear(x, self.adapted_weight(), base.bias)
        rows, inner, up = self.siblings.inner(self, x)
        return cast(Tensor, base(rows).addmm_(inner, up.t()).view(*x.shape[:-1], -1))


class LeanConv2d(_Lean, peft_layers.Conv2d):
    """A LoRA on a convolution. A 1x1 convolution is a matrix product with the channels of each pixel."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, in, h, w] -> [b, out, h', w']."""
        base = self.base_layer
        if args or kwargs or not self.plain(x) or base.groups != 1:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        x = x.to(self.compute_dtype(x))
        if base.kernel_size == base.stride == _POINT and base.padding == (0, 0):
            return self._point(x)
        down, up = self.matrices(x.dtype)
        return cast(Tensor, base(x)) + F.conv2d(self.lora_A[PEFT_NAME]._conv_forward(x, down, None), up)

    def _point(self, x: Tensor) -> Tensor:
        """The same for a 1x1 convolution."""
        (batch, channels, height, width), base = x.shape, self.base_layer
        shape = channels, base.out_channels, self.r[PEFT_NAME]
        if _merging_pays(batch * height * width, [shape], x.dtype):
            return F.conv2d(x, self.adapted_weight().view_as(base.weight), base.bias)
        down, up = (each.flatten(1) for each in self.matrices(x.dtype))
        output: Tensor = base(x)
        inner = down @ x.flatten(2)
        return torch.baddbmm(output.flatten(2), up.expand(batch, -1, -1), inner).view_as(output)


class Siblings:
    """Linear layers that are given the same tensor one after the other: the first one asked computes for all."""

    def __init__(self, layers: Sequence[LeanLinear]) -> None:
        self._layers = tuple(layers)
        self._merge: dict[tuple[int, torch.dtype], bool] = {}
        self._input: Tensor | None = None
        self._rows: Tensor | None = None
        self._inner: dict[int, tuple[Tensor, Tensor]] = {}

    def merge(self, x: Tensor) -> bool:
        """Say whether these layers add the matrices to their weights for a tensor of this size."""
        key = x.numel(), x.dtype
        if key not in self._merge:
            shapes = [(each.in_features, each.out_features, each.r[PEFT_NAME]) for each in self._layers]
            whole = all(type(each.base_layer) is nn.Linear for each in self._layers)
            same = all(each.base_layer.weight.dtype == x.dtype for each in self._layers)
            self._merge[key] = whole and same and _merging_pays(x.numel() // x.shape[-1], shapes, x.dtype)
        return self._merge[key]

    def inner(self, layer: LeanLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `x` as rows [n, in], their product [n, rank] with a layer's first matrix, and its second one.

        What was computed for another of the layers is handed out once, so nothing outlives a forward pass.
        """
        if self._input is not x or id(layer) not in self._inner:
            self._compute(x)
        rows, (inner, up) = self._rows, self._inner.pop(id(layer))
        if not self._inner:
            self._input = self._rows = None
        assert rows is not None, "computed just now or with a sibling"
        return rows, inner, up

    def _compute(self, x: Tensor) -> None:
        dtype = self._layers[0].compute_dtype(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        downs, ups = zip(*(layer.matrices(dtype) for layer in self._layers), strict=True)
        if len(self._layers) == 1:
            inner: Sequence[Tensor] = (F.linear(rows, downs[0]),)
        else:
            inner = F.linear(rows, torch.cat(downs)).split([len(down) for down in downs], dim=1)
        self._input, self._rows = x, rows
        self._inner = {id(layer): (part, up) for layer, part, up in zip(self._layers, inner, ups, strict=True)}


def _merging_pays(rows: int, shapes: Sequence[Shape], dtype: torch.dtype) -> bool:
    """Say whether W + s B A, made for one pass, costs less than thin products in each direction.

    Apart, each matrix is in one product forward and two backward; merged, the whole weight gets a gradient. Only in
    float32: in half precision what is small in the matrices would be lost in the sum.
    """
    apart = sum(3 * rows * rank * (inputs + outputs) for inputs, outputs, rank in shapes)
    merged = sum((rows + 3 * rank) * inputs * outputs for inputs, outputs, rank in shapes)
    return dtype == torch.float32 and merged < apart + _WORTH_FEWER_CALLS * len(shapes)
