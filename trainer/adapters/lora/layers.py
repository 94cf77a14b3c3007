"""LoRA layers that cost little more than the frozen layer under them. PEFT injects them in place of its own.

PEFT's forward makes the adapter's output, scales it and adds it: three passes over the layer's output, each with a
tensor of its own, and as many again on the way back. Here the second product is added into the frozen layer's output
as it is made, and layers that are given the same tensor (the query, key and value of an attention) share the product
with their first matrices. What is made of the matrices alone is made for all layers of one shape together. Everything
is computed in the dtype of the frozen weight, so that no autocast is needed; the matrices themselves stay as they are,
float32 as a rule.

What is not a plain LoRA (dropout, a variant such as DoRA, several adapters, merged or disabled ones) goes through
PEFT's forward; so does autocast to another dtype than the frozen weight's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.adapters.dropouts import Dropouts
from trainer.adapters.injection import PEFT_NAME
from trainer.adapters.lora import apart
from trainer.adapters.lora.stacks import Stack

_POINT = (1, 1)

_WORTH_FEWER_CALLS = 500_000
"""Multiplications that take about as long as the calls that a merged weight saves; measured on one core."""

Shape = tuple[int, int, int]
"""Inputs, outputs and rank of an adapted layer."""


class _Slim(peft_layers.LoraLayer):
    """What linear layers and convolutions have in common: when they may leave PEFT's way, and whom they go with."""

    siblings: Siblings
    index: int
    """Its place in the stack of its siblings."""
    name: str
    dropouts: Dropouts | None = None

    @classmethod
    def empty(cls, *args: Any, **kwargs: Any) -> Self:
        """Return a layer as PEFT asks for it, its matrices on "meta": what PEFT would draw for them nobody uses."""
        with torch.device("meta"):
            return cls(*args, **kwargs)

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Take an adapter as PEFT does, which may make this something else than a plain LoRA."""
        super().update_layer(*args, **kwargs)
        self.simple = (
            isinstance(self.lora_dropout[PEFT_NAME], nn.Identity)
            and not self.lora_bias[PEFT_NAME]
            and not self.lora_variant
            and getattr(self.base_layer, "groups", 1) == 1
        )

    def plain(self, x: Tensor) -> bool:
        """Say whether this layer adds up(down(x)) * scale and nothing else, in the dtype that it computes in anyway."""
        kind = x.device.type
        return (
            self.simple
            and not (self._disable_adapters or self.merged_adapters)
            and self._active_adapter in (PEFT_NAME, [PEFT_NAME])
            and (
                x.is_meta
                or not torch.is_autocast_enabled(kind)
                or torch.get_autocast_dtype(kind) == self.compute_dtype(x)
            )
        )

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """Return the frozen weight's dtype, or the input's where the weight is stored in few bits."""
        dtype: torch.dtype = self.base_layer.weight.dtype
        return dtype if dtype.is_floating_point else x.dtype

    def own(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return this layer's two matrices, the first one scaled, as PEFT has them.

        For a compiler, which joins operations by itself: what stacks and siblings keep would be in its way.
        """
        down, up = self.lora_A[PEFT_NAME].weight * self.scaling[PEFT_NAME], self.lora_B[PEFT_NAME].weight
        return down.to(dtype), up.to(dtype)

    @property
    def thins(self) -> bool:
        """Whether something is left out of the pass under way."""
        return self.dropouts is not None and self.dropouts.active

    def thinned(self, x: Tensor) -> Tensor:
        """Return the layer's output where something is left out."""
        base, dropouts = self.base_layer, self.dropouts
        assert dropouts is not None
        output: Tensor = base(x)
        if dropouts.leaves_out(self.name):
            return output
        x = x.to(self.compute_dtype(x))
        # Its own where it can: what is made for all layers together gives a gradient of 0 to those that are left out.
        down, up = self.siblings.of(self, x.dtype) if self.siblings.stack.stacked else self.own(x.dtype)
        up = up.flatten(1)
        if isinstance(base, nn.Conv2d):
            kernel = down if down.dim() == 4 else down[..., None, None]
            inner = self.lora_A[PEFT_NAME]._conv_forward(x, kernel, None)
            return output + F.conv2d(dropouts.thinned(inner, self.name, last=False), up[..., None, None])
        return output + F.linear(dropouts.thinned(F.linear(x, down), self.name, last=True), up)

    def by_peft(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what PEFT's own forward makes of it."""
        idle = self._disable_adapters or self.merged_adapters
        if self.siblings.stack.stacked and torch.is_grad_enabled() and not idle:
            raise RuntimeError("stacked matrices get no gradient through PEFT's forward")
        return cast(Tensor, super().forward(x, *args, **kwargs))


class SlimLinear(_Slim, peft_layers.Linear):
    """A LoRA on a linear layer: y = x W^T + b + s (x A^T) B^T. Hu et al. 2021 (arXiv 2106.09685), eq. 3."""

    parts: tuple[int, ...] = ()
    """The rows of each part, where its parts are trained apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        put_into_stack([[self]])

    def take_apart(self, parts: tuple[int, ...], rank: int) -> None:
        """Give each part, of so many rows, a first matrix of its own; all of them are still to be filled."""
        weight = self.lora_A[PEFT_NAME].weight
        more: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": weight.dtype}
        self.lora_A[PEFT_NAME] = nn.utils.skip_init(nn.Linear, weight.shape[1], len(parts) * rank, **more)
        self.parts = parts

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        if self.parts and not self._disable_adapters:
            return self._apart(x)
        if args or kwargs or not self.plain(x):
            return self.by_peft(x, *args, **kwargs)
        if self.thins:
            return self.thinned(x)
        base, siblings = self.base_layer, self.siblings
        if torch.compiler.is_compiling():
            down, up = self.own(self.compute_dtype(x))
            return cast(Tensor, base(x)) + F.linear(F.linear(x.to(down.dtype), down), up)
        if siblings.merge(x.numel() // x.shape[-1], x.dtype):
            return F.linear(x, siblings.stack.merged(self.index), base.bias)
        rows, inner, up = siblings.inner(self, x)
        return cast(Tensor, base(rows).addmm_(inner, up.t()).view(*x.shape[:-1], -1))

    def _apart(self, x: Tensor) -> Tensor:
        """The same, where each part has its own matrices."""
        output: Tensor = self.base_layer(x)
        if self.thins and self.dropouts is not None and self.dropouts.leaves_out(self.name):
            return output
        x = x.to(self.compute_dtype(x))
        down, up = self.own(x.dtype)
        inner = F.linear(x, down)
        if self.thins and self.dropouts is not None:
            inner = self.dropouts.thinned(inner, self.name, last=True)
        return output + apart.added(inner, up, self.parts)


class SlimConv2d(_Slim, peft_layers.Conv2d):
    """A LoRA on a convolution. A 1x1 convolution is a matrix product with the channels of each pixel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        put_into_stack([[self]])

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[b, in, h, w] -> [b, out, h', w']."""
        base = self.base_layer
        if args or kwargs or not self.plain(x):
            return self.by_peft(x, *args, **kwargs)
        if self.thins:
            return self.thinned(x)
        x = x.to(self.compute_dtype(x))
        if torch.compiler.is_compiling():
            down, up = self.own(x.dtype)
            return cast(Tensor, base(x)) + F.conv2d(self.lora_A[PEFT_NAME]._conv_forward(x, down, None), up)
        if base.kernel_size == base.stride == _POINT and base.padding == (0, 0):
            return self._point(x)
        down, (up,) = self.siblings.matrices(x.dtype)
        return cast(Tensor, base(x)) + F.conv2d(
            self.lora_A[PEFT_NAME]._conv_forward(x, down, None), up[..., None, None]
        )

    def _point(self, x: Tensor) -> Tensor:
        """The same for a 1x1 convolution."""
        (batch, _, height, width), base, siblings = x.shape, self.base_layer, self.siblings
        if siblings.merge(batch * height * width, x.dtype):
            return F.conv2d(x, siblings.stack.merged(self.index).view_as(base.weight), base.bias)
        down, (up,) = siblings.matrices(x.dtype)
        output: Tensor = base(x)
        inner = down @ x.flatten(2)
        return torch.baddbmm(output.flatten(2), up.expand(batch, -1, -1), inner).view_as(output)


Layer = SlimLinear | SlimConv2d


class Siblings:
    """Linear layers that are given the same tensor one after the other: the first one asked computes for all."""

    def __init__(self, layers: Sequence[Layer], stack: Stack, number: int) -> None:
        """Put `layers` together, which are set `number` of `stack`."""
        self.stack = stack
        self._layers, self._number = tuple(layers), number
        self._merge: dict[tuple[int, torch.dtype], bool] = {}
        self._input: Tensor | None = None
        self._rows: Tensor | None = None
        self._inner: dict[int, tuple[Tensor, Tensor]] = {}

    def merge(self, rows: int, dtype: torch.dtype) -> bool:
        """Say whether these layers add the matrices to their weights for a tensor of so many rows."""
        key = rows, dtype
        if key not in self._merge:
            first = self._layers[0]
            whole = all(type(each.base_layer) in (nn.Linear, nn.Conv2d) for each in self._layers)
            same = all(each.base_layer.weight.dtype == dtype for each in self._layers)
            shape = first.in_features, first.out_features, first.r[PEFT_NAME]
            self._merge[key] = whole and same and _merging_pays(rows, [shape] * len(self._layers), dtype)
        return self._merge[key]

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the layers' matrices as `Stack.thin` does."""
        return self.stack.thin(self._number, dtype)

    def of(self, layer: Layer | _Slim, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return one layer's two matrices, the first one scaled."""
        downs, ups = self.matrices(dtype)
        number = next(number for number, each in enumerate(self._layers) if each is layer)
        return downs.chunk(len(ups))[number], ups[number]

    def inner(self, layer: SlimLinear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
        down, ups = self.matrices(dtype)
        inner = F.linear(rows, down)
        parts = inner.chunk(len(ups), dim=1) if len(ups) > 1 else (inner,)
        self._input, self._rows = x, rows
        self._inner = {id(layer): (part, up) for layer, part, up in zip(self._layers, parts, ups, strict=True)}


def put_into_stack(sets: Sequence[Sequence[Layer]]) -> Stack:
    """Let layers of one shape and scale be made ready together; those of each set are given one and the same tensor."""
    made = Stack(sets)
    for number, layers in enumerate(sets):
        siblings = Siblings(layers, made, number)
        for layer in layers:
            layer.siblings = siblings
    for index, layer in enumerate(made.layers):
        layer.index = index
    return made


def _merging_pays(rows: int, shapes: Sequence[Shape], dtype: torch.dtype) -> bool:
    """Say whether W + s B A, made for one pass, costs less than thin products in each direction.

    Apart, each matrix is in one product forward and two backward; merged, the whole weight gets a gradient. Only in
    float32: in half precision what is small in the matrices would be lost in the sum.
    """
    apart = sum(3 * rows * rank * (inputs + outputs) for inputs, outputs, rank in shapes)
    merged = sum((rows + 3 * rank) * inputs * outputs for inputs, outputs, rank in shapes)
    return dtype == torch.float32 and merged < apart + _WORTH_FEWER_CALLS * len(shapes)
