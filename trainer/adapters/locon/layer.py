"""The arithmetic of a LoCon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.adapters.layer import AdditiveLayer, Pull
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
        """Return the layer's output with lengths, of thin products alone; None with a core, and in float32.

        With W' = (W + D) / |W + D| m the lengths m / |W + D| are those of inputs or of outputs, which are multiplied by
        them. The norms need no D either: |W + D|^2 = |W|^2 + 2 W.D + |D|^2, where W.D and |D|^2 are sums over ranks.
        What lengths differ from 1 by is multiplied apart, since in half precision 1 and a little is 1. In float32 one
        product with W' costs less than those with W, down and up.
        """
        if x.dtype == torch.float32 or CORE in self._names:
            return None
        factors = {entry: factor.float() for entry, factor in self.factors.items()}
        down, up = factors[DOWN].flatten(1) * self.scale, self.scaled(factors[UP].flatten(1), factors)
        if (rows := self.rows()) is not None:
            up = up * rows[:, None]
        length = factors[DORA]
        by_output = length.shape[0] == self.weight_shape[0] and length.shape[1] == 1
        ratio = length.flatten() / (self._norms(down, up, by_output=by_output) + torch.finfo(torch.float32).eps)
        if by_output:
            plain, thin = self.plain(x), self._thinly(x, down.to(x.dtype), up.to(x.dtype))
            outputs = plain + thin
            return outputs + self._times(outputs, ratio - 1) + self.bias()
        places = math.prod(self.weight_shape[2:])
        thin = self._thinly(x, (down * ratio.repeat_interleave(places)).to(x.dtype), up.to(x.dtype))
        return cast(Tensor, self.base_layer(x)) + self.plain(self._times(x, ratio - 1)) + thin

    def _times(self, values: Tensor, channels: Tensor) -> Tensor:
        """Return the channels of `values`, each times its number."""
        shaped = channels[:, None, None] if isinstance(self.base_layer, nn.Conv2d) else channels
        return values * shaped.to(values.dtype)

    def made(self, values: Sequence[Tensor], rows: Tensor | None) -> Tensor:
        """Return W'; with lengths and without a core in three passes over W."""
        if not self.is_plain((DOWN, UP, DORA), rows):
            return super().made(values, rows)
        whole, _, norm, length = self._lengths(values)
        return whole.mul_(length.view_as(norm) / norm)

    def pull(self, values: Sequence[Tensor], rows: Tensor | None) -> tuple[Tensor, Pull]:
        """Return W' and what gives the factors' gradients; by hand with lengths and without a core."""
        if not self.is_plain((DOWN, UP, DORA), rows):
            return super().pull(values, rows)
        whole, bare, norm, length = self._lengths(values)
        length = length.view_as(norm)
        factors = dict(zip(self._names, values, strict=True))
        down, up = factors[DOWN].float().flatten(1), factors[UP].float().flatten(1)

        def pulled(outer: Tensor) -> Sequence[Tensor]:
            # Of W' = m V / n with n = |V| + eps: dm = sum(g V) / n, dV = g m / n - V m sum(g V) / (n^2 |V|).
            others = [dim for dim in range(whole.dim()) if norm.shape[dim] == 1]
            shares = (outer * whole).sum(others, keepdim=True) / norm
            inner = torch.addcmul(outer * (length / norm), whole, shares * length / (norm * bare), value=-1).flatten(1)
            found = {
                DOWN: (up.t() @ inner).mul_(self.scale),
                UP: (inner @ down.t()).mul_(self.scale),
                DORA: shares,
            }
            return [found[entry].view(value.shape).to(value.dtype) for entry, value in factors.items()]

        return whole * (length / norm), pulled

    def _lengths(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return V = W + D, its norms, the same plus eps, and the lengths, float32."""
        factors = {entry: value.float() for entry, value in zip(self._names, values, strict=True)}
        weight, down, up = self.weight(), factors[DOWN].flatten(1), factors[UP].flatten(1)
        whole = torch.addmm(weight.flatten(1), up, down, alpha=self.scale).view_as(weight)
        bare = self._norm(whole, factors[DORA])
        return whole, bare, bare + torch.finfo(torch.float32).eps, factors[DORA]

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
