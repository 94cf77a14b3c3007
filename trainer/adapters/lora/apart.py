"""What is one layer in the model trained apart: query, key and value, each with two matrices of its own.

As sd-scripts' networks/lora_flux.py does with `split_qkv`. The first matrices lie one below the other, [parts rank,
in], and so do the second ones, [out, rank]. A file has the second ones side by side, [out, parts rank], with zeros
where a part's rows meet another's ranks, and the alpha of all parts together: so every program reads it as one LoRA, at
the strength that was trained. (sd-scripts writes the alpha of one part there, and its files count too little.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def added(inner: Tensor, up: Tensor, parts: Sequence[int]) -> Tensor:
    """Return what the parts add to the layer's output, [..., out].

    Args:
        inner: [..., parts rank], the product of the layer's input with all first matrices.
        up: [out, rank].
        parts: how many rows are each part's.
    """
    pairs = zip(inner.chunk(len(parts), dim=-1), up.split(list(parts)), strict=True)
    return torch.cat([F.linear(each, own) for each, own in pairs], dim=-1)


def side_by_side(up: Tensor, parts: Sequence[int]) -> Tensor:
    """Return the second matrices [out, rank] as a file has them, [out, parts rank]."""
    return torch.block_diag(*up.split(list(parts)))


def below_one_another(whole: Tensor, parts: Sequence[int]) -> Tensor | None:
    """Return the second matrices of a file as they are trained; None where a part's rows use ranks of another's."""
    rank = whole.shape[1] // len(parts)
    rows = [each.split(rank, dim=1)[number] for number, each in enumerate(whole.split(list(parts)))]
    up = torch.cat(rows)
    return up if torch.equal(side_by_side(up, parts), whole) else None


def norm(down: Tensor, up: Tensor, parts: Sequence[int]) -> Tensor:
    """Return the Frobenius norm of all that is added to the weight, without the scale; float64 []."""
    pairs = zip(down.float().chunk(len(parts)), up.float().split(list(parts)), strict=True)
    squares = [((first @ first.mT).double() * (second.mT @ second).double()).sum() for first, second in pairs]
    return torch.stack(squares).sum().clamp(min=0).sqrt()
