"""How much of a step is computed at once, and what happens when that is more than the memory holds: less, again.

A step that ran out of memory is repeated from its beginning: nothing was changed yet, and all its random numbers
belong to its samples. So the mean loss and the gradients are those of the whole batch, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from trainer.ground import events
from trainer.memory import free_memory
from trainer.training import failures

if TYPE_CHECKING:
    from trainer.pictures.loader import Batch
    from trainer.training.training import Training

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class MicroBatchSize:
    """At most `samples` of a micro-batch go through the model together; `checkpointing` as in the setting."""

    samples: int
    checkpointing: bool

    def less(self, largest: int) -> MicroBatchSize | None:
        """Return the next smaller size for micro-batches of up to `largest` samples, or None below the least.

        Halves come first: they cost little time. Checkpointing costs a second forward pass.
        """
        samples = min(self.samples, largest)
        if samples > 1:
            return replace(self, samples=(samples + 1) // 2)
        return None if self.checkpointing else replace(self, checkpointing=True)

    def __str__(self) -> str:
        pictures = "1 picture" if self.samples == 1 else f"{self.samples} pictures"
        return f"{pictures} at a time{', with gradient checkpointing' if self.checkpointing else ''}"


def fitted(
    training: Training, compute: Callable[[Training, Sequence[Batch]], Result], batches: Sequence[Batch]
) -> Result:
    """Return what `compute` makes of one step's micro-batches, in smaller and smaller pieces while memory runs out.

    Raises:
        RunError: the smallest is too much.
    """
    while True:
        try:
            return compute(training, batches)
        except (MemoryError, RuntimeError, OSError) as error:
            if not (training.config.training.step_down_on_out_of_memory and failures.is_out_of_memory(error)):
                raise
            reason = failures.reason_of(error)
        # Here the error, and with it every tensor that its traceback holds, is gone.
        largest = max(len(batch.slots) for batch in batches)
        whole = MicroBatchSize(largest, training.config.training.gradient_checkpointing)
        micro_batch_size = (training.micro_batch_size or whole).less(largest)
        if micro_batch_size is None:
            raise failures.out_of_memory(reason, training.config, least=True)
        training.optimizer.zero_grad(set_to_none=True)
        training.compute_by(micro_batch_size)
        free_memory()
        again = f"It is done again with {micro_batch_size}, and all after it; the batch stays what it is."
        training.tell(events.Warned(message=f"Step {training.step + 1} ran out of memory: {reason}. {again}"))
