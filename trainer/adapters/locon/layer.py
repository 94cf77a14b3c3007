"""The arithmetic of a LoCon."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.adapters.layer import AdditiveLayer
from trainer.adapters.locon.spec import CORE, DOWN, UP


class LoconLayer(AdditiveLayer):
    """A frozen layer with a LoCon."""

    folded = (UP,)

    def draw(self, entry: str, factor: Tensor, generator: torch.Generator) -> None:
        """Draw a factor from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); up is zero, unless a learned number is."""
        if entry != UP or self.scalar:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)

    def added(self, x: Tensor, factors: Mapping[str, Tensor]) -> Tensor | None:
        """Return s up(down(x)), thin products both; None with a core."""
        if CORE in factors:
            return None
        down, up = factors[DOWN] * self.scale, factors[UP]
        if isinstance(self.base_layer, nn.Conv2d):
            return F.conv2d(self.product(x, down.view(len(down), *self.weight_shape[1:])), up.view(*up.shape[:2], 1, 1))
        return F.linear(F.linear(x, down.flatten(1)), up.flatten(1))

    @classmethod
    def difference(cls, factors: Mapping[str, Tensor], scale: float) -> Tensor:
        """Return s up down, or s sum over m, n of core[m, n] up[i, m] down[n, j]."""
        down, up = factors[DOWN].flatten(1), factors[UP].flatten(1) * scale
        if CORE in factors:
            return torch.einsum("mn...,im,nj->ij...", factors[CORE], up, down)
        return up @ down
