"""Stochastic gradient descent with Nesterov's momentum (Nesterov 1983; Sutskever et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly
from trainer.settings.arguments import Number

if TYPE_CHECKING:
    import torch


class SGDNesterov(OptimizerKind):
    """torch.optim.SGD with nesterov=True, and a momentum of 0.9 unless another is given, as in sd-scripts."""

    name = "SGDNesterov"
    help = "Plain descent with momentum. Needs rates a thousand times those of AdamW and more."
    elementwise = True
    usual_rates = (1e-2, 10.0, 0.5)
    arguments = {
        "momentum": Number(0.9, "Share of the last step that is taken again.", above=0, below=1),
        "weight_decay": Number(0.0, "Share of each weight that is added to its gradient.", at_least=0),
    }

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        import torch

        return restore_exactly(torch.optim.SGD(list(groups), nesterov=True, **options))
