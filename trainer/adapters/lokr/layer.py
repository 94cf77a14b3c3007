"""The arithmetic of a LoKr."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.injection import ratio_to
from trainer.adapters.layer import AdditiveLayer
from trainer.adapters.loha.layer import tucker
from trainer.adapters.lokr.spec import ALL, CORE, LARGE, LARGE_DOWN, LARGE_UP, SMALL, SMALL_DOWN, SMALL_UP
from trainer.targets import Target

_NIL_AT_THE_START = (LARGE, LARGE_DOWN)

_PASSES = 2.5
"""How much more a multiplication costs in products of small matrices, with what turns their results round."""
_MAKING = 50
"""Multiplications that take about as long as to make a number of W + D and to use its gradient; on one core."""


class LokrLayer(AdditiveLayer):
    """A frozen layer with a LoKr. The product with D is made of products with w2 and w1, without D."""

    folded = (SMALL, SMALL_UP)
    by_hand = tuple(
        small | large
        for small in (frozenset({SMALL}), frozenset({SMALL_UP, SMALL_DOWN}))
        for large in (frozenset({LARGE}), frozenset({LARGE_UP, LARGE_DOWN}))
    )

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
        # Two large products, not one small one for each row.
        inner = (x.reshape(-1, channels) @ large.t()).view(-1, groups, len(large))
        mixed = small @ inner.transpose(0, 1).reshape(groups, -1)
        return mixed.view(outer, -1, len(large)).transpose(0, 1).reshape(*x.shape[:-1], -1)

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
        return (rows + _MAKING) * outs * inputs < _PASSES * apart

    def parts(self, weight: Tensor, factors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return w1 [..., a, c] and w2 [..., b, d * kh * kw]."""
        small, large = _matrices(factors)
        return small, large.flatten(weight.dim() - 1)

    def joined(self, weight: Tensor, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Return W + s kron(w1, w2), in one pass over W with long rows."""
        small, large = parts
        (a, c), (b, d) = small.shape[-2:], large.shape[-2:]
        ahead = weight.shape[:-2]
        left = small[..., None].expand(*ahead, a, c, d).reshape(*ahead, a, 1, c * d)
        right = large[..., None, :].expand(*ahead, b, c, d).reshape(*ahead, 1, b, c * d)
        seen = None if out is None else out.view(*ahead, a, b, c * d)
        made = torch.addcmul(weight.reshape(*ahead, a, b, c * d), left, right, value=self.scale, out=seen)
        return made.view_as(weight)

    def pulled(self, outer: Tensor, factors: Mapping[str, Tensor], parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the factors: with W' as rows of a c and columns of b d they are two products."""
        small, large = parts
        (a, c), (b, d) = small.shape[-2:], large.shape[-2:]
        ahead = outer.shape[:-2]
        turned = outer.reshape(*ahead, a, b, c, d).transpose(-2, -3).reshape(*ahead, a * c, b * d)
        of_small = (turned @ large.reshape(*ahead, b * d, 1)).view(*ahead, a, c).mul_(self.scale)
        of_large = (small.reshape(*ahead, 1, a * c) @ turned).view(*ahead, b, d).mul_(self.scale)
        found = {}
        for whole, up, down, of_whole in (
            (SMALL, SMALL_UP, SMALL_DOWN, of_small),
            (LARGE, LARGE_UP, LARGE_DOWN, of_large),
        ):
            if whole in factors:
                found[whole] = of_whole
            else:
                found[up] = of_whole @ factors[down].flatten(len(ahead) + 1).mT
                found[down] = factors[up].mT @ of_whole
        return found

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
