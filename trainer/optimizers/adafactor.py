"""Adafactor (Shazeer & Stern 2018): the square of the gradient is kept as one row and one column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly
from trainer.settings.arguments import Flag, Number, Numbers, parse

if TYPE_CHECKING:
    import torch


class Adafactor(OptimizerKind):
    """transformers' Adafactor, which is the one that sd-scripts uses.

    Here `scale_parameter` and `relative_step` default to False, so that learning_rate and lr_scheduler mean what they
    say; the package and sd-scripts default to True, and most published recipes turn them off in so many words.
    With `relative_step=True` the method takes its rate from the step count, and learning_rate and lr_scheduler have
    no effect, as in sd-scripts.
    """

    name = "Adafactor"
    help = "Needs the least memory. Learning rate around 1e-4, max_grad_norm 0."
    float16 = True
    clips = True
    usual_rates = (5e-5, 1e-3, 1e-4)
    arguments = {
        "eps": Numbers(
            (1e-30, 1e-3),
            "Added to the squared gradient; smallest scale of a weight where scale_parameter is on.",
            each=Number(0.0, "", at_least=0),
        ),
        "clip_threshold": Number(1.0, "Updates with a larger root mean square are scaled down to it.", above=0),
        "decay_rate": Number(
            -0.8, "Exponent of the step count in the decay of the squared gradient's mean.", at_most=0
        ),
        "beta1": Number(
            None,
            "Decay of the running mean of the update; none is kept unless given.",
            at_least=0,
            below=1,
            optional=True,
        ),
        "weight_decay": Number(
            0.0, "Share of each weight, times the learning rate, taken off at each step.", at_least=0
        ),
        "scale_parameter": Flag(False, "Multiply the learning rate by the root mean square of each tensor."),
        "relative_step": Flag(
            False, "Take the rate from the step count; learning_rate and lr_scheduler have no effect."
        ),
        "warmup_init": Flag(False, "Start relative steps at 1e-6 a step in place of 1e-2."),
    }

    @classmethod
    def conflicts(cls, values: Mapping[str, object]) -> list[str]:
        if values["warmup_init"] and not values["relative_step"]:
            return ["warmup_init=True has an effect only with relative_step=True; set that too, or leave it out"]
        return []

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        from transformers.optimization import Adafactor as Steps

        return restore_exactly(Steps(list(groups), **options))

    @classmethod
    def acting_rate(cls, rate: float, optimizer_args: Sequence[str]) -> float | None:
        """None with `relative_step`. With `scale_parameter` the rate is multiplied by a matrix's root mean square, by
        `eps[1]` where that is less: a thousandth for one of zeros."""
        values = cls._with_defaults(parse(cls.name, cls.arguments, optimizer_args)[0])
        if values["relative_step"]:
            return None
        eps = values["eps"]
        return rate * float(eps[1]) if values["scale_parameter"] and isinstance(eps, tuple) else rate

    @classmethod
    def own_rate(cls, step: int, optimizer_args: Sequence[str]) -> float:
        """The relative step; with `scale_parameter` times the smallest scale, that of a matrix of zeros."""
        values = cls._with_defaults(parse(cls.name, cls.arguments, optimizer_args)[0])
        eps, rate = values["eps"], _step_rate(step, warming=bool(values["warmup_init"]))
        return rate * float(eps[1]) if values["scale_parameter"] and isinstance(eps, tuple) else rate

    @classmethod
    def rates(cls, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        return {
            group["name"]: (_relative_rate(group, optimizer) if group["relative_step"] else float(group["lr"]))
            * _mean_scale(group, optimizer)
            for group in optimizer.param_groups
        }


def _mean_scale(group: Group, optimizer: torch.optim.Optimizer) -> float:
    """Return what `scale_parameter` multiplies the rate by, on average over the matrices; 1 without it.

    A matrix's root mean square is that of before its last step.
    """
    if not group["scale_parameter"]:
        return 1.0
    least = float(group["eps"][1])
    known = [optimizer.state[parameter].get("RMS", 0.0) for parameter in group["params"]]
    return sum(max(least, float(each)) for each in known) / len(known)


def _relative_rate(group: Group, optimizer: torch.optim.Optimizer) -> float:
    """Return the rate of the last step that was taken (0 before the first)."""
    step = max((optimizer.state[parameter].get("step", 0) for parameter in group["params"]), default=0)
    if step == 0:
        return 0.0
    return _step_rate(step, warming=group["warmup_init"])


def _step_rate(step: int, *, warming: bool) -> float:
    return float(min(1e-6 * step if warming else 1e-2, step**-0.5))
