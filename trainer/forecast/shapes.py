"""What operations make of tensors without numbers, worked out once for each operation and shapes.

PyTorch works it out in Python, in milliseconds, at each call. A model's blocks are alike, so nearly all of it was seen
before, and like blocks are worked out once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

_One: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of a tensor."""


class _NotRemembered(Exception):
    """Something of an operation has no such key."""


class Shapes:
    """Calls operations, and answers for those that were called with the like before."""

    def __init__(self) -> None:
        self._known: dict[object, _One | tuple[_One | None, ...] | None] = {}

    def call(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what an operation makes, or the tensor that it changes. It is called where tensors have numbers or are
        shared."""
        changes = _changes_numbers(func)
        if not (changes or _makes_new(func)):
            return func(*args, **kwargs)
        try:
            key = func, _key(args), tuple((name, _key(value)) for name, value in kwargs.items())
            known = self._known.get(key)
        except (_NotRemembered, TypeError):
            return func(*args, **kwargs)
        if known is not None and changes:
            return args[0]
        if known is None:
            made = func(*args, **kwargs)
            self._known[key] = _described(made)
            return made
        if isinstance(known[-1], torch.dtype):
            return _like(known)  # type: ignore[arg-type]
        return tuple(None if each is None else _like(each) for each in known)  # type: ignore[arg-type]


@cache
def _makes_new(func: Any) -> bool:
    """Say whether an operation makes new tensors of others, and neither changes nor shares any."""
    schema = func._schema
    tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return tensors and not any(each.alias_info for each in (*schema.arguments, *schema.returns))


@cache
def _changes_numbers(func: Any) -> bool:
    """Say whether an operation writes into its first tensor, and that alone, and gives it back in the same shape."""
    first, *rest = func._schema.arguments or (None,)
    returned = func._schema.returns
    aliases = [each.alias_info for each in (first, *returned) if each is not None]
    return (
        len(returned) == 1
        and len(aliases) == 2
        and all(each is not None and each.is_write for each in aliases)
        and not any(each.alias_info for each in rest)
        and torch.Tag.inplace_view not in func.tags
    )


def _key(value: Any) -> object:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _NotRemembered
        return value.dtype, value.shape, value.stride()
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value


def _described(made: Any) -> _One | tuple[_One | None, ...] | None:
    """Return what is remembered of something made: None for what is no tensor and no few of them."""
    if isinstance(made, Tensor):
        return _one(made)
    if isinstance(made, tuple) and made and all(each is None or isinstance(each, Tensor) for each in made):
        return tuple(None if each is None else _one(each) for each in made)
    return None


def _one(tensor: Tensor) -> _One:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _like(told: _One) -> Tensor:
    shape, stride, dtype = told
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
