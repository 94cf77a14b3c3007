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
    """Where a matrix of that shape is: `parameter` counts those of its group, `index` what is stacked in it.

    `index` is None for a matrix that is a parameter of its own. `stacked` is the shape in which it is stacked.
    """

    parameter: int
    index: int | None
    shape: torch.Size
    stacked: torch.Size


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
        members: dict[int, list[tuple[Place, Mapping[str, Any]]]] = {}
        for number, place in zip(group["params"], places, strict=True):
            if number in saved["state"]:
                members.setdefault(place.parameter, []).append((place, saved["state"][number]))
        for parameter, parts in members.items():
            state[first + parameter] = _joined(parts)
        count = 1 + max(place.parameter for place in places)
        param_groups.append({**group, "params": list(range(first, first + count))})
        first += count
    return {**saved, "state": state, "param_groups": param_groups}


def _part(value: Any, place: Place) -> Any:
    """Return what of a value, which is of a whole parameter, belongs to one matrix; each has numbers of its own."""
    if place.index is None or not isinstance(value, Tensor):
        return value
    return value[place.index].reshape(place.shape) if _has_shape(value) else value.clone()


def _joined(parts: Sequence[tuple[Place, Mapping[str, Any]]]) -> Mapping[str, Any]:
    (place, first), *_ = parts
    if place.index is None:
        return first
    parts = sorted(parts, key=lambda part: part[0].index or 0)
    return {
        name: torch.stack([_as_stacked(state[name], place) for place, state in parts]) if _has_shape(value) else value
        for name, value in first.items()
    }


def _as_stacked(value: Any, place: Place) -> Any:
    """Return a matrix' value as it is stacked."""
    if value.shape != place.shape:
        raise ValueError(f"a value of {tuple(value.shape)} for a matrix of {tuple(place.shape)}")
    return value.reshape(place.stacked)


def _has_shape(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
