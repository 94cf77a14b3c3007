"""The arithmetic of a LoHa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.adapters.layer import AdditiveLayer, Pull
from trainer.adapters.loha.spec import LEFT_CORE, LEFT_DOWN, LEFT_UP, PLAIN, RIGHT_CORE, RIGHT_DOWN, RIGHT_UP

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

    def made(self, values: Sequence[Tensor], rows: Tensor | None) -> Tensor:
        """Return W + D, in one pass over W where D is the plain product of two products."""
        if not self.is_plain(PLAIN, rows):
            return super().made(values, rows)
        factors = {entry: value.float() for entry, value in zip(self._names, values, strict=True)}
        left, right = factors[LEFT_UP] @ factors[LEFT_DOWN], factors[RIGHT_UP] @ factors[RIGHT_DOWN]
        weight = self.weight()
        return torch.addcmul(weight.flatten(1), left, right, value=self.scale).view_as(weight)

    def pull(self, values: Sequence[Tensor], rows: Tensor | None) -> tuple[Tensor, Pull]:
        """Return W + D and what gives the factors' gradients; by hand where D is the plain product of two products."""
        if not self.is_plain(PLAIN, rows):
            return super().pull(values, rows)
        factors = {entry: value.float() for entry, value in zip(self._names, values, strict=True)}
        first, second, third, fourth = (factors[entry] for entry in (LEFT_UP, LEFT_DOWN, RIGHT_UP, RIGHT_DOWN))
        left, right = first @ second, third @ fourth

        def pulled(outer: Tensor) -> Sequence[Tensor]:
            outer = outer.flatten(1) * self.scale
            of_left, of_right = outer * right, outer * left
            found = {
                LEFT_UP: of_left @ second.t(),
                LEFT_DOWN: first.t() @ of_left,
                RIGHT_UP: of_right @ fourth.t(),
                RIGHT_DOWN: third.t() @ of_right,
            }
            return [found[entry].to(value.dtype) for entry, value in zip(self._names, values, strict=True)]

        weight = self.weight()
        return torch.addcmul(weight.flatten(1), left, right, value=self.scale).view_as(weight), pulled


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return M[p, q, ...] = sum over i, j of core[i, j, ...] up[i, p] down[j, q] (Tucker's decomposition)."""
    return torch.einsum("ij...,ip,jq->pq...", core, up, down)
