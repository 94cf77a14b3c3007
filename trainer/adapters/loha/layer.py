"""The arithmetic of a LoHa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.adapters.layer import AdditiveLayer
from trainer.adapters.loha.spec import LEFT_CORE, LEFT_DOWN, LEFT_UP, PLAIN, RIGHT_CORE, RIGHT_DOWN, RIGHT_UP

_DEVIATIONS = {LEFT_UP: 0.1, LEFT_DOWN: 1.0, RIGHT_UP: 0.0, RIGHT_DOWN: 1.0, LEFT_CORE: 0.1, RIGHT_CORE: 0.1}
"""Of the normal distributions that factors are drawn from at the start, as LyCORIS'."""


class LohaLayer(AdditiveLayer):
    """A frozen layer with a LoHa."""

    folded = (LEFT_UP,)
    by_hand = (PLAIN,)

    def draw(self, entry: str, factor: Tensor, generator: torch.Generator) -> None:
        """Draw a factor as LyCORIS does; the second product is zero, unless a learned number is."""
        deviation = 0.1 if self.scalar and entry == RIGHT_UP else _DEVIATIONS[entry]
        if deviation:
            factor.normal_(0.0, deviation, generator=generator)

    @classmethod
    def difference(cls, factors: Mapping[str, Tensor], scale: float) -> Tensor:
        """Return s (w1_a w1_b) * (w2_a w2_b), [out, in * kh * kw], or the Tucker form [out, in, kh, kw]."""
        if LEFT_CORE in factors:
            left = tucker(factors[LEFT_CORE], factors[LEFT_UP], factors[LEFT_DOWN])
            return left * tucker(factors[RIGHT_CORE], factors[RIGHT_UP] * scale, factors[RIGHT_DOWN])
        return (factors[LEFT_UP] @ factors[LEFT_DOWN]) * (factors[RIGHT_UP] * scale @ factors[RIGHT_DOWN])

    def parts(self, weight: Tensor, factors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the two products."""
        return factors[LEFT_UP] @ factors[LEFT_DOWN], factors[RIGHT_UP] @ factors[RIGHT_DOWN]

    def joined(self, weight: Tensor, parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Return W + D, in one pass over W."""
        left, right = parts
        return torch.addcmul(weight, left, right, value=self.scale, out=out)

    def pulled(self, outer: Tensor, factors: Mapping[str, Tensor], parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the gradients of the factors."""
        left, right = parts
        of_left, of_right = right.mul_(outer), left.mul_(outer)
        return {
            LEFT_UP: (of_left @ factors[LEFT_DOWN].mT).mul_(self.scale),
            LEFT_DOWN: (factors[LEFT_UP].mT @ of_left).mul_(self.scale),
            RIGHT_UP: (of_right @ factors[RIGHT_DOWN].mT).mul_(self.scale),
            RIGHT_DOWN: (factors[RIGHT_UP].mT @ of_right).mul_(self.scale),
        }


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return M[p, q, ...] = sum over i, j of core[i, j, ...] up[i, p] down[j, q] (Tucker's decomposition)."""
    return torch.einsum("ij...,ip,jq->pq...", core, up, down)
