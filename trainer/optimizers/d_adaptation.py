"""D-Adaptation (Defazio & Mishchenko 2023, arXiv 2301.07733) for methods other than Adam.

pytorch-optimizer's steps where they are those of dadaptation 3.2 (the tests compare whole trajectories), which is for
AdaGrad, Lion and SGD; its Adan squares the gradient's square once more, so there the original is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.ground.errors import RunError
from trainer.optimizers.adaptive import D0, GROWTH_RATE, POSITIVE_EPS, FindsOneRate
from trainer.optimizers.lion import LION_BETAS
from trainer.settings.arguments import Flag, Number, Numbers

if TYPE_CHECKING:
    import torch

COUPLED_DECAY = Number(0.0, "Share of each weight that is added to its gradient.", at_least=0)
DECAY = Number(0.0, "Share of each weight, times the step size, taken off at each step.", at_least=0)
MOMENTUM = Number(0.0, "Share of the last place that is kept.", at_least=0, below=1)


class DAdaptAdaGrad(FindsOneRate):
    """AdaGrad with D-Adaptation.

    Its estimate grows with the length of the gradients' sum, and those of a LoRA point another way at each step: from
    d0 it hardly moves. So it is with the original package, whose author advises against it. 2,000 of its steps, which
    shrink with the root of their number, go from 2e-3 about as far as AdamW's of 1e-4.
    """

    name = constructor = "DAdaptAdaGrad"
    rests = False
    help = "Hardly leaves its first guess of the learning rate: set learning_rate to 1, and optimizer_args to d0=2e-3."
    usual_arguments = ("d0=2e-3",)
    arguments = {
        "momentum": MOMENTUM,
        "eps": Number(1e-6, POSITIVE_EPS.help, above=0),
        "weight_decay": COUPLED_DECAY,
        "d0": D0,
        "growth_rate": GROWTH_RATE,
    }


class DAdaptLion(FindsOneRate):
    """Lion with D-Adaptation."""

    name = constructor = "DAdaptLion"
    given = {"weight_decouple": True}
    rests = False
    help = "Lion that finds its own learning rate. Set learning_rate to 1."
    arguments = {"betas": LION_BETAS, "weight_decay": DECAY, "d0": D0}


class DAdaptSGD(FindsOneRate):
    """SGD with D-Adaptation. A step at learning rate 0, at which the original fails, changes nothing.

    The estimate of its first few steps can be far too high, and it never sinks; `growth_rate` keeps it back.
    """

    name = constructor = "DAdaptSGD"
    help = (
        "Finds its own learning rate: set learning_rate to 1, and optimizer_args to growth_rate=1.1, lest it fly off."
    )
    usual_arguments = ("growth_rate=1.1",)
    arguments = {"momentum": MOMENTUM, "weight_decay": COUPLED_DECAY, "d0": D0, "growth_rate": GROWTH_RATE}


class DAdaptAdan(FindsOneRate):
    """Adan (Xie et al. 2022, arXiv 2208.06677) with D-Adaptation: the original, of dadaptation."""

    name = "DAdaptAdan"
    rests = False
    help = "Adan that finds its own learning rate. Set learning_rate to 1."
    arguments = {
        "betas": Numbers(
            (0.98, 0.92, 0.99),
            "Decay of the means of the gradient, of its change, and of the square of both.",
            each=Number(0.9, "", at_least=0, below=1),
        ),
        "eps": POSITIVE_EPS,
        "weight_decay": Number(0.02, DECAY.help, at_least=0),
        "no_prox": Flag(False, "Take weight decay off before the step, as AdamW does."),
        "d0": D0,
        "growth_rate": GROWTH_RATE,
    }

    @classmethod
    def load(cls) -> type[torch.optim.Optimizer]:
        try:
            from dadaptation import DAdaptAdan
        except ImportError as error:
            raise RunError(
                f"optimizer_type = {cls.name} needs the package dadaptation, which cannot be imported: {error}.",
                remedy="Install dadaptation, or choose DAdaptAdam.",
            ) from error
        found: type[torch.optim.Optimizer] = DAdaptAdan
        return found
