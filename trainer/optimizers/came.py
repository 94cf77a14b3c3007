"""CAME (Luo et al. 2023, arXiv 2307.02047): Adafactor's factored squares, and a confidence in each update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly
from trainer.settings.arguments import Number, Numbers

if TYPE_CHECKING:
    import torch


class CAME(OptimizerKind):
    """pytorch-optimizer's CAME, which steps as came-pytorch 0.1.3.

    The mean of squared residuals starts at 0 and is not corrected for it: with the defaults the first step is eleven
    times the learning rate, and those of the first hundred up to thirty-seven times. A warm-up keeps them small.
    """

    name = "CAME"
    help = "As little memory as Adafactor. Its first steps are large: a warm-up, and a learning rate around 5e-5."
    also = ("pytorch_optimizer.CAME", "came_pytorch.CAME")
    needs_warmup = "Its first hundred steps are 11 to 37 times the learning rate, since a mean of its starts at 0."
    clips = True
    usual_rates = (1e-5, 1e-4, 5e-5)
    arguments = {
        "betas": Numbers(
            (0.9, 0.999, 0.9999),
            "Decay of the running means of the update, of the squared gradient, and of the squared residual.",
            each=Number(0.9, "", at_least=0, below=1),
        ),
        "eps": Numbers(
            (1e-30, 1e-16),
            "Added to the squared gradient, and to the squared residual.",
            each=Number(0.0, "", at_least=0),
        ),
        "clip_threshold": Number(1.0, "Updates with a larger root mean square are scaled down to it.", above=0),
        "weight_decay": Number(
            0.0, "Share of each weight, times the learning rate, taken off at each step.", at_least=0
        ),
    }

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        squares, residuals = options.pop("eps")
        import pytorch_optimizer

        return restore_exactly(
            pytorch_optimizer.CAME(list(groups), eps1=squares, eps2=residuals, **options),
        )
