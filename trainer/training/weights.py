"""Which weights the parameters hold: those being trained, or for a moment others; and the average of those trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_WARM = 10
"""How slowly the average's decay comes up to its full value."""


class Weights:
    """Lets parameters hold other values for a block, and go back to the bit. Parameters keep their identity and place.

    Blocks may be nested: within `trained` the weights are those being trained, whatever is around it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._kept: list[Tensor] | None = None

    @property
    def replaced(self) -> bool:
        """Whether the parameters hold others than those being trained."""
        return self._kept is not None

    @contextmanager
    def instead(self, values: Sequence[Tensor] | None) -> Iterator[None]:
        """Hold these values for the block, in the parameters' order; None leaves everything as it is."""
        if values is None:
            yield
            return
        before, back = self._kept, self._copies()
        if before is None:
            self._kept = back
        self._put(values)
        try:
            yield
        finally:
            self._put(back)
            self._kept = before

    @contextmanager
    def trained(self) -> Iterator[None]:
        """Hold the weights being trained for the block."""
        if self._kept is None:
            yield
            return
        kept, others, self._kept = self._kept, self._copies(), None
        self._put(kept)
        try:
            yield
        finally:
            self._put(others)
            self._kept = kept

    def to(self, device: torch.device) -> None:
        """Move what is kept aside."""
        if self._kept is not None:
            self._kept[:] = [each.to(device) for each in self._kept]

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._parameters, values, strict=True):
                # Into the old place, which others have views of, and so that they see that it has changed.
                parameter.copy_(value)


class Average:
    """The exponential moving average of parameters, in float32 (Polyak & Juditsky 1992; Karras et al. 2024).

    Its decay comes up from a tenth, (1 + n) / (10 + n) after n steps, so that the start is soon forgotten.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """Begin with the parameters as they are."""
        self._parameters, self.decay = parameters, decay
        self.values = [parameter.detach().float().clone() for parameter in parameters]

    def update(self, step: int) -> None:
        """Take the parameters in, after `step` steps were done before."""
        decay = min(self.decay, (1 + step) / (_WARM + step))
        now = [parameter.detach().float() for parameter in self._parameters]
        torch._foreach_lerp_(self.values, now, 1.0 - decay)

    def to(self, device: torch.device) -> None:
        """Move it."""
        self.values = [each.to(device) for each in self.values]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Go on from saved values. Raises ValueError where they are of other shapes."""
        for mine, saved in zip(self.values, values, strict=True):
            if mine.shape != saved.shape:
                raise ValueError(f"an average is {tuple(saved.shape)} for a matrix of {tuple(mine.shape)}")
            mine.copy_(saved)
