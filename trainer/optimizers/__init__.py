"""The optimizers that a user may choose. A new one is one class and one line here.

Importing this package imports no torch; `OPTIMIZERS[name].build(...)` does.
"""

from __future__ import annotations

from trainer.optimizers.adafactor import Adafactor
from trainer.optimizers.adamw import AdamW, AdamW8bit
from trainer.optimizers.adaptive import DAdaptAdam, Prodigy
from trainer.optimizers.arguments import ArgumentSpec, Flag, Number, Numbers
from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.came import CAME
from trainer.optimizers.lion import Lion

OPTIMIZERS: dict[str, type[OptimizerKind]] = {
    kind.name: kind
    for kind in (
        AdamW,
        AdamW8bit,
        DAdaptAdam,
        Prodigy,
        Adafactor,
        Lion,
        CAME,
    )
}  # fmt: skip

__all__ = ["OPTIMIZERS", "ArgumentSpec", "Flag", "Group", "Number", "Numbers", "OptimizerKind"]
