"""Recipes on their way into the form: read and reported first, laid into the form once that is agreed to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kohya_gui.form.draft import defaults
from kohya_gui.form.presets import is_kept
from kohya_gui.parts.folders import Folders
from trainer.config import Opened, known_settings, open_recipe, to_flat
from trainer.ground.errors import ConfigError, Problem
from trainer.settings.importing import Source, source_of

ENDINGS = (".toml", ".json", ".safetensors", ".sh", ".bash", ".bat", ".cmd", ".ps1", ".yaml", ".yml", ".txt")
"""Files that can be opened."""

PASTED = "what was pasted"

_MOST_WAITING = 8
_LONGEST = 1_000_000
_LORA = ".safetensors"
_FOLDERS = ("train_data_dir", "reg_data_dir")


@dataclass(frozen=True, slots=True)
class Opening:
    """A recipe that was read. `values` are all of the form's once it is laid there, `kept` the keys that stay."""

    name: str
    opened: Opened
    values: Mapping[str, object]
    kept: tuple[str, ...]

    @property
    def asks(self) -> bool:
        """True where something is to be known before it is opened."""
        report = self.opened.report
        told = (report.said, report.unsupported, report.wrong, report.missing, report.ignored, report.unused)
        return any((*told, report.remarks, report.assumed, self.kept))


class Openings:
    """What waits for an answer, by a number that the dialog knows. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Opening] = {}
        self._last = 0

    def keep(self, opening: Opening) -> str:
        """Return the number by which it is taken; of many that were never answered the oldest are forgotten."""
        with self._lock:
            self._last += 1
            self._waiting[str(self._last)] = opening
            for number in list(self._waiting)[:-_MOST_WAITING]:
                del self._waiting[number]
            return str(self._last)

    def take(self, number: object) -> Opening | None:
        """Return what waits under a number, once."""
        with self._lock:
            return self._waiting.pop(str(number), None)


def opening(name: str, source: Source, current: Mapping[str, object]) -> Opening:
    """Return a recipe as it would be laid over the form's present values. Raises ConfigError if it cannot be read.

    A recipe of another program says nothing of this computer: model, folders and names of which it has none that can
    be used here stay as they are in the form.
    """
    opened = open_recipe(source)
    values = {**to_flat(opened.config), **{key: _showable(value) for key, value in opened.wrong.items()}}
    kept = tuple(key for key in _kept(opened) if current[key] not in (values[key], defaults()[key], "", None))
    return Opening(name, opened, {**values, **{key: current[key] for key in kept}}, kept)


def _kept(opened: Opened) -> list[str]:
    """Return the settings that another program's recipe leaves as the form has them."""
    if not opened.foreign:
        return []
    settings = known_settings().values()
    silent = [each.key for each in settings if each.show.tab == "basic" and is_kept(each.key)]
    taken = {*opened.values, *opened.wrong} | ({*_FOLDERS} if opened.values.get("datasets") else set())
    return [key for key in silent if key not in taken]


def _showable(value: object) -> object:
    """Return a value that a field can show, however it was written."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list) and value and all(isinstance(each, dict) and "subsets" in each for each in value):
        return value  # datasets, whose fields are of their own
    return [str(each) for each in value] if isinstance(value, list) else str(value)


def of_file(text: object, folders: Folders) -> Source:
    """Return the file of a path that was typed, as readers want it. Raises ConfigError where it is none to open."""
    path = Path(str(text))
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError([Problem("", f"{str(text)!r} is no file of settings; such files end in {_any_of(ENDINGS)}.")])
    source = source_of(path)
    return Source(source.path, source.text, source.metadata, _seen(folders))


def of_text(name: object, text: object, folders: Folders) -> Source:
    """Return a text that was pasted, or a file that was dropped: of a LoRA file its metadata as JSON.

    Raises:
        ConfigError: there is none, or it is too long for settings.
    """
    path, written = Path(Path(str(name or PASTED)).name), str(text or "")
    if len(written) > _LONGEST:
        raise ConfigError([Problem("", f"{path} is larger than {_LONGEST:,} characters, which settings never are.")])
    if not written.strip():
        raise ConfigError([Problem("", f"There is nothing in {path} that could be opened.")])
    if path.suffix.lower() != _LORA:
        return Source(path, written, may=_seen(folders))
    try:
        metadata = json.loads(written)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ConfigError([Problem("", f"{path} has no metadata that could be read.")])
    return Source(path, metadata={key: str(value) for key, value in metadata.items()}, may=_seen(folders))


def _seen(folders: Folders) -> Callable[[Path], bool]:
    return lambda path: not folders.problem(str(path))


def _any_of(endings: tuple[str, ...]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"
