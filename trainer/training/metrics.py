"""What is told of each step, once its numbers have come from the device.

A GPU works behind the loop. To read a loss at once would make the loop wait for the GPU, and then the GPU for the loop.
So the numbers of a step are copied while the next one is under way, and told then. On a CPU they are there at once.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.ground import events
from trainer.ground.events import Emit, StepDone
from trainer.training import failures

AVERAGE_LIMIT = 10_000
"""Most step losses kept for the running average; an epoch can be longer than anyone averages over."""

SKIPPED_LIMIT = 20
"""Steps in a row without a finite gradient after which going on is pointless."""


def steps_behind(device: torch.device) -> int:
    """Return how many steps the telling is behind the loop."""
    return 1 if device.type == "cuda" else 0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A step that was made: what is known of it, and its loss and gradient norm on their way."""

    done: StepDone
    names: Sequence[str]
    numbers: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> StepDone:
        """Wait for the numbers, which have arrived as a rule, and return the event with them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, grad_norm = self.numbers.tolist()
        return replace(self.done, loss=loss, grad_norm=grad_norm, skipped=not math.isfinite(grad_norm))


class Metrics:
    """Takes note of steps, and tells of each in order when its numbers are there.

    `losses` are the newest step losses, `epoch_losses` those of the epoch under way; both without what was not finite.
    `learned` steps changed a weight, earlier sittings included; `skipped` ones of this sitting had no finite gradient.
    """

    def __init__(self, tell: Emit, *, window: int, device: torch.device, scaled: bool, precision: str) -> None:
        """Begin without a step.

        Args:
            window: how many losses are averaged, `AVERAGE_LIMIT` at most.
            device: where the numbers come from.
            scaled: whether a loss scaler is looking for its scale.
            precision: the mixed precision in use, for advice.
        """
        self.losses: deque[float] = deque(maxlen=min(window, AVERAGE_LIMIT))
        self.epoch_losses: list[float] = []
        self._tell = tell
        self._scaled, self._precision = scaled, precision
        self._behind = steps_behind(device)
        self._entries: deque[_Entry] = deque()
        self.learned = 0
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._suspects: Counter[str] = Counter()

    def note(self, done: StepDone, names: Sequence[str], loss: Tensor, grad_norm: Tensor) -> None:
        """Take note of a step, whose loss and gradient norm are scalars on the device, and tell of the one before.

        Args:
            done: what is known of it; loss, gradient norm and `skipped` are put in when they are there.
            names: its pictures.

        Raises:
            RunError: `SKIPPED_LIMIT` steps in a row had no finite gradient.
        """
        numbers, arrived = torch.stack([loss.float(), grad_norm.float()]), None
        if numbers.is_cuda:
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers, arrived = host.copy_(numbers, non_blocking=True), torch.cuda.Event()
            arrived.record()
        self._entries.append(_Entry(done, names, numbers, arrived))
        self._settle(self._behind)

    def settle(self) -> None:
        """Tell of every step that was made. What is saved or told after this has nothing before it left out.

        Raises:
            RunError: `SKIPPED_LIMIT` steps in a row had no finite gradient.
        """
        self._settle(0)

    def _settle(self, behind: int) -> None:
        while len(self._entries) > behind:
            entry = self._entries.popleft()
            done = entry.read()
            if math.isfinite(done.loss):
                self.losses.append(done.loss)
                self.epoch_losses.append(done.loss)
            average = sum(self.losses) / len(self.losses) if self.losses else math.nan
            self._tell(replace(done, average_loss=average))
            self.learned += _changed_weights(done)
            self._watch_skipping(done, entry.names)

    def _watch_skipping(self, done: StepDone, names: Sequence[str]) -> None:
        """Count steps without a finite gradient, name their pictures, and give up after too many in a row."""
        if not done.skipped:
            self._skipped_in_a_row = 0
            self._suspects.clear()
            return
        self.skipped += 1
        self._skipped_in_a_row += 1
        self._suspects.update(set(names))
        # A loss scaler looks for its scale by overflowing: one such step is nothing to tell of.
        ordinary = self._scaled and self._skipped_in_a_row < SKIPPED_LIMIT // 4
        if not ordinary and self.skipped <= SKIPPED_LIMIT:
            self._tell(events.Warned(message=failures.skipped_step(done.step, names)))
        if self._skipped_in_a_row >= SKIPPED_LIMIT:
            raise failures.not_finite(done.step, self._skipped_in_a_row, self._suspects, self._precision)


def _changed_weights(done: StepDone) -> bool:
    """Say whether a step can have changed a weight: its gradient was a number other than 0, and a rate was too."""
    return not done.skipped and bool(done.grad_norm) and any(done.lr.values())
