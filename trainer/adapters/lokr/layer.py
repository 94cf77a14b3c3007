"""The arithmetic of a LoKr."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.injection import ratio_to
from trainer.adapters.layer import AdditiveLayer
from trainer.adapters.loha.layer import tucker
from trainer.adapters.lokr.spec import ALL, CORE, LARGE, LARGE_DOWN, LARGE_UP, SMALL, SMALL_DOWN, SMALL_UP
from trainer.targets import Target

_NIL_AT_THE_START = (LARGE, LARGE_DOWN)


class LokrLayer(AdditiveLayer):
    """A frozen layer with a LoKr. The product with D is made of products with w2 and w1, without D."""

    folded = (SMALL, SMALL_UP)

    def __init__(self, base: nn.Module, spec: AdapterSpec, target: Target) -> None:
        super().__init__(base, spec, target)
        if {SMALL, LARGE} <= self.factors.keys():
            # Readers of files take no alpha where both matrices are whole: a scale is part of w1 there.
            self.constant = self.scale

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
        """Return s (w1 x w2) of inputs seen as c groups of d channels."""
        small, large = self._seen(factors)
        (outer, groups), channels = small.shape, large.shape[1]
        if isinstance(self.base_layer, nn.Conv2d):
            inner = self.product(x.reshape(-1, channels, *x.shape[2:]), large.contiguous())
            mixed = torch.matmul(small, inner.reshape(len(x), groups, -1))
            return mixed.view(len(x), outer * large.shape[0], *inner.shape[2:])
        inner = x.reshape(-1, groups, channels) @ large.t()
        return torch.matmul(small, inner).reshape(*x.shape[:-1], -1)

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
