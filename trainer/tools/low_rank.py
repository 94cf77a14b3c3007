"""The arithmetic of LoRA files: products of two small matrices, cut to a lower rank and added to one another.

A module's difference is D = alpha / rank * up @ down, with up [out, rank] and down [rank, in * kernel]. Its singular
values are found from the two factors alone (QR of each, then an SVD of rank x rank), so no whole matrix is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.results.export import AdapterFile

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


def factors_of(file: AdapterFile, name: str) -> Factors:
    """Return one module of a file of plain LoRA; where it has no alpha, that is the rank."""
    alpha = file.header.modules[name].alpha
    up, down = file.tensors[f"{name}.lora_up.weight"], file.tensors[f"{name}.lora_down.weight"]
    return Factors(up.float(), down.float(), float(down.shape[0] if alpha is None else alpha))


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).double()


def decompose(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """Return u [out, k], s [k], v [k, in * kernel], float64, of up @ down without the scale; k is at most the rank."""
    left, lower = torch.linalg.qr(_matrix(factors.up))
    right, upper = torch.linalg.qr(_matrix(factors.down).T)
    u, s, v = torch.linalg.svd(lower @ upper.T, full_matrices=False)
    return left @ u, s, v @ right.T


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
"""How many singular values are kept, by sd-scripts' names (`networks/resize_lora.py`): those above the largest over the
parameter; so many that their Frobenius norm, or their sum, has this share of the whole."""


def rank_kept(s: Tensor, most: int, whole: int, method: str = "", parameter: float = 0.0) -> int:
    """Return the rank that is kept of singular values, at most `most`.

    `whole` is how many there would be of the whole matrix; a dynamic rank is at least 1 and below it, as in sd-scripts.
    """
    if s[0] <= SMALLEST:
        return 1
    wanted = most
    if method:
        wanted = max(1, min(METHODS[method](s, parameter), whole - 1))
    return min(wanted, most, len(s))


def cut(factors: Factors, most: int, method: str = "", parameter: float = 0.0) -> Factors:
    """Return the nearest factors of a lower rank: the largest singular values stay (Eckart & Young 1936).

    The scale alpha / rank stays what it is.
    """
    u, s, v = decompose(factors)
    whole = min(factors.up.shape[0], math.prod(factors.down.shape[1:]))
    rank = rank_kept(s, most, whole, method, parameter)
    up = (u[:, :rank] * s[:rank]).reshape(factors.up.shape[0], rank, *factors.up.shape[2:])
    down = v[:rank].reshape(rank, *factors.down.shape[1:])
    return Factors(up.float().contiguous(), down.float().contiguous(), factors.scale * rank)


def added(parts: Sequence[tuple[Factors, float]]) -> Factors:
    """Return factors whose difference is the sum of the parts' differences, each times its weight: ranks add up."""
    first = parts[0][0]
    ups = [(_matrix(part.up) * (part.scale * weight)) for part, weight in parts]
    downs = [_matrix(part.down) for part, _ in parts]
    up, down = torch.cat(ups, 1), torch.cat(downs, 0)
    rank = down.shape[0]
    return Factors(
        up.reshape(up.shape[0], rank, *first.up.shape[2:]).float(),
        down.reshape(rank, *first.down.shape[1:]).float(),
        float(rank),
    )


def entries(name: str, factors: Factors) -> dict[str, Tensor]:
    """Return a module as a file has it, by key, in kohya's order."""
    return {
        f"{name}.alpha": torch.tensor(factors.alpha),
        f"{name}.lora_down.weight": factors.down,
        f"{name}.lora_up.weight": factors.up,
    }
