"""What a file of settings says, before it is under our keys, and the contract of those that read one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from trainer.ground.errors import Problem
from trainer.settings.kohya import Said
from trainer.settings.walk import Setting


@dataclass(frozen=True, slots=True)
class Source:
    """A file as it was read: its text, or a LoRA's metadata; `path` is for messages and for what lies beside it.

    `may` says which paths may be looked at: what a text names is not always for whoever brings it.
    """

    path: Path
    text: str = ""
    metadata: Mapping[str, str] | None = None
    may: Callable[[Path], bool] = lambda path: True

    def named(self, name: str) -> Path | None:
        """Return the file that a recipe names, as it stands or beside the recipe; None where there is none to read."""
        places = (Path(name), self.path.parent / name)
        return next((place for place in places if self.may(place) and place.is_file()), None)


@dataclass(slots=True)
class Recipe:
    """A file's settings as arguments of sd-scripts, or under our keys, for `kohya.import_flat`.

    `said` are keys of the file that have another name or value there, `assumed` what the program that wrote the file
    puts in where it is silent; `unused` what has no effect there, `off` what is switched off, `ignored` what means
    nothing that is known here; `remarks` what else there is to know. `foreign`: another program wrote it, perhaps on
    another computer. `origins`: {argument: key and value in the file} where the file has another name for it; None for
    the value where the file is silent.
    """

    flat: dict[str, object] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)
    assumed: dict[str, object] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    foreign: bool = True
    origins: dict[str, tuple[str, object]] = field(default_factory=dict)

    def in_file(self, name: str, value: object) -> tuple[str, object]:
        """Return what the file calls an argument, and its value there."""
        return self.origins.get(name, (name, value))


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
