"""What a piece of advice is, what it may know, and what a rule of experience is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from trainer.config import TrainingConfig

TRIAL_SIDE = 256
"""Models made for smaller pictures are toys such as the demo's: runs on them are trials, whatever they are set to."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known beside the settings. `samples` are pictures times repeats, as the folders' names say.

    `most_repeats` is the highest number of repeats among the training folders. `exact_steps` is the timetable's number
    of steps for the whole run, None before there is one. `model_side` is the side of the square pictures that the base
    model was made for, 0 where the model is not known; `model_family` is its family and `model_variant` its kind in
    that, "" where they are not known. `prompts_left_out` says that the sample prompts cannot be read, which is said for
    itself.
    """

    images: int = 0
    samples: int = 0
    reg_images: int = 0
    reg_samples: int = 0
    most_repeats: int = 1
    exact_steps: int | None = None
    model_side: int = 0
    model_family: str = ""
    model_variant: str = ""
    prompts_left_out: bool = False

    @property
    def trial(self) -> bool:
        """Whether nothing of use can come out, since the base model is a toy. A small rank or few steps alone say no
        such thing: what comes out of them is used."""
        return 0 < self.model_side < TRIAL_SIDE


@dataclass(frozen=True, slots=True)
class Advice:
    """One remark: which rule makes it, on which setting, and what to set instead where that is certain.

    `serious` says that the run would be wasted.
    """

    rule: str
    key: str
    message: str
    reason: str
    remedy: Mapping[str, object] | None = None
    serious: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.message} {self.reason}"


class Rule(ABC):
    """One piece of experience. `name` identifies it, `key` is the setting that it is about."""

    name: ClassVar[str]
    key: ClassVar[str]

    @abstractmethod
    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        """Yield advice, or nothing where all is well."""

    def advice(
        self,
        message: str,
        reason: str,
        remedy: Mapping[str, object] | None = None,
        *,
        key: str = "",
        serious: bool = False,
    ) -> Advice:
        return Advice(self.name, key or self.key, message, reason, remedy, serious)
