"""Steps of parameters in bfloat16, computed in float32 and rounded by chance.

bfloat16 has eight bits of a number: a change below a 250th of a weight is lost whole when it is rounded to the nearest,
step after step, and a running mean with a decay of 0.999 never falls. So the optimizer sees float32 for the moment of
its step, keeps its means in float32, and its result is rounded up or down by chance, so that what is lost in one step
comes in another (Gupta et al. 2015, arXiv 1502.02551; for bfloat16 Zamirai et al. 2020, arXiv 2010.06192).

Chance is a function of (seed, step) and the weight's place, computed on the device, so that a resumed run and every
rank round alike.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.ground.randomness import stream

_LOST_BITS = 16
"""The bits of a float32 that a bfloat16 doesn't have."""
_LOST = (1 << _LOST_BITS) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
"""Odd constants: the golden ratio's, and those of MurmurHash3's finalizer (Appleby 2011)."""


@contextmanager
def in_float32(parameters: Sequence[nn.Parameter], *, seed: int, step: int) -> Iterator[None]:
    """Let bfloat16 parameters and their gradients be float32 for the block, and round them back by chance after it.

    Parameters of other dtypes are left as they are. Gradients are gone afterwards. Where the block changes nothing, or
    fails, the weights are what they were.
    """
    halved = [parameter for parameter in parameters if parameter.dtype == torch.bfloat16]
    before = [parameter.data for parameter in halved]
    for parameter in halved:
        gradient, parameter.grad = parameter.grad, None
        parameter.data = parameter.data.float()
        parameter.grad = None if gradient is None else gradient.float()
    after: list[Tensor] = []
    try:
        yield
        after = [parameter.data for parameter in halved]
    finally:
        for parameter, values in zip(halved, before, strict=True):
            parameter.grad = None
            parameter.data = values
    with torch.no_grad():
        for number, (parameter, values) in enumerate(zip(halved, after, strict=True)):
            # Into the old place, which others have views of, and so that they see that it has changed.
            parameter.copy_(rounded(values, stream(seed, step, number, "rounding")))


def rounded(values: Tensor, salt: int) -> Tensor:
    """Return float32 values as bfloat16: one of the two neighbours, the nearer the likelier, by the salt's chance.

    What bfloat16 holds exactly, infinities among it, stays what it is.
    """
    bits = values.contiguous().view(torch.int32)
    return ((bits + _chances(bits, salt)) & ~_LOST).view(torch.float32).to(torch.bfloat16)


def _chances(like: Tensor, salt: int) -> Tensor:
    """Return a number from 0 to 65,535 for each place of a tensor, int32: a hash of place and salt."""
    chances = torch.arange(like.numel(), dtype=torch.int32, device=like.device).mul_(_signed(_GOLDEN))
    chances.add_(_signed(salt))
    # Shifts keep the sign, so what comes in from it is masked away.
    chances ^= (chances >> 16) & 0xFFFF
    chances *= _signed(_FIRST)
    chances ^= (chances >> 13) & 0x7FFFF
    chances *= _signed(_SECOND)
    chances ^= (chances >> 16) & 0xFFFF
    return chances.bitwise_and_(_LOST).view(like.shape)


def _signed(number: int) -> int:
    """Return the int32 with the lowest 32 bits of a number."""
    return (number & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def widen(states: Iterable[dict[str, object]], own: Container[str] = ()) -> None:
    """Turn what an optimizer keeps in bfloat16 into float32: states saved before it kept its means so.

    `own` are the names of what it keeps in bfloat16 of its own accord.
    """
    for state in states:
        for name, value in state.items():
            if name not in own and isinstance(value, Tensor) and value.dtype == torch.bfloat16:
                state[name] = value.float()
