"""The arithmetic of a LoCon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.adapters.layer import AdditiveLayer
from trainer.adapters.locon.spec import CORE, DOWN, UP
from trainer.adapters.lycoris import DORA


class LoconLayer(AdditiveLayer):
    """A frozen layer with a LoCon."""

    folded = (UP,)
    _kept: tuple[object, Tensor] | None = None

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

    def lengthened(self, x: Tensor) -> Tensor | None:
        """Return the layer's output with lengths, of thin products alone; None with a core.

        With W' = (W + D) / |W + D| m the lengths m / |W + D| are those of inputs or of outputs, which are multiplied by
        them. The norms need no D either: |W + D|^2 = |W|^2 + 2 W.D + |D|^2, where W.D and |D|^2 are sums over ranks.
        In half precision what lengths differ from 1 by is multiplied apart, since 1 and a little is 1 there.
        """
        factors = {entry: factor.float() for entry, factor in self.factors.items()}
        if CORE in factors:
            return None
        down, up = factors[DOWN].flatten(1) * self.scale, self.scaled(factors[UP].flatten(1), factors)
        if (rows := self.rows()) is not None:
            up = up * rows[:, None]
        length = factors[DORA]
        by_output = length.shape[0] == self.weight_shape[0] and length.shape[1] == 1
        ratio = length.flatten() / (self._norms(down, up, by_output=by_output) + torch.finfo(torch.float32).eps)
        if by_output:
            plain, thin = self.plain(x), self._thinly(x, down.to(x.dtype), up.to(x.dtype))
            return self._times(plain + thin, ratio, of_outputs=True) + self.bias()
        places = math.prod(self.weight_shape[2:])
        thin = self._thinly(x, (down * ratio.repeat_interleave(places)).to(x.dtype), up.to(x.dtype))
        if x.dtype == torch.float32:
            return cast(Tensor, self.base_layer(self._times(x, ratio, of_outputs=False))) + thin
        return cast(Tensor, self.base_layer(x)) + self.plain(self._times(x, ratio - 1, of_outputs=False)) + thin

    def _times(self, values: Tensor, ratio: Tensor, *, of_outputs: bool) -> Tensor:
        """Return the channels of `values` times `ratio`; outputs in half precision by what it differs from 1 by."""
        channels = ratio[:, None, None] if isinstance(self.base_layer, nn.Conv2d) else ratio
        if of_outputs and values.dtype != torch.float32:
            return values + values * (channels - 1).to(values.dtype)
        return values * channels.to(values.dtype)

    def _thinly(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Return up(down(x)); down [rank, in * kh * kw], up [out, rank]."""
        if isinstance(self.base_layer, nn.Conv2d):
            return F.conv2d(self.product(x, down.view(len(down), *self.weight_shape[1:])), up[..., None, None])
        return F.linear(F.linear(x, down), up)

    def _norms(self, down: Tensor, up: Tensor, *, by_output: bool) -> Tensor:
        """Return |W + up down|, float32 [out] or [in]."""
        weight = self.weight().flatten(1)
        squares = self._squares(weight, by_output=by_output)
        if by_output:
            sums = (up * (2 * weight @ down.t() + up @ (down @ down.t()))).sum(1)
        else:
            sums = (down * (2 * up.t() @ weight + (up.t() @ up) @ down)).sum(0)
            sums = sums.view(-1, math.prod(self.weight_shape[2:])).sum(1)
        return (squares + sums).clamp(min=0).sqrt()

    def _squares(self, weight: Tensor, *, by_output: bool) -> Tensor:
        """Return |W|^2 by output or input; kept, since W is frozen."""
        base = cast(Tensor, self.base_layer.weight)
        mark = base.data_ptr(), base._version, base.device
        if self._kept is None or self._kept[0] != mark:
            squares = weight.square()
            squares = squares.sum(1) if by_output else squares.sum(0).view(-1, math.prod(self.weight_shape[2:])).sum(1)
            self._kept = mark, squares
        return self._kept[1]

    @classmethod
    def difference(cls, factors: Mapping[str, Tensor], scale: float) -> Tensor:
        """Return s up down, or s sum over m, n of core[m, n] up[i, m] down[n, j]."""
        down, up = factors[DOWN].flatten(1), factors[UP].flatten(1) * scale
        if CORE in factors:
            return torch.einsum("mn...,im,nj->ij...", factors[CORE], up, down)
        return up @ down
