"""The classes of torch.optim.lr_scheduler as schedules (`lr_scheduler_type`): their arguments as data, and `build()`.

A class of torch's changes an optimizer as it goes, and has a state of its own. Here it goes over a stand-in, and what
it does at each step is read off: so the step number alone says which rate is in effect, a resume is exact, and the
curve can be drawn. OneCycleLR and CyclicLR move the momentum too; that is read off and followed as well.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from trainer.ground.errors import ConfigError, Problem
from trainer.settings.arguments import ArgumentSpec, Flag, Number, Steps, Word, parse

if TYPE_CHECKING:
    import torch

    from trainer.schedules.schedule import Schedule

MODULE = "torch.optim.lr_scheduler"
MOMENTA = ("betas", "momentum")
"""What torch's classes may move of a group beside its rate."""


@dataclass(frozen=True, slots=True)
class TorchClass:
    """One class: the arguments that it takes, and the names of those that must be given."""

    arguments: Mapping[str, ArgumentSpec]
    needs: tuple[str, ...] = ()


_GAMMA = Number(0.1, "What the rate is multiplied by each time.", above=0, at_most=10)
_ETA_MIN = Number(0.0, "The lowest rate.", at_least=0)
_CYCLE = Flag(True, "Move the momentum against the rate.")


def _steps(default: float | None, text: str) -> Number:
    return Number(default, text, at_least=1, whole=True, optional=default is None)


def _momentum(default: float, text: str) -> Number:
    return Number(default, text, at_least=0, below=1)


TORCH_CLASSES: dict[str, TorchClass] = {
    "StepLR": TorchClass({"step_size": _steps(None, "Steps between falls."), "gamma": _GAMMA}, ("step_size",)),
    "MultiStepLR": TorchClass({"milestones": Steps(None, "Steps of the falls."), "gamma": _GAMMA}, ("milestones",)),
    "ConstantLR": TorchClass(
        {
            "factor": Number(1 / 3, "Share of the rate at first.", at_least=0, at_most=1),
            "total_iters": Number(5, "Steps until the full rate.", at_least=0, whole=True),
        }
    ),
    "LinearLR": TorchClass(
        {
            "start_factor": Number(1 / 3, "Share of the rate at first.", above=0, at_most=1),
            "end_factor": Number(1.0, "Share of the rate at last.", at_least=0, at_most=1),
            "total_iters": _steps(5, "Steps from the one to the other."),
        }
    ),
    "ExponentialLR": TorchClass(
        {"gamma": Number(None, "What each step multiplies the rate by.", above=0, at_most=1)}, ("gamma",)
    ),
    "PolynomialLR": TorchClass(
        {"total_iters": _steps(5, "Steps until 0."), "power": Number(1.0, "The power.", above=0, at_most=100)}
    ),
    "CosineAnnealingLR": TorchClass(
        {"T_max": _steps(None, "Steps down to the lowest rate."), "eta_min": _ETA_MIN}, ("T_max",)
    ),
    "CosineAnnealingWarmRestarts": TorchClass(
        {
            "T_0": _steps(None, "Steps until the first restart."),
            "T_mult": _steps(1, "Each cycle is so many times as long as the one before."),
            "eta_min": _ETA_MIN,
        },
        ("T_0",),
    ),
    "CyclicLR": TorchClass(
        {
            "base_lr": Number(None, "The lowest rate.", at_least=0),
            "max_lr": Number(None, "The highest rate.", above=0),
            "step_size_up": _steps(2000, "Steps up."),
            "step_size_down": _steps(None, "Steps down; as many as up unless given."),
            "mode": Word("triangular", "How cycles differ.", ("triangular", "triangular2", "exp_range")),
            "gamma": Number(1.0, "exp_range: what each step multiplies the height by.", above=0, at_most=1),
            "cycle_momentum": _CYCLE,
            "base_momentum": _momentum(0.8, "The lowest momentum."),
            "max_momentum": _momentum(0.9, "The highest momentum."),
        },
        ("base_lr", "max_lr"),
    ),
    "OneCycleLR": TorchClass(
        {
            "max_lr": Number(None, "The highest rate.", above=0),
            "total_steps": _steps(None, "Steps of the cycle: at least those of the run."),
            "epochs": _steps(None, "With steps_per_epoch, in place of total_steps."),
            "steps_per_epoch": _steps(None, "With epochs, in place of total_steps."),
            "pct_start": Number(0.3, "Share of the steps that the rate rises.", at_least=0, at_most=1),
            "anneal_strategy": Word("cos", "How it rises and falls.", ("cos", "linear")),
            "cycle_momentum": _CYCLE,
            "base_momentum": _momentum(0.85, "The lowest momentum."),
            "max_momentum": _momentum(0.95, "The highest momentum."),
            "div_factor": Number(25.0, "The first rate is the highest by this.", above=0),
            "final_div_factor": Number(1e4, "The last rate is the first by this.", above=0),
            "three_phase": Flag(False, "Fall as long as it rose, then to the last rate."),
        },
        ("max_lr",),
    ),
}
"""Every class of torch.optim.lr_scheduler that a few values describe; the tests compare them with the real ones."""

OTHERS: dict[str, str] = {
    "LambdaLR": "it takes a function",
    "MultiplicativeLR": "it takes a function",
    "SequentialLR": "it takes other schedules",
    "ChainedScheduler": "it takes other schedules",
    "ReduceLROnPlateau": "it takes a measure of progress at each step, which sd-scripts does not give it either",
}
"""{class: why it cannot be described by a few values}"""


def class_name(value: object) -> object:
    """Return the name of a class as it is kept, without torch's module before it. Raises ValueError with the rule."""
    if not isinstance(value, str):
        return value
    name = value.strip().removeprefix(f"{MODULE}.")
    if not name or name in TORCH_CLASSES:
        return name
    if name in OTHERS:
        raise ValueError(f"a few values cannot describe it: {OTHERS[name]}")
    near = difflib.get_close_matches(name, TORCH_CLASSES, n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"it must be a class of {MODULE}: {', '.join(TORCH_CLASSES)}{hint}")


def problems(name: str, arguments: Sequence[str]) -> list[str]:
    """Return a message for each argument that cannot be used, and for each one that is missing."""
    kind = TORCH_CLASSES[name]
    values, found = parse(name, kind.arguments, arguments)
    missing = [need for need in kind.needs if values.get(need) is None]
    if (
        name == "OneCycleLR"
        and not values.get("total_steps")
        and not (values.get("epochs") and values.get("steps_per_epoch"))
    ):
        missing.append("total_steps")
    if missing and not found:
        found.append(f"{name} needs {' and '.join(f'{need}=...' for need in missing)}")
    return found


@dataclass(slots=True)
class Course:
    """What a class does to its groups: `at(step)` gives what each of them has then, beginning with its rate."""

    advance: Callable[[], None]
    read: Callable[[], list[dict[str, Any]]]
    seen: list[list[dict[str, Any]]] = field(default_factory=list)

    def at(self, step: int) -> list[dict[str, Any]]:
        """Return {"lr": ..., "betas": ...} of each group at a step, from 0. Later steps are gone through on demand."""
        while len(self.seen) <= step:
            if self.seen:
                self.advance()
            self.seen.append(self.read())
        return self.seen[step]


def simulated(schedule: Schedule, rates: Sequence[float], optimizer: torch.optim.Optimizer | None = None) -> Course:
    """Return the course of groups with these full rates, seen to go to the end of the run.

    Args:
        optimizer: whose momenta the class may move; without one, as AdamW has them.

    Raises:
        ConfigError: the class refuses its arguments, or does not go so far.
    """
    try:
        course = load(schedule, rates, optimizer)
        course.at(schedule.total_steps)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        message = f"{schedule.torch_class} over {schedule.total_steps} steps: {str(error).rstrip('.')}."
        raise ConfigError([Problem("lr_scheduler_args", message, list(schedule.arguments))]) from error
    return course


def load(schedule: Schedule, rates: Sequence[float], optimizer: torch.optim.Optimizer | None) -> Course:
    """Begin a course with the class itself, on a stand-in."""
    import torch

    class StandIn(torch.optim.Optimizer):
        """What the class goes over: groups with rates and momenta, and no weights worth the name."""

        def step(self, closure: Any = None) -> Any:
            """Do nothing."""

    held = optimizer.param_groups if optimizer else [{"betas": (0.9, 0.999)} for _ in rates]
    groups = [
        {
            "params": [torch.nn.Parameter(torch.zeros(()))],
            "lr": rate,
            **{name: group[name] for name in MOMENTA if name in group},
        }
        for rate, group in zip(rates, held, strict=True)
    ]
    stand_in = StandIn(groups, {name: groups[0][name] for name in ("lr", *MOMENTA) if name in groups[0]})
    kind = getattr(torch.optim.lr_scheduler, schedule.torch_class)
    values = parse(schedule.torch_class, TORCH_CLASSES[schedule.torch_class].arguments, schedule.arguments)[0]
    if "milestones" in values and isinstance(values["milestones"], int):
        values["milestones"] = (values["milestones"],)
    scheduler = kind(stand_in, **values)

    def advance() -> None:
        stand_in.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class past its own end says so at each step
            scheduler.step()

    def read() -> list[dict[str, Any]]:
        return [
            {"lr": float(group["lr"]), **{name: group[name] for name in MOMENTA if name in group}}
            for group in stand_in.param_groups
        ]

    return Course(advance, read)


def build(schedule: Schedule, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the scheduler; see `Schedule.build`."""
    from torch.optim.lr_scheduler import LambdaLR

    full = [float(group["lr"]) for group in optimizer.param_groups]
    course = simulated(schedule, full, optimizer)
    moves = {
        name: any(course.at(step)[0].get(name) != group.get(name) for step in range(schedule.total_steps + 1))
        for group in optimizer.param_groups[:1]
        for name in MOMENTA
    }

    class Followed(LambdaLR):
        """Sets the momenta too."""

        def step(self, epoch: int | None = None) -> None:
            super().step(epoch)
            for group, seen in zip(self.optimizer.param_groups, course.at(self.last_epoch), strict=True):
                group.update({name: seen[name] for name in MOMENTA if name in seen and moves[name]})

    def share_of(place: int) -> Callable[[int], float]:
        return lambda step: cast(float, course.at(step)[place]["lr"]) / full[place]

    return Followed(optimizer, [share_of(place) for place in range(len(full))])
