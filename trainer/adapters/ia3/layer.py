"""The arithmetic of an (IA)^3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.ia3.spec import ON_INPUT, WEIGHT
from trainer.adapters.layer import AdaptedLayer
from trainer.targets import Target


class Ia3Layer(AdaptedLayer):
    """A frozen layer whose inputs, or outputs before the bias, are multiplied channel by channel; 1 at the start."""

    fixed = (ON_INPUT,)

    def __init__(self, base: nn.Module, spec: AdapterSpec, target: Target) -> None:
        super().__init__(base, spec, target)
        channels = self.factors[WEIGHT].numel()
        given = getattr(spec, "train_on_input", False)
        self.square = target.in_features == target.out_features
        self.on_input = given if self.square else channels == target.in_features

    @classmethod
    def norm_of(cls, factors: Mapping[str, Tensor], alpha: float, rank: int) -> float:
        """Return the norm of what the channels are multiplied by, without 1."""
        return float(factors[WEIGHT].norm())

    def constants(self) -> dict[str, float]:
        """Return which channels the weight is for: 1 = the inputs."""
        return {ON_INPUT: float(self.on_input)}

    def take(self, constants: Mapping[str, float]) -> None:
        """Take over which channels the weight is for, where shapes don't say it."""
        if ON_INPUT in constants and self.square:
            self.on_input = bool(constants[ON_INPUT])

    def whole(self, strength: float) -> Tensor:
        """Return W with its rows or columns multiplied."""
        weight, channels = self.weight(), 1 + self.factors[WEIGHT].float().flatten() * strength
        shape = [1] * weight.dim()
        shape[1 if self.on_input else 0] = -1
        return weight * channels.view(shape)

    def prepare(self, factors: Mapping[str, Tensor]) -> Tensor:
        """Return what channels are multiplied by, less 1 if not in float32, in a shape that fits the layer's data."""
        weight = factors[WEIGHT].float()
        weight = weight.flatten(weight.dim() - self.factors[WEIGHT].dim())
        weight = weight if self.strength == 1.0 else weight * self.strength
        weight = weight[..., None, None] if isinstance(self.base_layer, nn.Conv2d) else weight
        return weight + 1 if self._whole else weight

    @property
    def _whole(self) -> bool:
        """Whether channels are multiplied by 1 and a little in one; in half precision that is 1."""
        return cast(Tensor, self.base_layer.weight).dtype == torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or [b, in, h, w] -> [b, out, h', w']."""
        if self.left_out():
            return cast(Tensor, self.base_layer(x))
        x = x.to(self.compute_dtype(x))
        channels = self.ready().to(x.dtype)
        if self.on_input:
            return cast(Tensor, self.base_layer(x * (channels if self._whole else 1 + channels)))
        if self._whole and type(self.base_layer) is nn.Linear and not torch.compiler.is_compiling():
            return cast(Tensor, _Scaled.apply(x, channels, self))
        plain, bias = self.plain(x), self.bias()
        return plain * channels + bias if self._whole else plain + plain * channels + bias


class _Scaled(torch.autograd.Function):
    """Outputs of a linear layer times channels, and its bias, with no more made on the way back than must be.

    PyTorch's own gradient of `addcmul` multiplies all outputs by one first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels: Tensor, layer: Ia3Layer) -> Tensor:
        ctx.base, plain, bias = layer.base_layer, layer.plain(x), layer.bias()
        ctx.save_for_backward(plain, channels)
        return torch.addcmul(bias, plain, channels) if isinstance(bias, Tensor) else plain * channels

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (plain, channels) = gradients, ctx.saved_tensors
        weight, inner = ctx.base.weight, None
        if ctx.needs_input_grad[0]:
            many = gradient.numel() > weight.numel()
            inner = gradient @ (weight * channels[:, None]) if many else (gradient * channels) @ weight
        # What was kept is of no more use: a second pass would say so.
        return inner, plain.mul_(gradient).view(-1, len(channels)).sum(0), None
