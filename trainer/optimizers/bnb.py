"""The optimizers of bitsandbytes: state in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), and state that is paged.

Paged state moves to main memory while a GPU's is short (Dettmers et al. 2023, arXiv 2305.14314). On a CPU, where there
is nothing to page, it stays where it is, and the steps are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.ground.errors import RunError
from trainer.optimizers.adamw import BETAS, EPS, WEIGHT_DECAY
from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.lion import LION_BETAS
from trainer.settings.arguments import Number

if TYPE_CHECKING:
    import torch

MIN_8BIT_SIZE = Number(4096, "Tensors with fewer elements keep 32-bit state.", at_least=0, whole=True)
NO_DECAY = Number(0.0, WEIGHT_DECAY.help, at_least=0)
ADAMW_ARGUMENTS = {"betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY, "min_8bit_size": MIN_8BIT_SIZE}
LION_ARGUMENTS = {"betas": LION_BETAS, "weight_decay": NO_DECAY, "min_8bit_size": MIN_8BIT_SIZE}


class BitsAndBytes(OptimizerKind):
    """What the kinds of this package share. `constructor` is the class in bitsandbytes.optim, `instead` what to choose
    where the package is not there, `given` what the constructor is told beside the arguments."""

    float16 = True
    constructor: ClassVar[str]
    instead: ClassVar[str]
    given: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        try:
            import bitsandbytes.optim as package

            steps = getattr(package, cls.constructor)
        except (ImportError, AttributeError) as error:
            raise RunError(
                f"optimizer_type = {cls.name} needs the package bitsandbytes, which cannot be imported: {error}.",
                remedy=f"Install bitsandbytes, or choose {cls.instead}.",
            ) from error
        optimizer: torch.optim.Optimizer = steps(list(groups), lr=groups[0]["lr"], **options, **cls.given)
        return optimizer


class AdamW8bit(BitsAndBytes):
    """bitsandbytes' AdamW whose state takes a quarter of the memory; on the CPU as well."""

    name = "AdamW8bit"
    help = "AdamW with its memory cut to a quarter; nearly the same result. Learning rate around 1e-4."
    usual_rates = (5e-5, 1e-4, 1e-4)
    arguments = ADAMW_ARGUMENTS
    constructor, instead = "AdamW8bit", "AdamW"


class PagedAdamW8bit(AdamW8bit):
    """AdamW8bit whose state can leave the GPU while its memory is short."""

    name = "PagedAdamW8bit"
    help = "AdamW8bit whose state goes to main memory while the GPU's is short. Learning rate around 1e-4."
    constructor = "PagedAdamW8bit"


class PagedAdamW32bit(AdamW8bit):
    """AdamW with full state, which can leave the GPU while its memory is short."""

    name = "PagedAdamW32bit"
    help = "AdamW whose state goes to main memory while the GPU's is short. Learning rate around 1e-4."
    arguments = {name: spec for name, spec in ADAMW_ARGUMENTS.items() if name != "min_8bit_size"}
    constructor = "PagedAdamW32bit"
    also = ("PagedAdamW",)


class Lion8bit(BitsAndBytes):
    """bitsandbytes' Lion whose state takes a quarter of the memory."""

    name = "Lion8bit"
    help = "Lion with its memory cut to a quarter. Learning rate 3 to 10 times smaller than for AdamW."
    usual_rates = (5e-6, 3e-5, 1e-5)
    arguments = LION_ARGUMENTS
    constructor, instead = "Lion8bit", "Lion"


class PagedLion8bit(Lion8bit):
    """Lion8bit whose state can leave the GPU while its memory is short."""

    name = "PagedLion8bit"
    help = "Lion8bit whose state goes to main memory while the GPU's is short. A rate 3 to 10 times below AdamW's."
    constructor = "PagedLion8bit"


class SGDNesterov8bit(BitsAndBytes):
    """bitsandbytes' SGD with 8-bit momentum, as sd-scripts builds it.

    The package takes `nesterov=True` and goes on without looking ahead: its steps are those of plain momentum.
    """

    name = "SGDNesterov8bit"
    help = "SGD with 8-bit momentum. Needs rates a thousand times those of AdamW and more."
    usual_rates = (1e-2, 10.0, 0.5)
    arguments = {
        "momentum": Number(0.9, "Share of the last step that is taken again.", above=0, below=1),
        "weight_decay": Number(0.0, "Share of each weight that is added to its gradient.", at_least=0),
        "min_8bit_size": MIN_8BIT_SIZE,
    }
    constructor, instead = "SGD8bit", "SGDNesterov"
    given = {"nesterov": True}
