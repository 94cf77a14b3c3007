"""Frozen layers with 8 or 4 bits a weight, for GPUs with little memory. Adapters on them train as ever.

Weights are kept small and made whole again in each pass, forward and backward, so that nothing large is kept between.

- int8: each row in 255 even steps up to its largest magnitude. Columns that are small beside that in every row, as they
  are where what comes in is large (Xiao et al. 2023, "SmoothQuant"), are enlarged by a power of two first.
- fp8: each row, scaled to the whole range, as 8-bit floats with 3 bits of mantissa (Micikevicius et al. 2022).
- nf4: blocks of 32 weights in 16 steps, the quantiles of a normal distribution (Dettmers et al. 2023, "QLoRA"), with
  half the block and half the precision of the scale that the paper has, and the scale that fits the block best.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from trainer.families.reading.weights import keep_whole

SMALLEST = 1024
"""Layers with fewer weights stay as they are: they would save nothing."""

_BLOCK = 32
_SHARES = (1.0, 0.9, 0.8)
"""Scales tried for a block, as shares of its largest magnitude: one weight cut off may be worth finer steps."""
_INT8_STEPS = 127
_EVEN, _LEAST = 0.25, 2.0**-20
"""The share of its row that a column must have somewhere to be left as it is, and the least that is told apart."""
_OF_CONVOLUTIONS = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("transposed", "output_padding", "_reversed_padding_repeated_twice"),
)
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of NormalFloat4, as QLoRA's authors give them (appendix E)."""


class Code(ABC):
    """How weights are kept. Rows are float32 [out, n]; a convolution's have n = in * kh * kw."""

    fine: ClassVar[bool] = False
    """Whether convolutions are kept so too: they have a tenth of a UNet's weights, and suffer most from coarse ones."""

    @abstractmethod
    def kept(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Return what is kept of a layer's rows, by name, the codes as "weight": never of an unsigned dtype, by which
        transformers' T5 would cast what comes in."""

    @abstractmethod
    def rows(self, kept: Mapping[str, Tensor], size: int) -> Tensor:
        """Return the rows as they were kept, float32; `size` is out * n."""


class Int8(Code):
    """One byte a weight, one float32 a row, and where columns are uneven one a column."""

    fine = True

    def kept(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Return codes, scales of rows, and where it is of use of columns."""
        largest = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        columns = _columns(rows, largest)
        scale = largest / _INT8_STEPS
        even = rows if columns is None else rows / columns
        kept = {"weight": (even / scale).round().to(torch.int8), "scale": scale}
        return kept if columns is None else {**kept, "columns": columns}

    def rows(self, kept: Mapping[str, Tensor], size: int) -> Tensor:
        """Return codes times scales."""
        rows = kept["weight"] * kept["scale"]
        return rows * kept["columns"] if "columns" in kept else rows


def _columns(rows: Tensor, largest: Tensor) -> Tensor | None:
    """Return powers of two, [1, n], by which columns can be divided without any row becoming larger; None where all are
    about as large as their rows."""
    if rows.is_meta:
        return None
    shares = (rows.abs() / largest).amax(dim=0, keepdim=True)
    if bool(shares.min() > _EVEN):
        return None
    return torch.exp2(shares.clamp(min=_LEAST).log2().ceil())


class FP8(Code):
    """One byte a weight, and one float32 a row. Stored, not computed in, so the bytes go by the name of integers."""

    def kept(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Return codes and scales."""
        largest = torch.finfo(torch.float8_e4m3fn).max
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
        return {"weight": (rows / scale).to(torch.float8_e4m3fn).view(torch.int8), "scale": scale}

    def rows(self, kept: Mapping[str, Tensor], size: int) -> Tensor:
        """Return floats times scales."""
        return kept["weight"].view(torch.float8_e4m3fn).float() * kept["scale"]


class NF4(Code):
    """Half a byte a weight, and one float16 for 32 of them."""

    def kept(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Return codes, scales and the levels that codes stand for."""
        blocks = functional.pad(rows.flatten(), (0, -rows.numel() % _BLOCK)).view(-1, _BLOCK)
        largest = blocks.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float16).tiny)
        levels = torch.tensor(_NF4, device=rows.device)
        middles = (levels[1:] + levels[:-1]) / 2
        scales = [(largest * share).half() for share in _SHARES]
        tried = [torch.bucketize(blocks / scale, middles).to(torch.uint8) for scale in scales]
        missed = [
            (levels[codes.int()] * scale - blocks).square().sum(dim=1)
            for codes, scale in zip(tried, scales, strict=True)
        ]
        best, places = torch.stack(missed).argmin(dim=0), torch.arange(len(blocks), device=rows.device)
        codes = torch.stack(tried)[best, places]
        pairs = codes[:, ::2] << 4 | codes[:, 1::2]
        return {"weight": pairs.view(torch.int8), "scale": torch.stack(scales)[best, places], "levels": levels}

    def rows(self, kept: Mapping[str, Tensor], size: int) -> Tensor:
        """Return levels times scales."""
        pairs = kept["weight"].view(torch.uint8)
        codes = torch.stack([pairs >> 4, pairs & 15], dim=-1).flatten(1).int()
        return (kept["levels"][codes] * kept["scale"]).flatten()[:size]


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


class _Conv2d(torch.autograd.Function):
    """The same for a convolution."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantisedConv2d) -> Tensor:
        ctx.layer, ctx.dtype, ctx.shape = layer, inputs.dtype, inputs.shape
        return functional.conv2d(inputs, layer.whole(inputs.dtype), layer.bias, *layer.steps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), layer = gradients, ctx.layer
        made = conv2d_input(ctx.shape, layer.whole(gradient.dtype), gradient, *layer.steps)
        return made.to(ctx.dtype), None


class Quantised(nn.Module):
    """A frozen layer whose weights are kept in few bits. Not made for itself: a linear layer or a convolution is."""

    code: Code
    shape: tuple[int, ...]

    def keep(self, source: nn.Linear | nn.Conv2d, code: Code) -> None:
        """Take a layer's place."""
        self.code, self.shape = code, tuple(source.weight.shape)
        self.register_buffer("bias", None if source.bias is None else source.bias.detach())
        self.store(source.weight.detach())

    def store(self, weight: Tensor) -> None:
        """Keep a weight [out, in] or [out, in, kh, kw] in few bits."""
        self._buffers.pop("columns", None)
        for name, value in self.code.kept(weight.flatten(1).float()).items():
            # PEFT asks a convolution's weight for its dimensions.
            whole = name == "weight" and value.numel() == weight.numel()
            self.register_buffer(name, value.view(self.shape) if whole else value)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as it was kept."""
        kept = {name: value for name, value in self._buffers.items() if value is not None}
        kept["weight"] = kept["weight"].flatten(1)
        return self.code.rows(kept, math.prod(self.shape)).view(self.shape).to(dtype)


class QuantisedLinear(Quantised, nn.Linear):
    """A frozen linear layer whose weights are kept in few bits."""

    def __init__(self, source: nn.Linear, code: Code) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.keep(source, code)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] -> [..., out]; differentiable in the inputs."""
        return cast(Tensor, _Linear.apply(_cast(inputs), self))


class QuantisedConv2d(Quantised, nn.Conv2d):
    """A frozen convolution, of all channels and with zeros around, whose weights are kept in few bits."""

    def __new__(cls, source: Any, *rest: Any, **named: Any) -> Any:  # type: ignore[misc]
        """Return a plain convolution for numbers of channels: PEFT makes a LoRA's by the class of the frozen one."""
        return super().__new__(cls) if isinstance(source, nn.Module) else nn.Conv2d(source, *rest, **named)

    def __init__(self, source: nn.Conv2d, code: Code) -> None:
        nn.Module.__init__(self)
        for name in _OF_CONVOLUTIONS:
            setattr(self, name, getattr(source, name))
        self.keep(source, code)

    @property
    def steps(self) -> tuple[Any, ...]:
        """Stride, padding, dilation."""
        return self.stride, self.padding, self.dilation

    def forward(self, inputs: Tensor) -> Tensor:
        """[b, in, h, w] -> [b, out, h', w']; differentiable in the inputs."""
        return cast(Tensor, _Conv2d.apply(_cast(inputs), self))


def _cast(inputs: Tensor) -> Tensor:
    """Return what comes in as autocast wants it."""
    if not inputs.is_meta and torch.is_autocast_enabled(inputs.device.type):
        return inputs.to(torch.get_autocast_dtype(inputs.device.type))
    return inputs


KINDS: Mapping[str, Code] = {"int8": Int8(), "fp8": FP8(), "nf4": NF4()}
"""Setting `quantize_base` -> how weights are kept."""


def quantised(layer: nn.Module, kind: str) -> nn.Module:
    """Return a linear layer, and where the kind is fine enough a convolution, with its weights in few bits; any other
    layer, or a small one, as it is.

    Args:
        kind: a key of `KINDS`.
    """
    if type(layer) is nn.Linear and layer.weight.numel() >= SMALLEST:
        return QuantisedLinear(layer, KINDS[kind])
    if type(layer) is nn.Conv2d and layer.weight.numel() >= SMALLEST and KINDS[kind].fine and _is_plain(layer):
        return QuantisedConv2d(layer, KINDS[kind])
    return layer


def quantising(small: Collection[str], kind: str, component: str) -> Callable[[nn.Module], nn.Module]:
    """Return what is made of each layer of a component as it is loaded.

    Args:
        small: the components whose weights are kept in few bits.
        kind: a key of `KINDS`; anything where `small` has nothing.
    """
    return partial(quantised, kind=kind) if component in small else keep_whole


def _is_plain(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
