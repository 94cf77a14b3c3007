"""What a file of settings says, before it is under our keys, and the contract of those that read one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from trainer.ground.errors import Problem
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was read: its text, or a LoRA's metadata; `path` is for messages and for what lies beside it."""

    path: Path
    text: str = ""
    metadata: Mapping[str, str] | None = None


@dataclass(slots=True)
class Recipe:
    """A file's settings as arguments of sd-scripts, or under our keys, for `kohya.import_flat`.

    `said` are keys of the file that have another name or value there, `assumed` what the program that wrote the file
    puts in where it is silent; `unused` what has no effect there, `off` what is switched off; `remarks` what else there
    is to know. `foreign`: another program wrote it, perhaps on another computer.
    """

    flat: dict[str, object] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    assumed: dict[str, object] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    foreign: bool = True


class Reader(ABC):
    """One kind of file. A new one is a class, and a line in `READERS`."""

    name: ClassVar[str]
    """What such a file is called, to follow "this is"."""

    @abstractmethod
    def recognises(self, source: Source) -> bool:
        """Say whether the file is of this kind."""

    @abstractmethod
    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        """Return what the file says.

        Raises:
            ConfigError: it cannot be read, with file, line and column.
        """
