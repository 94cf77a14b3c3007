"""States written beside the training: what they hold is copied, and a thread brings the copy to the disk."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.training import states
from trainer.training.states import State


@dataclass(frozen=True, slots=True)
class Written:
    """A state on the disk: its folder, and the step and epoch that it is of."""

    path: Path
    step: int
    epoch: int


class StateWriter:
    """Writes one state after another into `folder`, each whole or not at all."""

    def __init__(self, folder: Path, kept: Callable[[int], Container[int]] = lambda step: ()) -> None:
        """`kept` tells which steps' states stay, besides the newest, once that of a step is written."""
        self._folder, self._kept = folder, kept
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._under_way: Future[Written] | None = None

    def begin(self, state: State, epoch: int) -> None:
        """Copy a state, whose tensors may change from now on, and begin to write the copy.

        The state before it must have been asked for (`take`).
        """
        assert self._under_way is None, "a state is being written, or nobody asked what became of it"
        copy = State(state.position, _copied(state.adapter), _copied(state.trained))
        self._under_way = self._thread.submit(self.write, copy, epoch)

    def write(self, state: State, epoch: int) -> Written:
        """Write a state now.

        Raises:
            RunError: see `checkpoints.save_state`.
        """
        return Written(
            states.save_state(self._folder, state, self._kept(state.position.step)), state.position.step, epoch
        )

    def take(self, *, wait: bool) -> Written | None:
        """Return the state that was begun, once it is written; with `wait` it is waited for.

        Raises:
            RunError: it could not be written.
        """
        if self._under_way is None or not (wait or self._under_way.done()):
            return None
        under_way, self._under_way = self._under_way, None
        return under_way.result()


def _copied(value: Any) -> Any:
    """Return a value whose tensors, at any depth, are copies in main memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
