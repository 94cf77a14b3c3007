"""The arithmetic of an OFT, on a layer's outputs: R^T (W x) is (R^T W) x, and blocks are small."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.layer import AdaptedLayer
from trainer.adapters.oft.spec import BLOCKS, RESCALE
from trainer.targets import Target

_SMALLEST_NORM = 1e-8


class OftLayer(AdaptedLayer):
    """A frozen layer whose outputs before the bias are turned; not at all at the start."""

    def __init__(self, base: nn.Module, spec: AdapterSpec, target: Target) -> None:
        super().__init__(base, spec, target)
        self.limit = spec.alpha(target) * target.out_features

    def start(self, entry: str, factor: Tensor, generator: torch.Generator) -> None:
        """Leave the blocks zero; multipliers are 1."""
        if entry == RESCALE:
            factor.fill_(1.0)

    def rotation(self) -> Tensor:
        """Return R - I, float32 [count, side, side] (Cayley's transform)."""
        blocks = self.factors[BLOCKS].float()
        skew = blocks - blocks.transpose(1, 2)
        if self.limit > 0:
            norm = torch.linalg.vector_norm(skew) + _SMALLEST_NORM
            skew = skew * (self.limit / norm).clamp(max=1.0)
        one = torch.eye(blocks.shape[-1], device=blocks.device)
        # (I + Q)(I - Q)^-1 - I = 2 Q (I - Q)^-1, without the difference of nearly equal numbers.
        return torch.linalg.solve(one - skew, 2 * skew, left=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or [b, in, h, w] -> [b, out, h', w']."""
        if not self.strength:
            return cast(Tensor, self.base_layer(x))
        x = x.to(self.compute_dtype(x))
        plain, rotation = self.plain(x), self.rotation().to(x.dtype)
        count, side, _ = rotation.shape
        if isinstance(self.base_layer, nn.Conv2d):
            seen = plain.reshape(len(plain), count, side, -1)
            turned = torch.matmul(rotation.transpose(1, 2), seen).view_as(plain)
        else:
            seen = plain.reshape(-1, count, side).transpose(0, 1)
            turned = torch.bmm(seen, rotation).transpose(0, 1).reshape(plain.shape)
        if RESCALE in self.factors:
            rescale = self.factors[RESCALE].flatten().to(x.dtype)
            rescale = rescale[:, None, None] if isinstance(self.base_layer, nn.Conv2d) else rescale
            turned = turned * rescale + plain * (rescale - 1)
        return plain + (turned if self.strength == 1.0 else turned * self.strength) + self.bias()
