"""Where the vocabulary of a text encoder lies that its file does not hold: a setting, beside the model, or the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.families.reading.hub import descriptions
from trainer.ground.errors import ModelError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One kind of vocabulary.

    `names` are what its file is called; the first that is there is taken, if `is_one` says that it may be. `hub_name`
    is where its publisher has it.
    """

    title: str
    setting: str
    names: tuple[str, ...]
    hub_name: str
    is_one: Callable[[Path], bool] = Path.is_file

    def find(self, wanted: str, *beside: Path) -> Path:
        """Return the file.

        Args:
            wanted: what the setting says: a file, a folder or a name on the hub; "" for the first of the folders in
                `beside` that has one, else the cache of the hub, or the hub itself, which is asked for some megabytes.

        Raises:
            ModelError: there is none.
        """
        if wanted and Path(wanted).is_file():
            return Path(wanted)
        folders = [Path(wanted)] if wanted and Path(wanted).is_dir() else [] if wanted else [*beside]
        for folder in folders:
            if found := self._in(folder):
                return found
        if wanted and folders:
            raise self._none_in(wanted)
        source = wanted or self.hub_name
        try:
            found = self._in(descriptions(source))
        except ModelError as error:
            raise ModelError(
                f"{self.title}'s vocabulary is neither beside the model nor to be had from {source}: {error.message}",
                f"Set {self.setting} to {self._files}, as any program that uses {self.title} has it.",
            ) from error
        if found is None:
            raise self._none_in(source)
        return found

    @property
    def remedy(self) -> str:
        """What to do where a file is none."""
        return f"Choose {self._files}, or leave {self.setting} empty."

    @property
    def _files(self) -> str:
        return f"a {' or '.join(self.names)} of {self.title}"

    def _none_in(self, place: str) -> ModelError:
        return ModelError(f"{self.setting}: {place} has no {' or '.join(self.names)} of {self.title}.", self.remedy)

    def _in(self, folder: Path) -> Path | None:
        return next((folder / name for name in self.names if self.is_one(folder / name)), None)
