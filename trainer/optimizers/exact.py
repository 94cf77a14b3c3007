"""Make an optimizer's state come back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def restore_exactly(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make `load_state_dict` keep what was saved, and return the optimizer.

    torch casts floating-point state to its parameter's dtype, which rounds the float32 state that some optimizers
    keep for bfloat16 parameters; and it leaves tensors in the parameter groups on the device they were loaded to.
    """
    saved: dict[str, Any] = {}

    def remember(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        saved.update(state_dict)

    def repair(optimizer: torch.optim.Optimizer) -> None:
        for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            for parameter, index in zip(group["params"], saved_group["params"], strict=True):
                _keep_dtypes(optimizer.state.get(parameter, {}), saved["state"].get(index, {}), parameter.device)
            _move_tensors(group)
        saved.clear()

    optimizer.register_load_state_dict_pre_hook(remember)
    optimizer.register_load_state_dict_post_hook(repair)
    return optimizer


def _keep_dtypes(state: dict[str, Any], saved: Mapping[str, Any], device: torch.device) -> None:
    """Put back each saved tensor of `saved` whose dtype was changed in `state`."""
    for key, value in saved.items():
        if _is_tensor(value) and value.dtype != state[key].dtype:
            state[key] = value.to(device=device, copy=True)


def _move_tensors(group: dict[str, Any]) -> None:
    """Move the tensors of a group to the device of its parameters."""
    device = next((parameter.device for parameter in group["params"]), None)
    for key, value in group.items():
        if _is_tensor(value) and device is not None:
            group[key] = value.to(device)


def _is_tensor(value: object) -> bool:
    # Said without torch, which this package does not import before build().
    return hasattr(value, "dtype") and hasattr(value, "device")
