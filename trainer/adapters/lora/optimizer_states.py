"""The state of an optimizer, between two layouts: matrices stacked in one parameter, and each one for itself.

What is saved is of each matrix for itself, whatever was stacked, so that a state outlives another way of computing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix of that shape is: `parameter` counts those of its group, `index` what is stacked in it."""

    parameter: int
    index: int
    shape: torch.Size


def by_matrix(saved: Mapping[str, Any], groups: Sequence[Sequence[Place]]) -> dict[str, Any]:
    """Return a state_dict with an entry for each matrix. `groups` has the matrices of each group in their order."""
    state: dict[int, Any] = {}
    param_groups, first = [], 0
    for group, places in zip(saved["param_groups"], groups, strict=True):
        for number, place in enumerate(places, first):
            whole = saved["state"].get(group["params"][place.parameter])
            if whole is not None:
                state[number] = {name: _part(value, place) for name, value in whole.items()}
        param_groups.append({**group, "params": list(range(first, first + len(places)))})
        first += len(places)
    return {**saved, "state": state, "param_groups": param_groups}


def by_parameter(saved: Mapping[str, Any], groups: Sequence[Sequence[Place]]) -> dict[str, Any]:
    """Return a state_dict with an entry for each stacked parameter. The reverse of `by_matrix`.

    Raises:
        ValueError, LookupError, TypeError, RuntimeError: `saved` is of other matrices.
    """
    state: dict[int, Any] = {}
    param_groups, first = [], 0
    for group, places in zip(saved["param_groups"], groups, strict=True):
        members: dict[int, list[tuple[int, Mapping[str, Any], torch.Size]]] = {}
        for number, place in zip(group["params"], places, strict=True):
            if number in saved["state"]:
                members.setdefault(place.parameter, []).append((place.index, saved["state"][number], place.shape))
        for parameter, parts in members.items():
            state[first + parameter] = _stacked([each for _, *each in sorted(parts, key=lambda part: part[0])])
        count = 1 + max(place.parameter for place in places)
        param_groups.append({**group, "params": list(range(first, first + count))})
        first += count
    return {**saved, "state": state, "param_groups": param_groups}


def _part(value: Any, place: Place) -> Any:
    """Return what of a value, which is of a whole parameter, belongs to one matrix; numbers belong to all."""
    return value[place.index].reshape(place.shape) if _is_matrix(value) else value


def _stacked(parts: Sequence[Sequence[Any]]) -> dict[str, Any]:
    (first, _), *_ = parts
    return {
        name: torch.stack([_flat(state[name], shape) for state, shape in parts]) if _is_matrix(value) else value
        for name, value in first.items()
    }


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1


def _flat(value: Tensor, shape: torch.Size) -> Tensor:
    """Return a matrix' value without a 1x1 kernel, as it is stacked."""
    if value.shape != shape:
        raise ValueError(f"a value of {tuple(value.shape)} for a matrix of {tuple(shape)}")
    return value.flatten(1) if shape[2:] == (1, 1) else value
