"""Every error that this program raises on purpose.

TrainerError            root; text = what is wrong, then the way out
+- ConfigError          settings: all problems at once, each with its key
+- DataError            pictures, captions, caches
+- ModelError           checkpoints and LoRA files
+- StateError           resume state, run folders, locks
+- RunError             failures while training: memory, disk, numbers that are not finite
+- Stopped              a long phase was told to stop; passes through every layer below the run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that cannot be used: its key, the value given, and the rule with the way out.

    `remedy` is {key: value} of what to set instead, where one answer is certain.
    """

    key: str
    message: str
    value: object = None
    remedy: Mapping[str, object] | None = None

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class TrainerError(Exception):
    """Root of the errors a user can act on.

    `message` says what is wrong with which value; `remedy` says what to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.message = message
        self.remedy = remedy


class ConfigError(TrainerError):
    """Settings that cannot be used. `problems` lists every one of them; the text has one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(TrainerError):
    """Pictures, captions or caches that cannot be used."""


class ModelError(TrainerError):
    """A checkpoint or LoRA file that cannot be used."""


class StateError(TrainerError):
    """A resume state or run folder that cannot be used."""


class RunError(TrainerError):
    """Training failed after it had begun."""


class Stopped(TrainerError):
    """A phase was told to stop before it was done."""
