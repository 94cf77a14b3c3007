"""The arithmetic of a LoKr."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.injection import ratio_to
from trainer.adapters.layer import AdditiveLayer, Pull
from trainer.adapters.loha.layer import tucker
from trainer.adapters.lokr.spec import ALL, CORE, LARGE, LARGE_DOWN, LARGE_UP, SMALL, SMALL_DOWN, SMALL_UP
from trainer.adapters.lycoris import DORA
from trainer.targets import Target

_NIL_AT_THE_START = (LARGE, LARGE_DOWN)

_SMALL_PRODUCTS = 2
"""How much more a multiplication costs in many small products than in one large one."""
_WORTH_FEWER_CALLS = 500_000
"""Multiplications that take about as long as the calls that a merged weight saves."""


class LokrLayer(AdditiveLayer):
    """A frozen layer with a LoKr. The product with D is made of products with w2 and w1, without D."""

    folded = (SMALL, SMALL_UP)

    def __init__(self, base: nn.Module, spec: AdapterSpec, target: Target) -> None:
        super().__init__(base, spec, target)
        if {SMALL, LARGE} <= self.factors.keys():
            # Readers of files take no alpha where both matrices are whole: a scale is part of w1 there.
            self.constant = self.scale
        self._small = tuple(
            (self.factors[SMALL] if SMALL in self.factors else self.factors[SMALL_UP] @ self.factors[SMALL_DOWN]).shape
        )

    def draw(self, entry: str, factor: Tensor, generator: torch.Generator) -> None:
        """Draw a factor from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); w2 is zero, unless a learned number is."""
        if entry not in _NIL_AT_THE_START or self.scalar:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)

    def limit_norm(self, most: float) -> None:
        """Scale every factor alike, so that D, without a number that is learned, has a norm of at most `most`."""
        factors = {entry: factor.float() for entry, factor in self.factors.items() if entry in ALL}
        small, large = _matrices(factors)
        ratio = ratio_to(small.norm() * large.norm() * self.scale, most)
        for entry in factors:
            self.factors[entry].mul_(ratio ** (1 / len(factors)))

    def added(self, x: Tensor, factors: Mapping[str, Tensor]) -> Tensor | None:
        """Return s (w1 x w2) of inputs seen as c groups of d channels; None where W + D costs less."""
        if self._merging_pays(x):
            return None
        small, large = self._seen(factors)
        (outer, groups), channels = small.shape, large.shape[1]
        if isinstance(self.base_layer, nn.Conv2d):
            inner = self.product(x.reshape(-1, channels, *x.shape[2:]), large.contiguous())
            mixed = torch.matmul(small, inner.reshape(len(x), groups, -1))
            return mixed.view(len(x), outer * large.shape[0], *inner.shape[2:])
        inner = x.reshape(-1, groups, channels) @ large.t()
        return torch.matmul(small, inner).reshape(*x.shape[:-1], -1)

    def _merging_pays(self, x: Tensor) -> bool:
        """Say whether W + D, made for one pass, costs less than products with w2 and w1, many of which are small.

        Merged, the whole weight gets a gradient. Only in float32, as for a LoRA.
        """
        if x.dtype != torch.float32 or type(self.base_layer) not in (nn.Linear, nn.Conv2d):
            return False
        outs, inputs = self.weight_shape[0], math.prod(self.weight_shape[1:])
        a, c = self._small
        rows = x.numel() // (self.weight_shape[1])
        apart = 3 * rows * (inputs * (outs // a) + outs * c)
        return rows * outs * inputs < _SMALL_PRODUCTS * apart + _WORTH_FEWER_CALLS

    def made(self, values: Sequence[Tensor], rows: Tensor | None) -> Tensor:
        """Return W + D, in one pass over W where there is nothing else."""
        if DORA in self._names or not self.is_plain(self._names, rows) or self.scalar:
            return super().made(values, rows)
        small, large = _matrices({entry: value.float() for entry, value in zip(self._names, values, strict=True)})
        return self._joined(small, large.flatten(1))

    def pull(self, values: Sequence[Tensor], rows: Tensor | None) -> tuple[Tensor, Pull]:
        """Return W + D and what gives the factors' gradients; by hand from W to w1 and w2."""
        if DORA in self._names or not self.is_plain(self._names, rows) or self.scalar:
            return super().pull(values, rows)
        with torch.enable_grad():
            factors = [value.detach().float().requires_grad_() for value in values]
            small, large = _matrices(dict(zip(self._names, factors, strict=True)))
            large = large.flatten(1)

        def pulled(outer: Tensor) -> Sequence[Tensor]:
            (a, c), (b, d) = small.shape, large.shape
            seen = outer.reshape(a, b, c, d)
            left, right = small.detach()[:, None, :, None], large.detach()[None, :, None, :]
            of_small = (seen * right).sum((1, 3)).mul_(self.scale)
            of_large = (seen * left).sum((0, 2)).mul_(self.scale)
            found = torch.autograd.grad((small, large), factors, (of_small, of_large))
            return [each.to(value.dtype) for each, value in zip(found, values, strict=True)]

        return self._joined(small.detach(), large.detach()), pulled

    def _joined(self, small: Tensor, large: Tensor) -> Tensor:
        """Return W + s kron(w1, w2); w2 [b, d * kh * kw]."""
        weight = self.weight()
        seen = weight.reshape(len(small), len(large), small.shape[1], large.shape[1])
        return torch.addcmul(seen, small[:, None, :, None], large[None, :, None, :], value=self.scale).view_as(weight)

    @classmethod
    def difference(cls, factors: Mapping[str, Tensor], scale: float) -> Tensor:
        """Return s kron(w1, w2), [out, in * kh * kw]: places of the kernel go with the channels of w2."""
        small, large = _matrices(factors)
        return torch.kron(small * scale, large.flatten(1).contiguous())

    @classmethod
    def norm_of(cls, factors: Mapping[str, Tensor], alpha: float, rank: int) -> float:
        """Return the norm of D, which is the product of the norms of w1 and w2."""
        small, large = _matrices(factors)
        return float(small.norm() * large.norm()) * (alpha / rank if rank else 1.0)

    def _seen(self, factors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return s w1 [a, c] and w2 [b, d(, kh, kw)]."""
        small, large = _matrices(factors)
        return small * self.scale, large.reshape(large.shape[0], -1, *self.weight_shape[2:])


def _matrices(factors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return w1 [a, c] and w2 [b, ...]."""
    small = factors[SMALL] if SMALL in factors else factors[SMALL_UP] @ factors[SMALL_DOWN]
    if LARGE in factors:
        return small, factors[LARGE]
    if CORE in factors:
        return small, tucker(factors[CORE], factors[LARGE_UP], factors[LARGE_DOWN])
    return small, factors[LARGE_UP] @ factors[LARGE_DOWN]
