"""What tools share that work on the settings of a run."""

from __future__ import annotations

from abc import ABC
from pathlib import Path
from typing import ClassVar, TypeVar

from trainer.config import TrainingConfig, known_settings, load_layers, parse_set
from trainer.ground.errors import ConfigError
from trainer.settings.section import Show, argument
from trainer.settings.wording import PROGRAM
from trainer.tools.tool import Arguments, Desk, Tool

CONFIG_FILE = "config_file"
"""sd-scripts' option for what stands here without one."""


class SettingsArguments(Arguments):
    """What replaces settings."""

    set: tuple[str, ...] = argument((), Show("Settings", widget="list", unit="KEY=VALUE"))
    """Replace a setting: a TOML value, else a text. May be given many times."""

    ignore_unsupported: bool = argument(False, Show("Ignore what is not supported"))
    """Go on without the settings that would change the result and are not supported here."""


class FileArguments(SettingsArguments):
    """A file of settings, and what replaces some of them."""

    file: str = argument(..., Show("Settings", widget="file"))
    """The settings, as a TOML file."""


Given = TypeVar("Given", bound=SettingsArguments)


class OfSettings(Tool[Given], ABC):
    """A tool that takes `--set`."""

    repeated: ClassVar[tuple[str, ...]] = ("set",)

    def usage(self) -> str:
        return f"write {PROGRAM} {' '.join((self.name, *self.positional.values()))}"

    def instead_of(self, key: str) -> str:
        if key in known_settings():
            return f"a setting is given in the file of settings, or as --set {key}=VALUE."
        if key == CONFIG_FILE and self.positional:
            return f"the file stands without it: {self.usage()}."
        return super().instead_of(key)


def read_settings(given: SettingsArguments, desk: Desk, path: Path | None) -> TrainingConfig:
    """Return the settings of the file with those of `--set` over them; notices go to the desk.

    Raises:
        ConfigError: with every problem.
    """
    overrides = dict(parse_set(text) for text in given.set)
    assembled = load_layers(path, overrides, ignore_unsupported=given.ignore_unsupported)
    for notice in assembled.notices:
        desk.note(f"Note: {notice}")
    if assembled.config is None:
        raise ConfigError(assembled.problems)
    return assembled.config
