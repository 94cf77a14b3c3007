"""Compiling the UNet's blocks before the first step, and going on without where that fails."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from trainer.ground.events import Warned
from trainer.pictures.loader import Batch
from trainer.training.training import Training

BACKEND: str | Callable[..., Any] = "inductor"
"""What torch.compile compiles with."""


def compile_where_asked(training: Training, loss_of: Callable[[Training, Batch], Tensor]) -> None:
    """Compile with one pass over the first batch, and say how long it took, or why it can't be.

    The pass leaves nothing behind: its gradients are dropped, and random numbers are functions of the step.
    """
    if not training.config.training.torch_compile:
        return
    batches = iter(training.batches)
    first = next(batches, None)
    if first is None:
        return
    training.batches = itertools.chain([first], batches)
    training.progress("compiling", 0, 1)
    began = time.monotonic()
    training.bundle.compile_blocks(BACKEND)
    training.one_size = True
    try:
        for part, _ in training.parts(first):
            training.accelerator.backward(loss_of(training, part))
        message = f"compiled in {time.monotonic() - began:.0f} s. Each new size of picture takes some of that again."
    except (RuntimeError, ImportError, OSError) as error:
        training.bundle.compile_blocks(None)
        training.one_size = False
        message = f"the UNet cannot be compiled here ({_reason(error)}); training goes on without."
    training.optimizer.zero_grad(set_to_none=True)
    training.tell(Warned(message=f"torch_compile: {message}"))
    training.progress("compiling", 1, 1)


def _reason(error: Exception) -> str:
    """Return the first two lines; the first often says only which part of the compiler speaks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(".") or type(error).__name__
