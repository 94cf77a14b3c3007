"""Frozen linear layers with 8 or 4 bits a weight, for GPUs with little memory. Adapters on them train as ever.

Weights are kept small and made whole again in each pass, forward and backward, so that nothing large is kept between.

- int8: each row in 255 even steps up to its largest magnitude.
- fp8: each row, scaled to the whole range, as 8-bit floats with 3 bits of mantissa (Micikevicius et al. 2022).
- nf4: blocks of 32 weights in 16 steps, the quantiles of a normal distribution (Dettmers et al. 2023, "QLoRA"), with
  half the block and half the precision of the scale that the paper has, and the scale that fits the block best.
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

_BLOCK = 32
_SHARES = (1.0, 0.9, 0.8)
"""Scales tried for a block, as shares of its largest magnitude: one weight cut off may be worth finer steps."""
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
        if not inputs.is_meta and torch.is_autocast_enabled(inputs.device.type):
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


class FP8Linear(QuantisedLinear):
    """One byte a weight, and one float32 a row. Stored, not computed in, so the bytes go by the name of integers."""

    scale: Tensor

    def store(self, weight: Tensor) -> None:
        largest = torch.finfo(torch.float8_e4m3fn).max
        scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
        self.register_buffer("weight", (weight.float() / scale).to(torch.float8_e4m3fn).view(torch.uint8))
        self.register_buffer("scale", scale)

    def whole(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.view(torch.float8_e4m3fn).float() * self.scale).to(dtype)


class NF4Linear(QuantisedLinear):
    """Half a byte a weight, and one float16 for 32 of them."""

    scale: Tensor
    levels: Tensor

    def store(self, weight: Tensor) -> None:
        blocks = functional.pad(weight.float().flatten(), (0, -weight.numel() % _BLOCK)).view(-1, _BLOCK)
        largest = blocks.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float16).tiny)
        levels = torch.tensor(_NF4, device=weight.device)
        middles = (levels[1:] + levels[:-1]) / 2
        scales = [(largest * share).half() for share in _SHARES]
        tried = [torch.bucketize(blocks / scale, middles).to(torch.uint8) for scale in scales]
        missed = [
            (levels[codes.int()] * scale - blocks).square().sum(dim=1)
            for codes, scale in zip(tried, scales, strict=True)
        ]
        best, rows = torch.stack(missed).argmin(dim=0), torch.arange(len(blocks), device=weight.device)
        codes = torch.stack(tried)[best, rows]
        self.register_buffer("weight", codes[:, ::2] << 4 | codes[:, 1::2])
        self.register_buffer("scale", torch.stack(scales)[best, rows])
        self.register_buffer("levels", levels)

    def whole(self, dtype: torch.dtype) -> Tensor:
        codes = torch.stack([self.weight >> 4, self.weight & 15], dim=-1).flatten(1).int()
        values = (self.levels[codes] * self.scale).flatten()[: self.out_features * self.in_features]
        return values.view(self.out_features, self.in_features).to(dtype)


KINDS: Mapping[str, type[QuantisedLinear]] = {"int8": Int8Linear, "fp8": FP8Linear, "nf4": NF4Linear}
"""Setting `quantize_base` -> the layer."""


def quantised(layer: nn.Module, kind: str) -> nn.Module:
    """Return a linear layer with its weights in few bits, and any other layer, or a small one, as it is.

    Args:
        kind: a key of `KINDS`.
    """
    if type(layer) is nn.Linear and layer.weight.numel() >= SMALLEST:
        return KINDS[kind](layer)
    return layer
