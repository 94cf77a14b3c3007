"""The arithmetic of a LoCon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.adapters.layer import AdditiveLayer
from trainer.adapters.locon.spec import CORE, DOWN, UP
from trainer.adapters.lycoris import DORA

_EPS = torch.finfo(torch.float32).eps
_NIL = 1e-30


class LoconLayer(AdditiveLayer):
    """A frozen layer with a LoCon."""

    folded = (UP,)
    by_hand = (frozenset({DOWN, UP, DORA}),)
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
        factors = {entry: factor.float() for entry, factor in self.live().items()}
        down, up = factors[DOWN].flatten(1) * self.scale, self.scaled(factors[UP].flatten(1), factors)
        if (rows := self.rows()) is not None:
            up = up * rows[:, None]
        by_output = self._by_output
        ratio = factors[DORA].flatten() / (self._norms(down, up, by_output=by_output) + _EPS)
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

    def parts(self, weight: Tensor, factors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return V = W + D, [..., out, in, kh * kw], its norms, and the lengths in their shape."""
        ahead = weight.shape[:-2]
        down, up = (factors[entry].flatten(len(ahead) + 1) for entry in (DOWN, UP))
        product = torch.baddbmm if ahead else torch.addmm
        outs, ins = self.weight_shape[:2]
        whole = product(weight, up, down, alpha=self.scale).view(*ahead, outs, ins, -1)
        norm = torch.linalg.vector_norm(whole, dim=(-2, -1) if self._by_output else (-3, -1), keepdim=True)
        return whole, norm, factors[DORA].view_as(norm)

    def joined(self, weight: Tensor, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Return W' = m V / |V|."""
        whole, norm, length = parts
        seen = None if out is None else out.view_as(whole)
        return torch.mul(whole, length / (norm + _EPS), out=seen).view_as(weight)

    def pulled(self, outer: Tensor, factors: Mapping[str, Tensor], parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the gradients: with n = |V| + eps dm = sum(g V) / n, dV = g m / n - V m sum(g V) / (n^2 |V|)."""
        whole, bare, length = parts
        norm, seen = bare + _EPS, outer.reshape(whole.shape)
        shares = (seen * whole).sum((-2, -1) if self._by_output else (-3, -1), keepdim=True).div_(norm)
        # Where V is nil so are the shares, and no gradient comes of its length.
        whole.mul_(-shares * length / (norm * bare.clamp(min=_NIL)))
        inner = whole.addcmul_(seen, length / norm).view_as(outer)
        ahead = outer.dim() - 2
        down, up = (factors[entry].flatten(ahead + 1) for entry in (DOWN, UP))
        return {DOWN: (up.mT @ inner).mul_(self.scale), UP: (inner @ down.mT).mul_(self.scale), DORA: shares}

    @property
    def _by_output(self) -> bool:
        """Whether lengths are those of outputs."""
        length = self.factors[DORA]
        return length.shape[0] == self.weight_shape[0] and length.shape[1] == 1

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
