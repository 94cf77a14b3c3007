"""What is left out of an adapter in one pass of training, by chance: parts of its output, ranks or rows, whole layers.

Every choice is a function of the seed, the step, the sample's slot and the layer's name, drawn on the CPU, so that a
resumed run, a block that is computed twice and a batch that is computed in pieces leave out the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.ground.randomness import stream


@dataclass(frozen=True, slots=True)
class Pass:
    """Which samples go through the model: their slots in the step, and the first slot of their micro-batch."""

    seed: int
    step: int
    slots: tuple[int, ...]
    first: int


class Dropouts:
    """The shares that are left out. As sd-scripts' `networks.lora` has them for a LoRA, as LyCORIS for other kinds."""

    def __init__(self, network: float, rank: float, module: float) -> None:
        self.network, self.rank, self.module = network, rank, module
        self._pass: Pass | None = None

    @contextmanager
    def during(self, made: Pass) -> Iterator[None]:
        """Leave something out within the context, in passes with gradients."""
        self._pass = made
        try:
            yield
        finally:
            self._pass = None

    @property
    def active(self) -> bool:
        """Whether the pass under way is one of training."""
        return self._pass is not None and torch.is_grad_enabled()

    def leaves_out(self, name: str) -> bool:
        """Say whether a layer takes no part in this micro-batch."""
        return bool(self.module) and float(self.of_batch((1,), name, "module_dropout")) < self.module

    def thinned(self, inner: Tensor, name: str, *, last: bool) -> Tensor:
        """Return what a LoRA's first matrix gives, [b, ..., rank] or with `last` false [b, rank, h, w], thinned out.

        `network_dropout` leaves out single numbers, `rank_dropout` ranks of a sample; what is left grows as much.
        """
        if self.network:
            kept = self.of_samples(tuple(inner.shape), name, "network_dropout").to(inner.device) >= self.network
            inner = inner * (kept / (1 - self.network)).to(inner.dtype)
        if self.rank:
            rank = inner.shape[-1 if last else 1]
            kept = self.of_samples((len(inner), rank), name, "rank_dropout").to(inner.device) > self.rank
            ones = (1,) * (inner.dim() - 2)
            shape = (len(inner), *ones, rank) if last else (len(inner), rank, *ones)
            inner = inner * (kept / (1 - self.rank)).to(inner.dtype).view(shape)
        return inner

    def rows(self, count: int, name: str, device: torch.device) -> Tensor | None:
        """Return 0 or 1 for each row of what is added to a weight, float32; None where all are there."""
        if not self.rank:
            return None
        return (self.of_batch((count,), name, "rank_dropout") > self.rank).float().to(device)

    def entries(self, shape: tuple[int, ...], name: str, device: torch.device) -> Tensor | None:
        """Return 0, or what makes up for it, for each number of a matrix, float32; None where all are there."""
        if not self.rank:
            return None
        kept = self.of_batch(shape, name, "rank_dropout") >= self.rank
        return (kept.float() / (1 - self.rank)).to(device)

    def of_batch(self, shape: tuple[int, ...], name: str, purpose: str) -> Tensor:
        """Return numbers from 0 to 1 that the whole micro-batch has in common, float32 on the CPU."""
        assert self._pass is not None
        return self._drawn(self._pass.first, shape, name, purpose)

    def of_samples(self, shape: tuple[int, ...], name: str, purpose: str) -> Tensor:
        """Return numbers from 0 to 1, float32 on the CPU; those of a sample are its own.

        Where a layer sees several rows for each sample, as a text encoder the chunks of a prompt, they follow one
        another.
        """
        assert self._pass is not None
        slots = self._pass.slots
        rows, rest = divmod(shape[0], len(slots))
        if rest:
            return self.of_batch(shape, name, purpose)
        return torch.cat([self._drawn(slot, (rows, *shape[1:]), name, purpose) for slot in slots])

    def _drawn(self, slot: int, shape: tuple[int, ...], name: str, purpose: str) -> Tensor:
        assert self._pass is not None
        seed = stream(self._pass.seed, self._pass.step, slot, f"{purpose} {name}")
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
