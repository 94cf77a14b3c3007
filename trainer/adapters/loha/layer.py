"""The arithmetic of a LoHa."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.adapters.layer import AdditiveLayer
from trainer.adapters.loha.spec import LEFT_CORE, LEFT_DOWN, LEFT_UP, RIGHT_CORE, RIGHT_DOWN, RIGHT_UP

_DEVIATIONS = {LEFT_UP: 0.1, LEFT_DOWN: 1.0, RIGHT_UP: 0.0, RIGHT_DOWN: 1.0, LEFT_CORE: 0.1, RIGHT_CORE: 0.1}
"""Of the normal distributions that factors are drawn from at the start, as LyCORIS'."""


class LohaLayer(AdditiveLayer):
    """A frozen layer with a LoHa."""

    folded = (LEFT_UP,)

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


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return M[p, q, ...] = sum over i, j of core[i, j, ...] up[i, p] down[j, q] (Tucker's decomposition)."""
    return torch.einsum("ij...,ip,jq->pq...", core, up, down)
