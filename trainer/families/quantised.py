"""Frozen linear layers with 8 or 4 bits a weight, for GPUs with little memory. Adapters on them train as ever.

Weights are kept small and made whole again in each pass, forward and backward, so that nothing large is kept between.

- int8: each row in 255 even steps up to its largest magnitude.
- nf4: blocks of 64 weights in 16 steps, the quantiles of a normal distribution (Dettmers et al. 2023, "QLoRA").
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST = 1024
"""Layers with fewer weights stay as they are: they would save nothing."""

_BLOCK = 64
_INT8_STEPS = 127
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of NormalFloat4, as QLoRA's authors give them (appendix E)."""


class _Linear(torch.autograd.Function):
    """y = x W^T + b with a W that is made in each pass and never gets a gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return functional.linear(inputs, layer.whole(inputs.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.whole(gradient.dtype)).to(ctx.dtype), None


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weights are stored in few bits."""

    def __init__(self, source: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.register_buffer("bias", None if source.bias is None else source.bias.detach())
        self.store(source.weight.detach())

    @abstractmethod
    def store(self, weight: Tensor) -> None:
        """Keep a weight [out, in] in few bits."""

    @abstractmethod
    def whole(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [out, in] as it was kept."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]; differentiable in the inputs."""
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        return cast(Tensor, _Linear.apply(inputs, self))


class Int8Linear(QuantisedLinear):
    """One byte a weight, and one float32 a row."""

    scale: Tensor

    def store(self, weight: Tensor) -> None:
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _INT8_STEPS
        self.register_buffer("weight", (weight.float() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def whole(self, dtype: torch.dtype) -> Tensor:
        return (self.weight * self.scale).to(dtype)


class NF4Linear(QuantisedLinear):
    """Half a byte a weight, and one float32 for 64 of them."""

    scale: Tensor
    levels: Tensor

    def store(self, weight: Tensor) -> None:
        padded = functional.pad(weight.float().flatten(), (0, -weight.numel() % _BLOCK)).view(-1, _BLOCK)
        scale = padded.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        levels = torch.tensor(_NF4, device=weight.device)
        middles = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(padded / scale, middles).to(torch.uint8)
        self.register_buffer("weight", codes[:, ::2] << 4 | codes[:, 1::2])
        self.register_buffer("scale", scale)
        self.register_buffer("levels", levels)

    def whole(self, dtype: torch.dtype) -> Tensor:
        codes = torch.stack([self.weight >> 4, self.weight & 15], dim=-1).flatten(1).int()
        values = (self.levels[codes] * self.scale).flatten()[: self.out_features * self.in_features]
        return values.view(self.out_features, self.in_features).to(dtype)


KINDS: Mapping[str, type[QuantisedLinear]] = {"int8": Int8Linear, "nf4": NF4Linear}
"""Setting `quantize_base` -> the layer."""


def quantise(module: nn.Module, kind: str) -> None:
    """Replace the linear layers inside a frozen module, in place.

    Args:
        kind: a key of `KINDS`.
    """
    for path, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and layer.weight.numel() >= SMALLEST:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, KINDS[kind](layer))
