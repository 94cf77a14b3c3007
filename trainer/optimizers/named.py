"""Any optimizer of an installed package, by its name "package.Class" or "package.module.Class"; or torch.optim's own.

What it is called is looked up among what is installed, never among Python's own modules or files that lie about, and
must be a torch optimizer. What it takes is not known before it is imported, so its arguments are judged in `build`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING, Any

from trainer.ground.errors import ConfigError, Problem
from trainer.optimizers.base import Group, OptimizerKind
from trainer.optimizers.exact import restore_exactly

if TYPE_CHECKING:
    import torch

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_OURS = frozenset({"self", "params", "lr", "args", "kwargs"})
"""Parameters of constructors that are not for `optimizer_args`."""
_TORCH = ("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
"""The classes of torch.optim that need no package before their name, as in sd-scripts."""


def is_named(text: str) -> bool:
    """Say whether a text has the form of a class's name; whether there is such a class is seen in `build`."""
    return text in _TORCH or (_DOTTED.fullmatch(text) is not None and not _is_private(text))


def _is_private(text: str) -> bool:
    return any(part.startswith("__") for part in text.split("."))


class Named(OptimizerKind):
    """An optimizer that nothing is known of but its name."""

    help = "An optimizer of a package: nothing is known here of its rates and arguments."
    arguments = {}

    @classmethod
    def problems(cls, optimizer_args: Sequence[str]) -> list[str]:
        """Return a message for each text that has no value; names are judged in `build`."""
        missing = f"write it as name=value for {cls.name}"
        return [f"{text!r} has no value; {missing}" for text in optimizer_args if "=" not in text]

    @classmethod
    def options(cls, optimizer_args: Sequence[str]) -> dict[str, Any]:
        if problems := cls.problems(optimizer_args):
            raise ConfigError(Problem("optimizer_args", problem, tuple(optimizer_args)) for problem in problems)
        return {name.strip(): _value(text) for name, _, text in (each.partition("=") for each in optimizer_args)}

    @classmethod
    def step_size(cls, optimizer: torch.optim.Optimizer) -> float | None:
        """Return what packages of methods that find the step size call `d`, where there is one."""
        found = optimizer.param_groups[0].get("d")
        return float(found) if isinstance(found, int | float) else None

    @classmethod
    def build(cls, groups: Sequence[Group], optimizer_args: Sequence[str] = ()) -> torch.optim.Optimizer:
        options = cls.options(optimizer_args)
        steps = load(cls.name)
        _check_arguments(cls.name, steps, options)
        try:
            # The groups have the rates; some constructors want one besides.
            lr = {"lr": groups[0]["lr"]} if "lr" in _parameters(steps) else {}
            optimizer: torch.optim.Optimizer = steps(list(groups), **lr, **options)
        except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
            message = f"{cls.name} refuses them: {error}"
            raise ConfigError([Problem("optimizer_args", message, list(optimizer_args))]) from error
        return restore_exactly(optimizer)


@cache
def named(name: str) -> type[Named]:
    """Return the kind of an optimizer of this name."""
    schedule_free = name.lower().endswith("schedulefree")
    finds_rate = any(word in name.lower() for word in ("dadapt", "prodigy"))
    notice = (
        f"optimizer_type = {name} is taken as its package has it: nothing is known here of the rates that suit it, and "
        "only some packages resume to the bit."
    )
    known = {"name": name, "schedule_free": schedule_free, "finds_rate": finds_rate, "notice": notice}
    return type("Named", (Named,), known)


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text.strip()


def load(name: str) -> Any:
    """Import the class. Raises ConfigError where there is none, or where it is no optimizer."""
    import torch

    module, _, last = (name if "." in name else f"torch.optim.{name}").rpartition(".")
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names or package not in packages_distributions():
        raise _refused(name, f"no package {package!r} is installed; install it, or choose another optimizer.")
    try:
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as error:
        raise _refused(name, f"it cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise _refused(name, "it is no optimizer of PyTorch's kind, a subclass of torch.optim.Optimizer.")
    if getattr(found.step, "__isabstractmethod__", False) or found is torch.optim.Optimizer:
        raise _refused(name, "it is no optimizer that can be used by itself.")
    return found


def _refused(name: str, message: str) -> ConfigError:
    return ConfigError([Problem("optimizer_type", message, name)])


def _parameters(steps: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(steps.__init__).parameters)


def _check_arguments(name: str, steps: Any, options: dict[str, Any]) -> None:
    """Refuse arguments that the constructor doesn't name, also where it would take and ignore them."""
    takes = [parameter for parameter in _parameters(steps) if parameter not in _OURS]
    problems = []
    for option in options:
        if option not in takes:
            near = difflib.get_close_matches(option, takes, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems.append(f"{name} has no argument {option!r}; {hint}it takes {', '.join(takes) or 'none'}")
    if problems:
        raise ConfigError(Problem("optimizer_args", problem, list(options)) for problem in problems)
