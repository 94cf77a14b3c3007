"""Write settings as sd-scripts reads them: a TOML file, or a command line for a shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import toml

from trainer.config import TrainingConfig, known_settings, to_flat, to_kohya
from trainer.settings.exporting import SHELLS, command_line
from trainer.settings.problems import shown
from trainer.settings.section import Show, argument
from trainer.tools.of_settings import FileArguments, OfSettings, read_settings
from trainer.tools.tool import COMPLETED, Desk

TOML = "toml"


class ExportArguments(FileArguments):
    """A file of settings, and the form that they are printed in."""

    form: str = argument(TOML, Show("Form"), choices=(TOML, *SHELLS))
    """A TOML file, or a command line for a POSIX shell (sh), for Windows' prompt (bat) or for PowerShell (ps1)."""


class Export(OfSettings[ExportArguments]):
    """Prints them flat, with `network_module` and `network_args`; what sd-scripts cannot be told is noted."""

    name = "export"
    help = "print settings as sd-scripts reads them"
    arguments = ExportArguments
    positional = {"file": "RUN.toml"}

    def run(self, arguments: ExportArguments, desk: Desk) -> int:
        config = read_settings(arguments, desk, Path(arguments.file))
        exported = to_kohya(config)
        for line in untold(config):
            desk.note(f"Note: {line}")
        if arguments.form == TOML:
            desk.say(toml.dumps(exported))
            return COMPLETED
        text, unsaid = command_line(exported, arguments.form, config.model.model_family)
        desk.say(text.rstrip("\n"))
        for key in unsaid:
            desk.note(f"Note: {key} = {shown(exported[key])} cannot be written for this shell; it is left out.")
        return COMPLETED


def untold(config: TrainingConfig) -> Iterator[str]:
    """Yield what differs from our defaults and has no place in sd-scripts."""
    values = to_flat(config)
    for key, setting in known_settings().items():
        if setting.sd_scripts is None and values[key] != setting.default:
            yield f"sd-scripts has no {key}; {shown(values[key])} is left out."
    if values["sample_prompts"] and "sample_prompts" not in to_kohya(config):
        yield "sd-scripts takes sample_prompts from a file alone; write them into one and name it."
