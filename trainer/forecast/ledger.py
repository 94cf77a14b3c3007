"""Counts the memory that tensors take, as it is taken and given back, and remembers the most there was at once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.forecast.shapes import Shapes

WORK = "activations and gradients"
"""Whatever operations make while they are counted, unless they are told another name."""


class Ledger(TorchDispatchMode):
    """Within this context every storage that an operation makes is counted until it is freed, once, however many views.

    What kernels take for themselves while they compute is not seen. Tensors may lie on any device, "meta" among them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._shapes = Shapes()
        self._held: Counter[str] = Counter()
        self._name = WORK
        self.now = 0
        self.peak = 0
        self.at_peak: Mapping[str, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: without PyTorch's guard against that a call takes less time."""
        return False

    def hold(self, name: str, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors that are there already, under a name."""
        for tensor in tensors:
            self._note(tensor, name)

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors for nothing: someone else tells what they take, by `add`."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            self._storages[key] = weakref.ref(storage, partial(self._forget, key)), WORK, 0

    def add(self, name: str, count: int) -> None:
        """Count bytes that no tensor stands for; negative ones are given back."""
        self._count(name, count)

    def held(self, name: str) -> int:
        """Return how many bytes are held under a name now."""
        return self._held[name]

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Within the context what operations make goes by this name."""
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before

    def begin(self) -> None:
        """Forget the peak: the next one is counted from what is there now."""
        self.peak, self.at_peak = self.now, dict(self._held)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it made."""
        made = self._shapes.call(func, args, kwargs or {})
        if isinstance(made, Tensor):
            self._note(made, self._name)
        elif isinstance(made, list | tuple):
            for each in made:
                if isinstance(each, Tensor):
                    self._note(each, self._name)
        return made

    def _note(self, tensor: Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        # The wrapper lives as long as the storage: PyTorch keeps one for each.
        self._storages[key] = weakref.ref(storage, partial(self._forget, key)), name, size
        self._count(name, size)

    def _forget(self, key: int, _gone: object) -> None:
        _, name, size = self._storages.pop(key)
        self._count(name, -size)

    def _count(self, name: str, size: int) -> None:
        self._held[name] += size
        self.now += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self._held)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return what the storages of tensors take, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def tensors_of(module: torch.nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a module."""
    yield from module.parameters()
    yield from module.buffers()
