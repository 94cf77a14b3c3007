"""Schedule-free methods (Defazio et al. 2024, arXiv 2405.15682): the rate stays, and an average is what is used.

They train at a point between the average and the iterate. What is saved, drawn or measured is the average: see
`OptimizerKind.evaluated`. They have a warm-up of their own, and no schedule.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partialmethod
from typing import TYPE_CHECKING, Any

from trainer.ground.errors import RunError
from trainer.optimizers.adamw import BETAS, EPS
from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly
from trainer.settings.arguments import Flag, Number, Numbers

if TYPE_CHECKING:
    import torch

SCHEDULE_FREE_BETAS = Numbers(
    (0.9, 0.999),
    "How near the average it trains; decay of the running mean of the gradient's square.",
    each=Number(0.9, "", above=0, below=1),
)
WEIGHT_DECAY = Number(0.0, "Share of each weight, times the learning rate, taken off at each step.", at_least=0)
WARMUP = Number(0, "Steps over which the rate rises evenly; in place of lr_warmup_steps.", at_least=0, whole=True)
AVERAGING = {
    "r": Number(0.0, "Later steps count for more in the average: by their number to this power.", at_least=0),
    "weight_lr_power": Number(2.0, "A step counts by its highest rate so far to this power.", at_least=0),
}


class ScheduleFree(OptimizerKind):
    """What the three of schedulefree share: pytorch-optimizer's, which step as schedulefree 1.4.1's do."""

    schedule_free = True
    constructor: str

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        import pytorch_optimizer

        package = getattr(pytorch_optimizer, cls.constructor)

        def bound(self: Any, name: str, *given: Any, **named: Any) -> Any:
            return getattr(package, name)(*given, **{**named, "exp_avg_sq_eps": 0.0})

        # The package adds 1e-15 below the root, which for a LoRA's small gradients is no small number.
        exact = type(
            cls.constructor,
            (package,),
            {
                "__module__": package.__module__,  # the saved file names the optimizer by its module
                "apply_ams_bound": partialmethod(bound, "apply_ams_bound"),
                "apply_ams_bound_foreach": partialmethod(bound, "apply_ams_bound_foreach"),
            },
        )
        return restore_exactly(exact(list(groups), **options))


class AdamWScheduleFree(ScheduleFree):
    """AdamW, schedule-free."""

    name = "AdamWScheduleFree"
    help = "AdamW without a schedule: an average of its weights is used. A rate 1 to 10 times AdamW's, such as 3e-4."
    elementwise = True
    usual_rates = (1e-4, 1e-3, 3e-4)
    constructor = "ScheduleFreeAdamW"
    also = ("schedulefree.AdamWScheduleFree", "pytorch_optimizer.ScheduleFreeAdamW", "ScheduleFreeAdamW")
    arguments = {
        "betas": SCHEDULE_FREE_BETAS,
        "eps": EPS,
        "weight_decay": WEIGHT_DECAY,
        "warmup_steps": WARMUP,
        **AVERAGING,
    }


class RAdamScheduleFree(ScheduleFree):
    """RAdam (Liu et al. 2020), schedule-free: it finds its warm-up itself, and does nothing in its first steps."""

    name = "RAdamScheduleFree"
    help = "AdamWScheduleFree with a warm-up of its own: its first five steps change nothing. A rate such as 3e-4."
    elementwise = True
    usual_rates = (1e-4, 1e-3, 3e-4)
    constructor = "ScheduleFreeRAdam"
    also = ("schedulefree.RAdamScheduleFree", "pytorch_optimizer.ScheduleFreeRAdam", "ScheduleFreeRAdam")
    arguments = {
        "betas": SCHEDULE_FREE_BETAS,
        "eps": EPS,
        "weight_decay": WEIGHT_DECAY,
        **AVERAGING,
    }


class SGDScheduleFree(ScheduleFree):
    """SGD, schedule-free."""

    name = "SGDScheduleFree"
    help = "SGD without a schedule. Needs rates a thousand times those of AdamW and more."
    elementwise = True
    usual_rates = (1e-1, 100.0, 5.0)
    constructor = "ScheduleFreeSGD"
    also = ("schedulefree.SGDScheduleFree", "pytorch_optimizer.ScheduleFreeSGD", "ScheduleFreeSGD")
    arguments = {
        "momentum": Number(0.9, "How near the average it trains.", above=0, below=1),
        "weight_decay": WEIGHT_DECAY,
        "warmup_steps": WARMUP,
        **AVERAGING,
    }


class ProdigyPlusScheduleFree(OptimizerKind):
    """Prodigy and schedule-free in one, of the package prodigy-plus-schedule-free 2.0.

    It has a step size for each part (`split_groups`), and the parts may have rates of their own, which multiply it.
    """

    name = "ProdigyPlusScheduleFree"
    help = "Finds its own learning rate and needs no schedule. Set learning_rate to 1 and max_grad_norm to 0."
    finds_rate = True
    schedule_free = True
    clips = True
    kept_in_bfloat16 = frozenset({"p0", "s"})
    usual_rates = (1.0, 1.0, 1.0)
    also = ("prodigyplus.ProdigyPlusScheduleFree", "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree")
    arguments = {
        "betas": Numbers((0.9, 0.99), BETAS.help, each=Number(0.9, "", at_least=0, below=1)),
        "beta3": Number(
            None,
            "Decay of the sums behind the step size; the root of the second beta unless given.",
            at_least=0,
            below=1,
            optional=True,
        ),
        "weight_decay": WEIGHT_DECAY,
        "weight_decay_by_lr": Flag(True, "Multiply weight decay by the learning rate."),
        "d0": Number(1e-6, "First guess of the step size. Rarely needs a change.", above=0),
        "d_coef": Number(1.0, "Multiplies the step size; 0.5 to 2 makes it learn less or more.", above=0),
        "d_limiter": Flag(True, "Let the step size grow by a fifth a step at most."),
        "prodigy_steps": Number(0, "Keep the step size from this step on; 0 for never.", at_least=0, whole=True),
        "schedulefree_c": Number(0, "Weigh later steps more in the average; 6 to 12 for short runs.", at_least=0),
        "eps": Number(1e-8, EPS.help + " None takes Adam-atan2.", above=0, optional=True),
        "split_groups": Flag(True, "A step size for each part."),
        "split_groups_mean": Flag(False, "The mean of the parts' step sizes for all."),
        "factored": Flag(True, "Keep the gradient's square as a row and a column."),
        "factored_fp32": Flag(True, "In float32."),
        "use_bias_correction": Flag(False, "RAdam's warm-up."),
        "use_stableadamw": Flag(True, "Scale steps by their root mean square, as Adafactor does."),
        "use_schedulefree": Flag(True, "Off: Prodigy, for a schedule from outside."),
        "use_speed": Flag(False, "Another estimate of the step size, on trial."),
        "use_cautious": Flag(False, "Only where step and gradient agree."),
        "use_grams": Flag(False, "The gradient's sign, the step's size."),
        "use_adopt": Flag(False, "The gradient's square without the newest."),
        "use_orthograd": Flag(False, "Only what is orthogonal to the weights."),
        "use_focus": Flag(False, "Another step against noise."),
    }

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        try:
            from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree as Steps
        except ImportError as error:
            raise RunError(
                f"optimizer_type = {cls.name} needs the package prodigy-plus-schedule-free, which cannot be imported: "
                f"{error}.",
                remedy="Install it, or choose Prodigy.",
            ) from error

        class ProdigyPlusScheduleFree(Steps):  # type: ignore[misc]
            __module__ = Steps.__module__  # the saved file names the optimizer by its module

            def log(self, message: object) -> None:
                logging.getLogger(__name__).info("%s", message)

            def try_hook_kohya_fbp(self) -> None:
                """Do not look for sd-scripts to change it."""
                self.kohya_original_patch_adafactor_fused = None

        # bfloat16 parameters are float32 at the moment of their step: rounding by chance is ours, and repeatable.
        built = ProdigyPlusScheduleFree(list(groups), lr=groups[0]["lr"], stochastic_rounding=False, **options)
        return restore_exactly(built)

    @classmethod
    def step_size(cls, optimizer: torch.optim.Optimizer) -> float | None:
        """Return the step size of the part that has the largest: see `rates` for each."""
        return max(float(group["d"]) for group in optimizer.param_groups)

    @classmethod
    def rates(cls, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        def found(group: Any) -> float:
            shared = group.get("shared_d")
            return float(shared if group["split_groups_mean"] and shared is not None else group["d"])

        return {group["name"]: float(group["lr"]) * found(group) for group in optimizer.param_groups}
