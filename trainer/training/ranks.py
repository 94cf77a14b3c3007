"""What several processes that train together tell one another, and what it means when one of them is gone.

Each has a part of every step's micro-batches. All of them must call each function here, in the same order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from trainer.ground.errors import RunError, StateError
from trainer.training.failures import is_out_of_memory, reason_of

Value = TypeVar("Value")

LONGEST_WAIT = timedelta(hours=2)
"""How long a rank waits for another, as while the first makes sample pictures or is paused. That a process has died is
told by its closed connection or by torchrun; the clock is for machines that vanish without a word.
"""


@contextmanager
def exchange() -> Iterator[None]:
    """Say what it means when an exchange with the other ranks fails.

    Raises:
        RunError: another rank has ended, or its machine cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or "WORLD_SIZE" not in os.environ:
            raise
        # The backends begin with a place in their own source, and go on with advice for programmers.
        reason = re.sub(r"\[.*?\](:\d+)?\s*", "", reason_of(error)).split(". ")[0]
        raise RunError(
            f"Another process of this run has ended or cannot be reached ({reason.strip()}).",
            "Its own last message tells why. Then start all of them again with --resume auto: the last finished step "
            "is kept.",
        ) from None


def from_first(value: Value) -> Value:
    """Return what the first rank has, on every rank; alone it returns its argument.

    Raises:
        RunError: another rank has ended.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    with exchange():
        broadcast_object_list(box, from_process=0)
    return box[0]


def agree_on_step(step: int) -> None:
    """See that all ranks begin after the same step.

    Raises:
        StateError: this rank has another state than the first, or none.
    """
    first = from_first(step)
    if step != first:
        raise StateError(
            f"resume: this process would go on after step {step}, the first one after step {first}.",
            "Copy the run's folder from the first machine to this one, or let output_dir be a drive that both share.",
        )


def add_up(value: Tensor) -> Tensor:
    """Return a tensor with the sum over all ranks written into it.

    Raises:
        RunError: another rank has ended.
    """
    with exchange():
        torch.distributed.all_reduce(value)
    return value
