"""The arithmetic of an (IA)^3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

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

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or [b, in, h, w] -> [b, out, h', w']."""
        if self.left_out():
            return cast(Tensor, self.base_layer(x))
        x = x.to(self.compute_dtype(x))
        weight = (self.factors[WEIGHT].flatten() * self.strength).to(x.dtype)
        if isinstance(self.base_layer, nn.Conv2d):
            weight = weight[:, None, None]
        if self.on_input:
            return cast(Tensor, self.base_layer(x * (1 + weight)))
        plain, bias = self.plain(x), self.bias()
        if x.dtype == torch.float32 and isinstance(bias, Tensor):
            return torch.addcmul(bias, plain, 1 + weight)
        # In half precision 1 and a little is 1.
        return plain * (1 + weight) if x.dtype == torch.float32 else plain + plain * weight + bias
