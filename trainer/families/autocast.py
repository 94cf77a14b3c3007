"""PyTorch's autocast where the device has it. Tensors without numbers, on "meta", are cast by nobody."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, dtype: torch.dtype | None = None, *, enabled: bool) -> AbstractContextManager[None]:
    """Return `torch.autocast` for a device, or a context without an effect."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=enabled)
