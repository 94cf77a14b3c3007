"""Lion (Chen et al. 2023): every weight moves by the learning rate, in the direction of the sign of a mean gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly
from trainer.settings.arguments import Number, Numbers

if TYPE_CHECKING:
    import torch


LION_BETAS = Numbers(
    (0.9, 0.99),
    "Weight of the mean in the direction of a step; decay of that mean.",
    each=Number(0.9, "", at_least=0, below=1),
)


class Lion(OptimizerKind):
    """pytorch-optimizer's Lion, which steps as lion-pytorch does."""

    name = "Lion"
    help = "Half of AdamW's memory. Learning rate 3 to 10 times smaller than for AdamW."
    elementwise = True
    float16 = True
    usual_rates = (5e-6, 3e-5, 1e-5)
    arguments = {
        "betas": LION_BETAS,
        "weight_decay": Number(
            0.0, "Share of each weight, times the learning rate, taken off at each step.", at_least=0
        ),
    }

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        from pytorch_optimizer import Lion as Steps

        return restore_exactly(Steps(list(groups), **options))
