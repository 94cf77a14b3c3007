"""The courses that a learning rate may take, as functions of the step: plain arithmetic, without torch.

The shapes and names are those of transformers and, for piecewise_constant, of diffusers, which sd-scripts uses. Step 0
of a schedule with warm-up has rate 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

from trainer.settings.arguments import ArgumentSpec, Number, Text, Word

POLYNOMIAL_END = 1e-7
"""The learning rate at which the polynomial schedule ends, unless its argument `lr_end` says otherwise."""
LONGEST_TIMESCALE = 10_000
"""The timescale of inverse_sqrt where neither a setting nor a warm-up gives one."""
REX_BEND = 0.9
"""The bend of REX in the trainers that have it."""


class Settings(Protocol):
    """What of the settings gives a shape its numbers; each is explained where it is declared."""

    @property
    def num_cycles(self) -> int: ...
    @property
    def power(self) -> float: ...
    @property
    def timescale(self) -> int | None: ...
    @property
    def min_lr_ratio(self) -> float | None: ...
    @property
    def learning_rate(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Position:
    """Where a schedule stands after its warm-up, and the numbers that give it its shape.

    `progress` is the share of the steps after the warm-up that are done, from 0; 1 or more at and after the end. `step`
    counts from 0, warm-up included. `rate` is the full rate of the group, `values` are its arguments.
    """

    progress: float
    step: int
    warmup_steps: int
    decay_steps: int
    total_steps: int
    rate: float
    settings: Settings
    values: Mapping[str, object] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """Return an argument that is a number."""
        return float(cast(float, self.values[name]))


@dataclass(frozen=True, slots=True)
class Shape:
    """One course. `warms_up`: the rate rises evenly from 0 over the warm-up first. `arguments`: what
    `lr_scheduler_args` may say. `uses`: further settings that it reads. `conflicts` tells what cannot be together.
    """

    share: Callable[[Position], float]
    warms_up: bool = True
    arguments: Mapping[str, ArgumentSpec] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    conflicts: Callable[[Settings, Mapping[str, object]], str] = lambda settings, values: ""


def _constant(at: Position) -> float:
    return 1.0


def _linear(at: Position) -> float:
    return max(0.0, 1.0 - at.progress)


def _cosine(at: Position) -> float:
    """Half a cosine, from 1 to 0. Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5, without restarts."""
    return max(0.0, _cosines(at.number("num_cycles"), at.progress))


def _cosines(cycles: float, progress: float) -> float:
    """Return so many cosines, from 1 on; half a one ends at 0."""
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))


def _cosine_with_restarts(at: Position) -> float:
    """`num_cycles` half cosines, each from 1 to 0. Loshchilov & Hutter 2017, eq. 5."""
    if at.progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (at.settings.num_cycles * at.progress % 1.0))))


def _cosine_with_min_lr(at: Position) -> float:
    """Cosines between 1 and the least share. transformers' get_cosine_with_min_lr_schedule_with_warmup.

    `min_lr` is a share of the setting learning_rate for every part, as there.
    """
    least = at.settings.min_lr_ratio
    if least is None:
        least = at.number("min_lr") / (at.settings.learning_rate or at.rate)
    return max(0.0, _above(least, _cosines(at.settings.num_cycles / 2.0, at.progress)))


def _above(least: float, share: float) -> float:
    return share * (1.0 - least) + least


def _polynomial(at: Position) -> float:
    """The remaining share to the power, from 1 to the end rate."""
    end = min(1.0, at.number("lr_end") / at.rate) if at.rate > 0 else 1.0
    return end + (1.0 - end) * max(0.0, 1.0 - at.progress) ** at.settings.power


def _inverse_sqrt(at: Position) -> float:
    """One over the root of the steps, counted in timescales. transformers' get_inverse_sqrt_schedule, after Zhai et al.
    2022 (arXiv 2106.04560), section 3.5."""
    timescale = at.settings.timescale or at.warmup_steps or LONGEST_TIMESCALE
    return 1.0 / math.sqrt((at.step - at.warmup_steps + timescale) / timescale)


_RISES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(1.0 - progress),
}
_FALLS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, cycles: 1.0 - progress,
    "cosine": lambda progress, cycles: _cosines(cycles, progress),
    "1-sqrt": lambda progress, cycles: 1.0 - math.sqrt(progress),
}


def _warmup_stable_decay(at: Position) -> float:
    """Up, level, down over the last `lr_decay_steps`. transformers' get_wsd_schedule; Hu et al. 2024, MiniCPM.

    The least share is where the warm-up begins too, as there.
    """
    least = at.settings.min_lr_ratio or 0.0
    falling = at.total_steps - at.decay_steps
    if at.step < at.warmup_steps:
        return max(0.0, _above(least, _RISES[str(at.values["warmup_type"])](at.step / at.warmup_steps)))
    if at.step < falling:
        return 1.0
    if at.step >= at.total_steps:
        return least
    share = _FALLS[str(at.values["decay_type"])]((at.step - falling) / at.decay_steps, at.settings.num_cycles / 2.0)
    return max(0.0, _above(least, share))


def step_rules(text: str) -> tuple[tuple[tuple[int, float], ...], float]:
    """Return ((step, share before it), ...) in order, and the share after the last, of "1:10,0.1:20,0.01".

    Raises:
        ValueError: it is something else.
    """
    *rules, last = text.split(",")
    pairs = [(int(step), float(share)) for share, step in (rule.split(":") for rule in rules)]
    shares = [*(share for _, share in pairs), float(last)]
    if not all(0 <= share < math.inf for share in shares) or any(step < 0 for step, _ in pairs):
        raise ValueError("a share or a step is negative or no number")
    return tuple(sorted(pairs)), float(last)


def _piecewise_constant(at: Position) -> float:
    """Levels, each up to its step. diffusers' get_piecewise_constant_schedule."""
    rules, last = step_rules(str(at.values["step_rules"]))
    return next((share for step, share in rules if at.step < step), last)


def _rex(at: Position) -> float:
    """Slow to fall, then fast: (1 - p) / (1 - d p). Chen et al. 2021 (arXiv 2107.04197), where the bend d is 1/2."""
    left = max(0.0, 1.0 - at.progress)
    return left / (1.0 - at.number("d") + at.number("d") * left)


def _needs_least(settings: Settings, values: Mapping[str, object]) -> str:
    given = settings.min_lr_ratio is not None
    if given and values["min_lr"] is not None:
        return "min_lr and lr_scheduler_min_lr_ratio say the same thing twice; leave one out"
    if not given and values["min_lr"] is None:
        return (
            "cosine_with_min_lr needs to know where it ends; set lr_scheduler_min_lr_ratio, such as 0.1, or give "
            "min_lr=1e-5"
        )
    return ""


def _needs_rules(settings: Settings, values: Mapping[str, object]) -> str:
    given = values["step_rules"] is not None
    return "" if given else "piecewise_constant needs its levels; give step_rules=1:100,0.1:200,0.01, for example"


_WAYS = ("linear", "cosine", "1-sqrt")
_RULES = Text(None, "Levels: share:until which step, and the last share.", "such as 1:100,0.1:200,0.01", step_rules)

_SHAPES: dict[str, Shape] = {
    "constant": Shape(_constant, warms_up=False),
    "constant_with_warmup": Shape(_constant),
    "linear": Shape(_linear),
    "cosine": Shape(
        _cosine, arguments={"num_cycles": Number(0.5, "Cosines over the run; half a one falls to 0.", at_least=0)}
    ),
    "cosine_with_restarts": Shape(_cosine_with_restarts, uses=("lr_scheduler_num_cycles",)),
    "polynomial": Shape(
        _polynomial,
        arguments={"lr_end": Number(POLYNOMIAL_END, "The rate that it ends at.", at_least=0)},
        uses=("lr_scheduler_power",),
    ),
    "inverse_sqrt": Shape(_inverse_sqrt, uses=("lr_scheduler_timescale",)),
    "cosine_with_min_lr": Shape(
        _cosine_with_min_lr,
        arguments={"min_lr": Number(None, "The lowest rate.", at_least=0, optional=True)},
        uses=("lr_scheduler_min_lr_ratio", "lr_scheduler_num_cycles"),
        conflicts=_needs_least,
    ),
    "warmup_stable_decay": Shape(
        _warmup_stable_decay,
        warms_up=False,
        arguments={
            "warmup_type": Word("linear", "How it rises.", _WAYS),
            "decay_type": Word("cosine", "How it falls.", _WAYS),
        },
        uses=("lr_warmup_steps", "lr_decay_steps", "lr_scheduler_min_lr_ratio", "lr_scheduler_num_cycles"),
    ),
    "piecewise_constant": Shape(
        _piecewise_constant, warms_up=False, arguments={"step_rules": _RULES}, conflicts=_needs_rules
    ),
    "rex": Shape(
        _rex, arguments={"d": Number(REX_BEND, "The bend: 0 is a straight line.", at_least=0, below=1)}
    ),
    "adafactor": Shape(_constant, warms_up=False),
}  # fmt: skip
SCHEDULES: tuple[str, ...] = tuple(_SHAPES)
"""The values of `lr_scheduler`."""


def shape_of(name: str) -> Shape:
    """Return the shape of one of SCHEDULES."""
    return _SHAPES[name]


def using(setting: str) -> tuple[str, ...]:
    """Return the schedules that a setting matters to."""
    warming = {name for name, shape in _SHAPES.items() if shape.warms_up and setting == "lr_warmup_steps"}
    return tuple(name for name, shape in _SHAPES.items() if setting in shape.uses or name in warming)
