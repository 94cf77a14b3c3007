"""The device that a tool computes on, held for itself as long as it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainer.gate import Gate
from trainer.tools.asking import refusal
from trainer.tools.tool import Desk

DEVICES = ("auto", "cpu", "cuda")


@contextmanager
def held(wanted: str, what: str, desk: Desk) -> Iterator[str]:
    """Hold the device that is wanted and yield its name for torch; with "" nothing is held, and it is the CPU.

    Raises:
        ConfigError: there is no such device.
        StateError: another has it.
    """
    if not wanted:
        yield "cpu"
        return
    torch, gate_of = load()
    if wanted == "cuda" and not torch.cuda.is_available():
        raise refusal("device", wanted, "PyTorch finds no such GPU here; leave it out")
    name = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    gate: Gate = gate_of(torch.device(name), what, desk.by)
    gate.take()
    try:
        yield name
    finally:
        gate.leave()


def load() -> tuple[Any, Any]:
    """Import what needs torch."""
    import torch

    from trainer.training.device import gate_of

    return torch, gate_of
