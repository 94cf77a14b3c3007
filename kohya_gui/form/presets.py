"""Presets: partial TOML files over the defaults. Those shipped with the program, and one's own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kohya_gui.form import fields
from kohya_gui.form.draft import defaults
from trainer.config import TrainingConfig, config_from_layers, known_settings, to_flat
from trainer.config.values import parse_file_name
from trainer.ground.errors import ConfigError, Problem
from trainer.ground.paths import MOST_TEXT, read_text
from trainer.settings import toml
from trainer.settings.section import PATHS

PROJECT = Path(__file__).resolve().parents[2]
DEMO = "demo"
ENDING = ".toml"
LONGEST_TITLE = 60


@dataclass(frozen=True)
class Preset:
    """One preset file. `own` ones can be deleted."""

    path: Path
    own: bool

    @property
    def name(self) -> str:
        """What it is called: the file's name without its ending."""
        return self.path.stem

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The first paragraph of the comment at the top of the file, line by line."""
        lines = [line.strip() for line in read_text(self.path, MOST_TEXT).splitlines()]
        paragraph = itertools.takewhile(lambda line: line.startswith("#") and line.strip("# "), lines)
        return tuple(line.lstrip("# ") for line in paragraph)

    @property
    def titled(self) -> bool:
        """True where the first comment line is a title and not a sentence."""
        return bool(self.header) and len(self.header[0]) <= LONGEST_TITLE and not self.header[0].endswith((".", ","))

    @property
    def title(self) -> str:
        """Its title, or its name."""
        return self.header[0] if self.titled else self.name.replace("-", " ").capitalize()

    @property
    def description(self) -> str:
        """For whom it is."""
        return " ".join(self.header[1:] if self.titled else self.header)

    def values(self) -> dict[str, object]:
        """Return what the preset sets, in the kinds of the settings.

        Raises:
            ConfigError: it holds what cannot be used.
        """
        flat, doubled = toml.flatten(toml.read(self.path), known_settings())
        if doubled:
            raise ConfigError(doubled)
        found = to_flat(config_from_layers([flat]))
        emptied = {key for key, value in found.items() if value is None and known_settings()[key].default is not None}
        folder = PROJECT if not self.own else Path.cwd()
        return {
            key: fields.absolute(known_settings()[key], value, folder)
            for key, value in found.items()
            if key in flat or key in emptied
        }


class Presets:
    """The presets in two folders; an own one hides a shipped one of the same name."""

    def __init__(self, shipped: Path, own: Path) -> None:
        self._shipped, self._own = shipped, own

    def all(self) -> dict[str, Preset]:
        """Return {name: preset}: the demo first, then the shipped ones, then one's own."""
        shipped = sorted(self._shipped.glob(f"*{ENDING}"), key=lambda path: (path.stem != DEMO, path.stem))
        own = sorted(self._own.glob(f"*{ENDING}"))
        found = {path.stem: Preset(path, own=False) for path in shipped}
        return {**found, **{path.stem: Preset(path, own=True) for path in own}}

    def save(self, name: str, values: Mapping[str, object]) -> Preset:
        """Save what differs from the defaults, without model, folders and names, under `name`.

        Raises:
            ConfigError: the name cannot be a file's name, is a shipped preset's, or the file cannot be written.
        """
        path = self.check_name(name)
        chosen = {key: value for key, value in values.items() if not is_kept(key) and value != defaults()[key]}
        settings = [setting for setting in known_settings().values() if setting.key in chosen]
        text = toml.document(settings, chosen, f"{name}\nSaved from the page.")
        toml.write(path, text)
        return Preset(path, own=True)

    def check_name(self, name: str) -> Path:
        """Return the file of a preset that is to be saved. Raises ConfigError where the name is not for own ones."""
        path = self._path(name)
        if (self._shipped / path.name).exists():
            raise ConfigError([Problem("", f"The preset {name!r} comes with the program; choose another name.", name)])
        return path

    def delete(self, name: str) -> None:
        """Delete an own preset.

        Raises:
            ConfigError: there is none of that name.
        """
        path = self._path(name)
        if not path.is_file():
            raise ConfigError([Problem("", f"{name!r} is not one of your own presets.", name)])
        try:
            path.unlink()
        except OSError as error:
            words = f"The preset {name!r} cannot be deleted: {error.strerror or error}."
            raise ConfigError([Problem("", words, name)]) from None

    def _path(self, name: str) -> Path:
        try:
            return self._own / f"{parse_file_name(name.strip())}{ENDING}"
        except ValueError as error:
            raise ConfigError([Problem("", f"A preset cannot be named {name!r}: {error}.", name)]) from None


@dataclass(frozen=True, slots=True)
class Change:
    """One line of what a preset would change."""

    label: str
    key: str
    before: str
    after: str


def is_kept(key: str) -> bool:
    """True for what a preset leaves as it is unless it sets it: the model, folders, names and the words of a job."""
    setting = known_settings()[key]
    return (
        setting.show.widget in PATHS
        or setting.section == "metadata"
        or key in ("output_name", "sample_prompts", "seed", "datasets")
    )


def laid_over(current: Mapping[str, object], preset: Mapping[str, object]) -> dict[str, object]:
    """Return all values after a preset is applied: its own over the defaults, with what is kept from `current`."""
    kept = {key: value for key, value in current.items() if is_kept(key)}
    if preset.get("train_data_dir"):
        kept["datasets"] = []
    return {**defaults(), **kept, **preset}


def changes(current: Mapping[str, object], after: Mapping[str, object]) -> tuple[Change, ...]:
    """Return what differs, in the order of the settings."""
    return tuple(
        Change(setting.show.label, key, fields.named(setting, current[key]), fields.named(setting, after[key]))
        for key, setting in known_settings().items()
        if current[key] != after[key]
    )


def file_text(config: TrainingConfig) -> str:
    """Return the complete TOML of a configuration."""
    return toml.document(known_settings().values(), to_flat(config), "Settings of a LoRA training.")
