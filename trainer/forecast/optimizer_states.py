"""What an optimizer keeps: found by a real step on a few small parameters, since its step asks for numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.forecast.ledger import bytes_of
from trainer.optimizers import kind_of
from trainer.training.training import Training

_MOST = 1 << 18
"""Numbers in a parameter that stands for larger ones of its kind."""
_STACKED = 3
"""Dimensions of the parameters of which each row is a matrix of its own."""


def state_bytes(training: Training) -> int:
    """Return the bytes of the state that the optimizer of a training keeps after its first step."""
    config = training.config.optimizer
    kind = kind_of(config.optimizer_type)
    groups, shares = [], []
    for group in training.optimizer.param_groups:
        counts = Counter((tuple(each.shape), each.dtype) for each in group["params"])
        stand_ins = [_stand_in(shape, dtype) for shape, dtype in counts]
        shares += [
            count * math.prod(shape) / each.numel()
            for each, ((shape, _), count) in zip(stand_ins, counts.items(), strict=True)
        ]
        groups.append({"params": stand_ins, "lr": group["initial_lr"], "name": group["name"]})
    optimizer = kind.build(groups, config.optimizer_args)
    kind.step(optimizer, torch.tensor(True))
    parameters = [each for group in groups for each in group["params"]]
    return round(
        sum(
            share * bytes_of(value for value in optimizer.state[each].values() if isinstance(value, Tensor))
            for each, share in zip(parameters, shares, strict=True)
        )
    )


def _stand_in(shape: Sequence[int], dtype: torch.dtype) -> nn.Parameter:
    """Return a parameter with a gradient: as large, or with fewer matrices in it where those are many."""
    numel = math.prod(shape)
    if len(shape) >= _STACKED and numel > _MOST:
        shape = (max(1, shape[0] * _MOST // numel), *shape[1:])
    parameter = nn.Parameter(torch.full(tuple(shape), 0.01, dtype=dtype))
    parameter.grad = torch.full_like(parameter, 0.001)
    return parameter
