"""What every optimizer of ours offers: its name, its arguments as data, and `build()`. No torch until `build()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.ground.errors import ConfigError, Problem
from trainer.settings.arguments import ArgumentSpec, parse

if TYPE_CHECKING:
    import torch

Group = dict[str, Any]
"""One parameter group: {"params": list of Parameter, "lr": float, "name": the component it trains}."""

_FLOAT32_BYTES = 4


class OptimizerKind:
    """One optimizer that a user may choose. Used as a class, never instantiated.

    Attributes:
        name: the value of `optimizer_type`.
        help: one line for the form.
        finds_rate: True where the method estimates the step size, and the learning rate only multiplies it, by 1 in
            nearly every case.
        one_rate: True where that is one step size for everything, so that all groups must have the same learning rate.
        schedule_free: True where the method wants no schedule: the rate is the same at each step but for a warm-up of
            its own.
        also: what else the optimizer is called: package.Class of the packages that have it.
        needs_warmup: why it wants a warm-up; "" where it does without.
        clips: True where it keeps its own steps from being too large, so that gradients need no clipping.
        kept_in_bfloat16: what of its state is bfloat16 whatever the weights are.
        notice: what a user should know before a run with it; "" for nothing.
        elementwise: True where a step is the same whether weights are in one tensor or in several.
        float16: True where what it keeps of squared gradients is not in the parameters' dtype, so that it can train
            float16 parameters: the square of a gradient of 1e-4 is below float16's smallest number.
        usual_rates: (lowest, highest, advised) learning rate, of the rate that acts; None where none is known.
        usual_arguments: what of `optimizer_args` it is advised with, where with its own values it learns nothing.
        arguments: what `optimizer_args` may say, by the name that the original package and sd-scripts use.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    finds_rate: ClassVar[bool] = False
    one_rate: ClassVar[bool] = False
    schedule_free: ClassVar[bool] = False
    also: ClassVar[tuple[str, ...]] = ()
    kept_in_bfloat16: ClassVar[frozenset[str]] = frozenset()
    notice: ClassVar[str] = ""
    needs_warmup: ClassVar[str] = ""
    clips: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    float16: ClassVar[bool] = False
    usual_rates: ClassVar[tuple[float, float, float] | None] = None
    usual_arguments: ClassVar[tuple[str, ...]] = ()
    arguments: ClassVar[Mapping[str, ArgumentSpec]]

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        """Make the torch optimizer.

        Args:
            groups: what to train, with one learning rate for each group. All rates are equal where `one_rate`.
            optimizer_args: `name=value` texts.

        Raises:
            ConfigError: an argument that `problems` names.
        """
        raise NotImplementedError

    @classmethod
    def problems(cls, optimizer_args: Sequence[str]) -> list[str]:
        """Return a message for each text of `optimizer_args` that cannot be used; empty where all can."""
        values, problems = parse(cls.name, cls.arguments, optimizer_args)
        return [*problems, *cls.conflicts(cls._with_defaults(values))]

    @classmethod
    def conflicts(cls, values: Mapping[str, object]) -> list[str]:
        """Return a message for each set of arguments that contradict one another. `values` holds every argument."""
        return []

    @classmethod
    def options(cls, optimizer_args: Sequence[str]) -> dict[str, Any]:
        """Return every argument, given or default, under the name of the constructor's parameter.

        Raises:
            ConfigError: an argument that `problems` names.
        """
        if problems := cls.problems(optimizer_args):
            raise ConfigError(Problem("optimizer_args", problem, tuple(optimizer_args)) for problem in problems)
        values = cls._with_defaults(parse(cls.name, cls.arguments, optimizer_args)[0])
        return {cls.arguments[name].parameter or name: value for name, value in values.items()}

    @classmethod
    def step(cls, optimizer: torch.optim.Optimizer, finite: torch.Tensor) -> None:
        """Take a step, or leave weights and state as they are where `finite`, a scalar on the device, is false.

        Asking waits for the device. A step whose Python counts cannot be taken back there; kinds that can be held up
        on the device do better.
        """
        if bool(finite):
            optimizer.step()

    @classmethod
    def evaluated(cls, optimizer: torch.optim.Optimizer) -> list[torch.Tensor] | None:
        """Return the weights that are meant to be used, where those being trained are others; None where they are not.

        In the order of the groups and their parameters, in their dtypes. Optimizer and weights are afterwards what
        they were, to the bit: a package's own way there and back is not exact.
        """
        change, back = getattr(optimizer, "eval", None), getattr(optimizer, "train", None)
        if not (callable(change) and callable(back)):
            return None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        before = [parameter.data for parameter in parameters]
        try:
            for parameter, values in zip(parameters, before, strict=True):
                # The average that it is mixed with is float32, however the weights are kept.
                parameter.data = values.float() if values.element_size() < _FLOAT32_BYTES else values.clone()
            change()
            used = [
                parameter.data.to(values.dtype, copy=True) for parameter, values in zip(parameters, before, strict=True)
            ]
            back()
        finally:
            for parameter, values in zip(parameters, before, strict=True):
                parameter.data = values
        return used

    @classmethod
    def step_size(cls, optimizer: torch.optim.Optimizer) -> float | None:
        """Return the step size that the method has found (its `d`), or None where it looks for none.

        The learning rate in effect is the scheduled one times this number. Costs no synchronisation.
        """
        return None

    @classmethod
    def acting_rate(cls, rate: float, optimizer_args: Sequence[str]) -> float | None:
        """Return what a learning rate comes to for a matrix of zeros, as LoRA's second ones begin; None for no effect.

        Arguments that `problems` names are taken as not given.
        """
        return rate

    @classmethod
    def own_rate(cls, step: int, optimizer_args: Sequence[str]) -> float:
        """Return the rate that the method takes at a step, from 1, where it follows none: see `acting_rate`."""
        raise NotImplementedError

    @classmethod
    def rates(cls, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Return the learning rate in effect, by the name of each group."""
        scale = cls.step_size(optimizer)
        return {
            group["name"]: float(group["lr"]) * (1.0 if scale is None else scale) for group in optimizer.param_groups
        }

    @classmethod
    def _with_defaults(cls, values: Mapping[str, object]) -> dict[str, object]:
        return {name: values.get(name, spec.default) for name, spec in cls.arguments.items()}
