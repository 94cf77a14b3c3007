"""A schedule of one run: its settings, the rate at each step, and `build()`. No torch until `build()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.schedules import torch_classes
from trainer.schedules.shapes import Position, Shape, shape_of
from trainer.settings.arguments import parse

if TYPE_CHECKING:
    import torch


def steps_of(value: float, total_steps: int) -> int:
    """Return a number of steps: `value` itself, or, below 1, that share of all steps, rounded down."""
    return int(value * total_steps) if value < 1 else int(value)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the learning rate does over `total_steps` optimizer steps, warm-up included.

    The other fields are settings: `name` is `lr_scheduler`, `warmup` and `decay` are `lr_warmup_steps` and
    `lr_decay_steps` (below 1 a share of all steps), `torch_class` is `lr_scheduler_type` ("" for none),
    `arguments` are `lr_scheduler_args`, `learning_rate` is that of the settings, whatever the parts' own are; the rest
    is called `lr_scheduler_...` there. "constant" has no warm-up whatever `warmup` says (sd-scripts refuses the two
    together, which would make the default warm-up an error), and neither have torch's classes.
    """

    total_steps: int
    name: str = "constant"
    warmup: float = 0
    decay: float = 0
    num_cycles: int = 1
    power: float = 1.0
    timescale: int | None = None
    min_lr_ratio: float | None = None
    torch_class: str = ""
    arguments: tuple[str, ...] = ()
    learning_rate: float = 0.0

    @classmethod
    def of_settings(cls, section: Any, total_steps: int) -> Schedule:
        """Return the schedule that the settings' [optimizer] section asks for."""
        return cls(
            total_steps,
            name=section.lr_scheduler,
            warmup=section.lr_warmup_steps,
            decay=section.lr_decay_steps,
            num_cycles=section.lr_scheduler_num_cycles,
            power=section.lr_scheduler_power,
            timescale=section.lr_scheduler_timescale,
            min_lr_ratio=section.lr_scheduler_min_lr_ratio,
            torch_class=section.lr_scheduler_type,
            arguments=tuple(section.lr_scheduler_args),
            learning_rate=section.learning_rate,
        )

    @property
    def title(self) -> str:
        """What it is called."""
        return self.torch_class or self.name

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return steps_of(self.warmup, self.total_steps)

    @property
    def decay_steps(self) -> int:
        """Steps of the fall at the end, for the shapes that have one."""
        return steps_of(self.decay, self.total_steps)

    @property
    def arguments_taken(self) -> tuple[str, ...]:
        """The names that `lr_scheduler_args` may give."""
        kind = torch_classes.TORCH_CLASSES[self.torch_class] if self.torch_class else shape_of(self.name)
        return tuple(kind.arguments)

    def problems(self) -> list[str]:
        """Return a message for each argument that cannot be used, and for what is missing; empty where all is well."""
        if self.torch_class:
            return torch_classes.problems(self.torch_class, self.arguments)
        shape = shape_of(self.name)
        values, problems = parse(self.name, shape.arguments, self.arguments)
        conflict = shape.conflicts(self, _all(shape, values))
        return [*problems, *([conflict] if conflict and not problems else [])]

    def multiplier(self, step: int, rate: float = 1.0) -> float:
        """Return the share of a group's full rate that is used at a step, from 0; not for torch's classes."""
        shape = shape_of(self.name)
        return _share(self, shape, _all(shape, parse(self.name, shape.arguments, self.arguments)[0]), step, rate)

    def rates(self, rate: float, steps: Sequence[int]) -> list[float]:
        """Return the rates of a group with a full rate of `rate` at some steps, in order.

        Raises:
            ConfigError: one of torch's classes does not go so far, or refuses its arguments.
        """
        if self.torch_class:
            course = torch_classes.simulated(self, [rate])
            return [course.at(step)[0]["lr"] for step in steps]
        return [rate * self.multiplier(step, rate) for step in steps]

    def build(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Make the scheduler; call its `step()` once after each optimizer step, skipped ones included.

        Its state is the step count and each group's full rate. To resume, build it on the fresh optimizer first and
        load both states then: building sets the groups' rates.

        Args:
            optimizer: with each group's full learning rate in place.

        Raises:
            ConfigError: one of torch's classes does not go to the end of the run, or refuses its arguments.
        """
        if self.torch_class:
            return torch_classes.build(self, optimizer)
        from torch.optim.lr_scheduler import LambdaLR

        shape = shape_of(self.name)
        values = _all(shape, parse(self.name, shape.arguments, self.arguments)[0])

        def share_of(rate: float) -> Callable[[int], float]:
            return lambda step: _share(self, shape, values, step, rate)

        return LambdaLR(optimizer, [share_of(float(group["lr"])) for group in optimizer.param_groups])


def _all(shape: Shape, values: Mapping[str, object]) -> dict[str, object]:
    return {name: values.get(name, spec.default) for name, spec in shape.arguments.items()}


def _share(schedule: Schedule, shape: Shape, values: Mapping[str, object], step: int, rate: float) -> float:
    warmup = schedule.warmup_steps
    if shape.warms_up and step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, schedule.total_steps - warmup)
    at = Position(
        progress,
        step,
        warmup,
        schedule.decay_steps,
        schedule.total_steps,
        rate,
        schedule,
        values,
    )
    return shape.share(at)
