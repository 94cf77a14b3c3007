"""The arithmetic of LoRA files: products of two small matrices, cut to a lower rank and added to one another.

A module's difference is D = alpha / rank * up @ down, with up [out, rank] and down [rank, in * kernel]. Where D is made
of factors its singular values are found from them alone (QR of each, then an SVD of rank x rank), so no whole matrix is
made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1e-6
"""A module whose largest singular value is not above this holds nothing: rank 1 is left of it, as in sd-scripts."""


@dataclass(frozen=True, slots=True)
class Factors:
    """One module as a file has it: up [out, rank, ...], down [rank, in, ...], float; `alpha` the number beside them."""

    up: Tensor
    down: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The width between the two matrices."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product of the two is multiplied by."""
        return self.alpha / self.rank

    def difference(self) -> Tensor:
        """Return D, [out, in * kernel] float64."""
        return self.scale * (_matrix(self.up) @ _matrix(self.down))

    def shaped(self, kernel: Sequence[int]) -> Factors:
        """Return the same with the axes that a convolution's file has, none for a linear layer."""
        outer, rank = self.up.shape[:2]
        up = self.up.reshape(outer, rank, *(1,) * len(kernel)).contiguous()
        return Factors(up, self.down.reshape(rank, -1, *kernel).contiguous(), self.alpha)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).double()


@dataclass(frozen=True, slots=True)
class Values:
    """Singular values s [k] of a matrix [out, in * kernel] with its vectors u [out, k] and v [k, in * kernel].

    D is `scale` times their product.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    scale: float = 1.0


def decompose(of: Factors | Tensor, device: str = "cpu") -> Values:
    """Return the singular values of up @ down, float64, where the alpha goes into the scale; or of a whole matrix.

    A whole matrix is decomposed in float32, as sd-scripts does.
    """
    if isinstance(of, Tensor):
        u, s, v = torch.linalg.svd(of.flatten(1).to(device, torch.float32), full_matrices=False)
        return Values(u.cpu(), s.cpu(), v.cpu())
    left, lower = torch.linalg.qr(_matrix(of.up).to(device))
    right, upper = torch.linalg.qr(_matrix(of.down).to(device).T)
    u, s, v = torch.linalg.svd(lower @ upper.T, full_matrices=False)
    return Values((left @ u).cpu(), s.cpu(), (v @ right.T).cpu(), of.scale)


def _by_cumulative(s: Tensor, share: float) -> int:
    return int(torch.searchsorted(s.cumsum(0) / s.sum(), share)) + 1


def _by_frobenius(s: Tensor, share: float) -> int:
    squares = s.square()
    return int(torch.searchsorted(squares.cumsum(0) / squares.sum(), share**2)) + 1


def _by_ratio(s: Tensor, ratio: float) -> int:
    return int((s > s[0] / ratio).sum())


METHODS: Mapping[str, Callable[[Tensor, float], int]] = {
    "sv_ratio": _by_ratio,
    "sv_fro": _by_frobenius,
    "sv_cumulative": _by_cumulative,
}
"""How many singular values are needed, by sd-scripts' names (`networks/resize_lora.py`): those above the largest over
the parameter; so many that their Frobenius norm, or their sum, has this share of the whole."""


@dataclass(frozen=True, slots=True)
class Cut:
    """To which rank: at most `most`, or by a dynamic method that is sd-scripts'.

    `quantile` below 1 limits the entries of both matrices to this quantile of them all, as sd-scripts does where it
    extracts and merges by singular values.
    """

    most: int
    method: str = ""
    parameter: float = 0.0
    quantile: float = 1.0

    def rank(self, s: Tensor, whole: int) -> int:
        """Return the rank that is kept of singular values. `whole` is how many there would be of the whole matrix.

        A dynamic method keeps one value more than is needed, as in sd-scripts.
        """
        if s[0] <= SMALLEST:
            return 1
        wanted = self.most
        if self.method:
            wanted = max(1, min(METHODS[self.method](s, self.parameter), whole - 1)) + 1
        return min(wanted, self.most, len(s))

    def __call__(self, of: Factors | Tensor, device: str = "cpu") -> Factors:
        """Return the nearest factors of a lower rank: the largest singular values stay (Eckart & Young 1936).

        Of factors the scale alpha / rank stays what it is; of a whole matrix it is 1.
        """
        if self.quantile < 1.0 and isinstance(of, Factors):
            # The quantile is of signed numbers, so the vectors' signs must be those of the whole matrix.
            of = of.difference()
        values = decompose(of, device)
        outer, inner = values.u.shape[0], values.v.shape[1]
        rank = self.rank(values.s, min(outer, inner))
        up, down = (values.u[:, :rank] * values.s[:rank]).float(), values.v[:rank].float()
        if self.quantile < 1.0:
            limit = _quantile(up, down, self.quantile)
            up, down = up.clamp(-limit, limit), down.clamp(-limit, limit)
        return Factors(up.contiguous(), down.contiguous(), values.scale * rank)


def _quantile(up: Tensor, down: Tensor, share: float) -> float:
    # torch.quantile takes 16 million numbers at most.
    return float(np.quantile(np.concatenate([up.numpy().ravel(), down.numpy().ravel()]), share))


def added(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """Return factors whose difference is the sum of the parts' differences, each times its weight: ranks add up."""
    ups = [(_matrix(part.up) * (part.scale * weight)) for part, weight in parts]
    downs = [_matrix(part.down) for part, _ in parts]
    up, down = torch.cat(ups, 1), torch.cat(downs, 0)
    return Factors(up.float(), down.float(), float(down.shape[0]))


def summed(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """Return factors that are sums of the parts' matrices, each times its weight and the root of its alpha's share.

    What sd-scripts' merge_lora.py does without --concat. The product holds what crosses between the parts too, and
    weights count twice. Ranks must be equal; the alpha is that of the first.
    """
    first = parts[0][0]
    ups, downs = [], []
    for part, weight in parts:
        share = math.sqrt(part.alpha / first.alpha) * weight
        ups.append(part.up.flatten(1).float() * abs(share))
        downs.append(part.down.flatten(1).float() * share)
    return Factors(torch.stack(ups).sum(0), torch.stack(downs).sum(0), first.alpha)


def stacked(pieces: Mapping[int, Factors], widths: Sequence[int]) -> Factors:
    """Return factors of a linear layer whose rows are those of its pieces, each `widths` high; one not there is 0.

    Pieces with one and the same second matrix and scale share it. Else ranks add up, and each piece has columns of its
    own.
    """
    first = next(iter(pieces.values()))
    shared = len(pieces) == len(widths) and all(
        piece.scale == first.scale and torch.equal(piece.down, first.down) for piece in pieces.values()
    )
    if shared:
        return Factors(torch.cat([pieces[number].up for number in range(len(widths))]), first.down, first.alpha)
    rank, begin = sum(piece.rank for piece in pieces.values()), 0
    rows = [torch.zeros(width, rank) for width in widths]
    for number, piece in sorted(pieces.items()):
        rows[number][:, begin : begin + piece.rank] = piece.up * piece.scale
        begin += piece.rank
    down = torch.cat([piece.down for _, piece in sorted(pieces.items())])
    return Factors(torch.cat(rows), down, float(rank))


def entries(name: str, factors: Factors) -> dict[str, Tensor]:
    """Return a module as a file has it, by key, in kohya's order."""
    return {
        f"{name}.alpha": torch.tensor(factors.alpha),
        f"{name}.lora_down.weight": factors.down,
        f"{name}.lora_up.weight": factors.up,
    }
