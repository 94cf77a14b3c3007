"""The optimizers that a user may choose. A new one is one class and one line here.

Importing this package imports no torch; `OPTIMIZERS[name].build(...)` does.
"""

from __future__ import annotations

from trainer.optimizers.adafactor import Adafactor
from trainer.optimizers.adamw import AdamW
from trainer.optimizers.adaptive import DAdaptAdam, Prodigy
from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.bnb import (
    AdamW8bit,
    Lion8bit,
    PagedAdamW8bit,
    PagedAdamW32bit,
    PagedLion8bit,
    SGDNesterov8bit,
)
from trainer.optimizers.came import CAME
from trainer.optimizers.d_adaptation import DAdaptAdaGrad, DAdaptAdan, DAdaptLion, DAdaptSGD
from trainer.optimizers.lion import Lion
from trainer.optimizers.named import is_named, named
from trainer.optimizers.nesterov import SGDNesterov
from trainer.optimizers.schedule_free import (
    AdamWScheduleFree,
    ProdigyPlusScheduleFree,
    RAdamScheduleFree,
    SGDScheduleFree,
)
from trainer.settings.arguments import ArgumentSpec, Flag, Number, Numbers

OPTIMIZERS: dict[str, type[OptimizerKind]] = {
    kind.name: kind
    for kind in (
        AdamW,
        AdamW8bit,
        PagedAdamW8bit,
        PagedAdamW32bit,
        AdamWScheduleFree,
        RAdamScheduleFree,
        DAdaptAdam,
        DAdaptAdaGrad,
        DAdaptAdan,
        DAdaptLion,
        DAdaptSGD,
        Prodigy,
        ProdigyPlusScheduleFree,
        Adafactor,
        CAME,
        Lion,
        Lion8bit,
        PagedLion8bit,
        SGDNesterov,
        SGDNesterov8bit,
        SGDScheduleFree,
    )
}  # fmt: skip


ELSEWHERE = {
    name: f"dadaptation.experimental.{last}"
    for name, last in (
        ("DAdaptation", "DAdaptAdamPreprint"),
        ("DAdaptAdamPreprint", "DAdaptAdamPreprint"),
        ("DAdaptAdanIP", "DAdaptAdanIP"),
    )
}
"""Names of sd-scripts for what is taken as its package has it."""


def kind_of(name: str) -> type[OptimizerKind]:
    """Return the kind of a value of `optimizer_type`: one of OPTIMIZERS, or any other of torch's optimizers by name."""
    return OPTIMIZERS.get(name) or named(name)


def optimizer_name(value: object) -> object:
    """Return the value of `optimizer_type` that a spelling means. Raises ValueError for what is none."""
    if not isinstance(value, str):
        return value
    spellings = {name.lower(): found for name, found in ELSEWHERE.items()}
    spellings |= {also.lower(): kind.name for kind in OPTIMIZERS.values() for also in (kind.name, *kind.also)}
    text = value.strip()
    if text.lower() in spellings:
        return spellings[text.lower()]
    if is_named(text):
        return text
    raise ValueError("")


__all__ = [
    "OPTIMIZERS",
    "ArgumentSpec",
    "Flag",
    "Group",
    "Number",
    "Numbers",
    "OptimizerKind",
    "kind_of",
    "optimizer_name",
]
