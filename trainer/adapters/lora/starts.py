"""Starts of a LoRA from parts of the frozen weight, which loses them, so that the model begins as it was.

What is trained are the strongest parts of a weight, which move faster than new matrices do. In the file both the
trained matrices and those at the start stand beside one another, so that it is a plain LoRA of the original model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trainer.ground.randomness import stream

_OVERSAMPLING, _ITERATIONS = 8, 8


def pissa(weight: Tensor, rank: int, scale: float, name: str) -> tuple[Tensor, Tensor]:
    """Return A [rank, in] and B [out, rank] with s B A the weight's largest singular values (Meng et al. 2024).

    They are found by random projections, whose numbers are a function of the layer's name (Halko et al. 2011).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(0, 0, 0, f"pissa {name}"))
        left, values, right = torch.svd_lowrank(weight, q=min(rank + _OVERSAMPLING, *weight.shape), niter=_ITERATIONS)
    roots = (values[:rank] / scale).sqrt()
    return roots[:, None] * right[:, :rank].t(), left[:, :rank] * roots


def olora(weight: Tensor, rank: int, scale: float, name: str) -> tuple[Tensor, Tensor]:
    """Return A [rank, in] and B [out, rank]: the first rows and columns of the weight's R and Q (Buyukakyuz 2024)."""
    left, right = torch.linalg.qr(weight)
    return right[:rank], left[:, :rank]


STARTS: Mapping[str, Callable[[Tensor, int, float, str], tuple[Tensor, Tensor]]] = {"pissa": pissa, "olora": olora}
"""Value of `init_lora_weights` -> (weight [out, in], rank, s, name) -> A and B at the start, float32 on the CPU.

Of fewer rows and columns than the rank where the weight has no more."""
