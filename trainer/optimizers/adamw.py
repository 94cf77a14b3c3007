"""AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly
from trainer.settings.arguments import Flag, Number, Numbers

if TYPE_CHECKING:
    import torch

BETAS = Numbers(
    (0.9, 0.999),
    "Decay of the running means of the gradient and of its square.",
    each=Number(0.9, "", at_least=0, below=1),
)
EPS = Number(1e-8, "Added to the denominator, so that tiny gradients do not make huge steps.", at_least=0)
WEIGHT_DECAY = Number(0.01, "Share of each weight, times the learning rate, taken off at each step.", at_least=0)


class AdamW(OptimizerKind):
    """torch.optim.AdamW with torch's defaults."""

    name = "AdamW"
    help = "The standard: exact and predictable. Learning rate around 1e-4."
    elementwise = True
    usual_rates = (5e-5, 1e-4, 1e-4)
    arguments = {
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": WEIGHT_DECAY,
        "amsgrad": Flag(False, "Use the largest running mean so far of the squared gradient (Reddi et al. 2018)."),
    }

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        import torch

        # The fused kernel is one pass over all state, on the CPU as well; elsewhere torch chooses.
        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        fused = True if devices <= {"cpu", "cuda"} else None
        return restore_exactly(torch.optim.AdamW(list(groups), **options, fused=fused))

    @classmethod
    def step(cls, optimizer: torch.optim.Optimizer, finite: torch.Tensor) -> None:
        if finite.is_cuda and optimizer.defaults["fused"]:
            cls.gated_step(optimizer, finite)
        else:
            super().step(optimizer, finite)

    @staticmethod
    def gated_step(optimizer: torch.optim.Optimizer, finite: torch.Tensor) -> None:
        """Launch the fused kernel, which looks on the device whether to do anything, as for a loss scaler."""
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
