"""The arithmetic of an OFT, on a layer's outputs: R^T (W x) is (R^T W) x, and blocks are small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.injection import ratio_to
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

    @classmethod
    def norm_of(cls, factors: Mapping[str, Tensor], alpha: float, rank: int) -> float:
        """Return the norm of R - I, or with multipliers that of all that outputs are multiplied by, without I."""
        blocks = factors[BLOCKS]
        turned = rotation(blocks, alpha * blocks.shape[0] * blocks.shape[1])
        if RESCALE in factors:
            rescale = factors[RESCALE].view(blocks.shape[0], 1, -1)
            turned = turned * rescale + torch.diag_embed(rescale[:, 0] - 1)
        return float(turned.norm())

    def limit_norm(self, most: float) -> None:
        """Scale the blocks down to a norm of at most `most`."""
        blocks = self.factors[BLOCKS]
        blocks.mul_(ratio_to(blocks.float().norm(), most))

    def whole(self, strength: float) -> Tensor:
        """Return R^T W, block by block, with the multipliers."""
        weight = self.weight()
        turning = rotation(self.factors[BLOCKS].float(), self.limit)
        count, side, _ = turning.shape
        turned = torch.matmul(turning.transpose(1, 2), weight.view(count, side, -1)).view_as(weight)
        if RESCALE in self.factors:
            rescale = self.factors[RESCALE].float().view(-1, *(1,) * (weight.dim() - 1))
            turned = turned * rescale + weight * (rescale - 1)
        return weight + turned * strength

    def prepare(self, factors: Mapping[str, Tensor]) -> Tensor:
        """Return R - I, or R where outputs are turned in one, float32 [..., count, side, side]."""
        turning = rotation(factors[BLOCKS].float(), self.limit)
        return turning + torch.eye(turning.shape[-1], device=turning.device) if self._whole else turning

    @property
    def _whole(self) -> bool:
        """Whether outputs are turned in one; in half precision a rotation by a little would be none."""
        base = cast(Tensor, self.base_layer.weight)
        return base.dtype == torch.float32 and RESCALE not in self._names and self.strength == 1.0

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or [b, in, h, w] -> [b, out, h', w']."""
        if self.left_out():
            return cast(Tensor, self.base_layer(x))
        x = x.to(self.compute_dtype(x))
        plain, turning = self.plain(x), self.ready().to(x.dtype)
        count, side, _ = turning.shape
        if self.dropouts is not None and self.dropouts.active:
            kept = self.dropouts.entries((count, side, side), self.name, x.device)
            if kept is not None:
                one = 0 if self._whole else torch.eye(side, dtype=x.dtype, device=x.device)
                turning = (turning + one) * kept.to(x.dtype) - one
        if isinstance(self.base_layer, nn.Conv2d):
            seen = plain.reshape(len(plain), count, side, -1)
            turned = torch.matmul(turning.transpose(1, 2), seen).view_as(plain)
        else:
            seen = plain.reshape(-1, count, side).transpose(0, 1)
            turned = torch.bmm(seen, turning).transpose(0, 1).reshape(plain.shape)
        if self._whole:
            return turned + self.bias()
        if RESCALE in self._names:
            rescale = self.live()[RESCALE].flatten().to(x.dtype)
            rescale = rescale[:, None, None] if isinstance(self.base_layer, nn.Conv2d) else rescale
            turned = turned * rescale + plain * (rescale - 1)
        return plain + (turned if self.strength == 1.0 else turned * self.strength) + self.bias()


def rotation(blocks: Tensor, limit: float) -> Tensor:
    """Return R - I, float32 [..., count, side, side] (Cayley's transform); `limit` is of the norm of Q, 0 = none."""
    skew = blocks - blocks.mT
    if limit > 0:
        norm = torch.linalg.vector_norm(skew, dim=(-3, -2, -1), keepdim=True) + _SMALLEST_NORM
        skew = skew * (limit / norm).clamp(max=1.0)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    # (I + Q)(I - Q)^-1 - I = 2 Q (I - Q)^-1, without the difference of nearly equal numbers.
    return torch.linalg.solve(one - skew, 2 * skew, left=False)
