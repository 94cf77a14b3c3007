"""What a PyTorch pickle lists, read without running anything in it and without its weights. No torch."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

UNPICKLING_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError,
    RecursionError, AssertionError, struct.error,
)  # fmt: skip
"""A damaged pickle can fail in any of these ways; all of them mean the same to the user."""

_STORAGE = "Storage"
_TENSOR_BUILDERS = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor"})
_MOST_DIMENSIONS, _LARGEST_DIMENSION = 8, 1 << 40

_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that stayed in the file: its shape and its storage's dtype in PyTorch's words."""

    shape: tuple[int, ...]
    dtype: str


class Inert:
    """Stands in for every class and function that a pickle names: takes everything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> Inert:
        return self

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Take one item of a list."""

    def extend(self, _: object) -> None:
        """Take the items of a list."""


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str


def _tensor(storage: object, _offset: object, shape: tuple[int, ...], *_: object) -> Tensor:
    sides = tuple(shape[: _MOST_DIMENSIONS + 1])
    if len(sides) > _MOST_DIMENSIONS or not all(type(side) is int and 0 <= side < _LARGEST_DIMENSION for side in sides):
        raise pickle.UnpicklingError("no tensor has this shape")
    return Tensor(sides, storage.dtype if isinstance(storage, _Storage) else "")


def _ordered(items: object = (), *_: object) -> OrderedDict[str, object]:
    """Stands for OrderedDict, which Python 2 gave its items as a list of pairs."""
    pairs = items if isinstance(items, list) else []
    return OrderedDict((name, value) for name, value in pairs if isinstance(name, str))


def _first(value: object, *_: object) -> object:
    """Stands for `torch._utils._rebuild_parameter`: a parameter is its tensor."""
    return value


class InertUnpickler(_PythonUnpickler):
    """Python's own unpickler rather than the one in C: a memo number of four billion makes that one fill the memory.

    What becomes a key must be plain: the hash of a tuple of tuples can take for ever.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)

    def _check_keys(self, keys: Iterable[object]) -> None:
        for key in keys:
            parts = key if isinstance(key, tuple) else (key,)
            if any(isinstance(part, tuple | frozenset) for part in parts):
                raise pickle.UnpicklingError("a key of nested parts")

    def load_setitem(self) -> None:
        """Check the key first."""
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Check the keys first."""
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        """Check the keys first."""
        self._check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        """Check the members of a set first."""
        self._check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        """Check the members first."""
        self._check_keys(self.stack)
        super().load_frozenset()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def find_class(self, module: str, name: str) -> object:
        if module == "collections" and name == "OrderedDict":
            return _ordered
        if module == "torch._utils" and name in _TENSOR_BUILDERS:
            return _tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _first
        if module == "torch" and name.endswith(_STORAGE):
            return _Storage(name.removesuffix(_STORAGE))
        return Inert

    def persistent_load(self, identifier: object) -> object:
        """Storages stay where they are; what is kept is their dtype."""
        return (
            next((part for part in identifier if isinstance(part, _Storage)), None)
            if isinstance(identifier, tuple)
            else None
        )
