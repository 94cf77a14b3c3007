"""The arguments that an optimizer or a schedule takes as a list of texts: what each may be, said once, without torch.

`optimizer_args` and `lr_scheduler_args` are lists of `name=value` texts. A value is a Python literal, as in sd-scripts:
`weight_decay=0.1`, `betas=0.9,0.99`, `betas=(0.9, 0.99)`, `decouple=True`, `decay_type='linear'`; words need no quotes.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

_COUNTED = {2: "two", 3: "three"}


@dataclass(frozen=True, slots=True)
class ArgumentSpec:
    """One argument: its default, one line of help, and the constructor's parameter where that has another name."""

    default: object
    help: str
    _: KW_ONLY
    parameter: str = ""

    def rule(self) -> str:
        """Say what a value must be, to follow the word "must be"."""
        raise NotImplementedError

    def accepts(self, value: object) -> bool:
        """Tell whether a parsed literal may be used."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Flag(ArgumentSpec):
    """True or False."""

    def rule(self) -> str:
        return "True or False"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Number(ArgumentSpec):
    """A finite number; `at_least` and `at_most` include the bound, `above` and `below` do not."""

    _: KW_ONLY
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    whole: bool = False
    optional: bool = False

    def rule(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} {limits}".strip() + (", or None" if self.optional else "")

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (
            (not self.whole or isinstance(value, int))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True, slots=True)
class Numbers(ArgumentSpec):
    """Several numbers, as many as the default has, each of which `each` accepts."""

    default: tuple[float, ...]
    _: KW_ONLY
    each: Number

    def rule(self) -> str:
        example = ",".join(f"{number:g}" for number in self.default)
        return f"{_COUNTED[len(self.default)]} numbers such as {example}, each {self.each.rule()}"

    def accepts(self, value: object) -> bool:
        return (
            isinstance(value, tuple | list)
            and len(value) == len(self.default)
            and all(self.each.accepts(number) for number in value)
        )


@dataclass(frozen=True, slots=True)
class Steps(ArgumentSpec):
    """Whole numbers in order, as many as one likes."""

    def rule(self) -> str:
        return "whole numbers from 0 on, such as 100,200"

    def accepts(self, value: object) -> bool:
        numbers = (value,) if isinstance(value, int) else value
        return isinstance(numbers, tuple | list) and all(
            isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers
        )


@dataclass(frozen=True, slots=True)
class Word(ArgumentSpec):
    """One of several words."""

    words: tuple[str, ...]

    def rule(self) -> str:
        return f"one of {', '.join(self.words)}"

    def accepts(self, value: object) -> bool:
        return value in self.words


@dataclass(frozen=True, slots=True)
class Text(ArgumentSpec):
    """A text in a form of its own: `form` says which, `reads` raises ValueError for another."""

    form: str
    reads: Callable[[str], object]

    def rule(self) -> str:
        return self.form

    def accepts(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        try:
            self.reads(value)
        except ValueError:
            return False
        return True


def parse(owner: str, specs: Mapping[str, ArgumentSpec], texts: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """Read `name=value` texts against the arguments that an optimizer or a schedule takes.

    Args:
        owner: its name, for the messages.
        specs: what it takes, by name.
        texts: as the user wrote them.

    Returns:
        The values of the texts that are right, by name, and a message for each one that is not.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    for text in texts:
        name, value, problem = _read(owner, specs, text)
        if not problem and name in values:
            problem = f"{name} is given twice; leave one out"
        if problem:
            problems.append(problem)
        else:
            values[name] = value
    return values, problems


def _read(owner: str, specs: Mapping[str, ArgumentSpec], text: str) -> tuple[str, object, str]:
    """Read one text into (name, value, problem); the problem is empty where there is none."""
    name, equals, literal = (part.strip() for part in text.partition("="))
    spec = specs.get(name)
    if not equals:
        return name, None, f"{text!r} has no value; write it as name=value, for example {_example(specs)}"
    if spec is None:
        near = difflib.get_close_matches(name, specs, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return name, None, f"{owner} has no argument {name!r}; {hint}it takes {', '.join(specs) or 'none'}"
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = literal
    if not spec.accepts(value):
        return name, None, f"{name}={literal} cannot be used; {name} must be {spec.rule()}"
    return name, tuple(value) if isinstance(value, list) else value, ""


def _example(specs: Mapping[str, ArgumentSpec]) -> str:
    return "weight_decay=0.01" if "weight_decay" in specs else f"{next(iter(specs), 'name')}=..."
