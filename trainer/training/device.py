"""The gate of the device that this process trains on."""

from __future__ import annotations

import os

import torch

from trainer.gate import Gate


def gate_of(device: torch.device, what: str, by: str) -> Gate:
    """Return the gate of a device for what is to be done with it, `by` whom.

    A GPU is known by the number that its maker gave it, since its index differs from process to process. What shares
    the CPU in one run, its further ranks, counts as devices of their own.
    """
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return Gate(f"gpu-{facts.uuid}", f"The GPU {facts.name}", what, by)
    rank = os.environ.get("LOCAL_RANK", "0")
    title = "The CPU" if device.type == "cpu" else "The GPU"
    return Gate(device.type if rank == "0" else f"{device.type}-{rank}", title, what, by)
