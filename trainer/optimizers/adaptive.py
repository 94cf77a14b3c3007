"""Optimizers that find their own step size.

D-Adaptation: Defazio & Mishchenko 2023, arXiv 2301.07733. Prodigy: Mishchenko & Defazio 2024, arXiv 2306.06101.

pytorch-optimizer's steps are used: the original packages wait for the GPU twice for every trained tensor, these once
for all of them. Two things are put back as the originals have them (the tests compare whole trajectories):

- a step at learning rate 0, such as the first one of a warm-up, changes nothing, neither moments nor step count;
- Prodigy's coupled weight decay enters the gradient before the moments see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.ground.errors import ConfigError, Problem
from trainer.optimizers.adamw import BETAS, EPS
from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly
from trainer.settings.arguments import Flag, Number

if TYPE_CHECKING:
    import torch

POSITIVE_EPS = Number(EPS.default, EPS.help, above=0)
WEIGHT_DECAY = Number(0.0, "Share of each weight, times the step size, taken off at each step.", at_least=0)
BIAS_CORRECTION = Flag(
    False, "Correct the running means for their start at zero, as Adam does.", parameter="bias_correction"
)
D0 = Number(1e-6, "First guess of the step size. Rarely needs a change.", above=0)
GROWTH_RATE = Number(
    float("inf"),
    "The step size grows by at most this factor a step, 1.02 for instance; not limited unless given.",
    at_least=1,
)


class FindsOneRate(OptimizerKind):
    """What the methods share that find one step size `d` for all that they train.

    `constructor` is the class in pytorch_optimizer, `given` what it is told beside the arguments. With `rests` a step
    at learning rate 0 is left out.
    """

    one_rate = True
    finds_rate = True
    usual_rates = (1.0, 1.0, 1.0)
    constructor: ClassVar[str]
    given: ClassVar[Mapping[str, Any]] = {}
    rests: ClassVar[bool] = True

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        require_one_rate(cls.name, groups)
        steps = cls.load()
        return restore_exactly(
            (resting(steps, cls.before) if cls.rests else steps)(list(groups), **options, **cls.given)
        )

    @classmethod
    def load(cls) -> type[torch.optim.Optimizer]:
        """Return the package's class. Raises RunError where the package is not there."""
        import pytorch_optimizer

        found: type[torch.optim.Optimizer] = getattr(pytorch_optimizer, cls.constructor)
        return found

    @classmethod
    def before(cls, optimizer: torch.optim.Optimizer) -> None:
        """Do what the package leaves out, before each step."""

    @classmethod
    def step_size(cls, optimizer: torch.optim.Optimizer) -> float | None:
        return float(optimizer.param_groups[0]["d"])


class DAdaptAdam(FindsOneRate):
    """Adam with D-Adaptation, as dadaptation 3.2 steps."""

    name = constructor = "DAdaptAdam"
    help = "Finds its own learning rate. Set learning_rate to 1."
    arguments = {
        "betas": BETAS,
        "eps": POSITIVE_EPS,
        "weight_decay": WEIGHT_DECAY,
        "decouple": Flag(
            False,
            "Take weight decay off the weights, as AdamW does, not off the gradient.",
            parameter="weight_decouple",
        ),
        "use_bias_correction": BIAS_CORRECTION,
        "d0": D0,
        "growth_rate": GROWTH_RATE,
    }


class Prodigy(FindsOneRate):
    """Prodigy, as prodigyopt 1.1 steps."""

    name = constructor = "Prodigy"
    help = "Finds its own learning rate, faster than DAdaptAdam. Set learning_rate to 1."
    arguments = {
        "betas": BETAS,
        "beta3": Number(
            None,
            "Decay of the sums behind the step size; the root of the second beta unless given.",
            at_least=0,
            below=1,
            optional=True,
        ),
        "eps": POSITIVE_EPS,
        "weight_decay": WEIGHT_DECAY,
        "decouple": Flag(
            True, "Take weight decay off the weights, as AdamW does, not off the gradient.", parameter="weight_decouple"
        ),
        "use_bias_correction": BIAS_CORRECTION,
        "safeguard_warmup": Flag(False, "Keep a warm-up's small learning rates out of the step size's denominator."),
        "d0": D0,
        "d_coef": Number(1.0, "Multiplies the step size; 0.5 to 2 is the way to make it learn less or more.", above=0),
        "growth_rate": GROWTH_RATE,
    }

    @classmethod
    def before(cls, optimizer: torch.optim.Optimizer) -> None:
        _decay_gradients(optimizer)


def require_one_rate(name: str, groups: Sequence[Group]) -> None:
    """Raise ConfigError where the groups' rates differ: the steps would use the first group's for all."""
    rates = {group["lr"] for group in groups}
    if len(rates) > 1:
        given = ", ".join(f"{group['name']} {group['lr']:g}" for group in groups)
        message = f"{name} finds one step size for all parts; give them all the same learning rate, not {given}"
        raise ConfigError([Problem("learning_rate", message, tuple(sorted(rates)))])


def resting(
    steps: type[torch.optim.Optimizer], before: Callable[[torch.optim.Optimizer], None]
) -> type[torch.optim.Optimizer]:
    """Return a class whose step does nothing where every learning rate is 0, and else `before` and what it did."""

    def step(self: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if all(group["lr"] == 0 for group in self.param_groups):
            return None
        before(self)
        return steps.step(self, closure)  # type: ignore[arg-type]

    # The saved file names the optimizer by its module.
    return type(steps.__name__, (steps,), {"__module__": steps.__module__, "step": step})


def _decay_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Add coupled weight decay to the gradients.

    The package adds it too, but after the moments are updated, when nothing reads the gradient any more.
    """
    for group in optimizer.param_groups:
        if group["weight_decay"] and not group["weight_decouple"]:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach(), alpha=group["weight_decay"])
