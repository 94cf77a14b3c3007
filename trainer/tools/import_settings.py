"""Read a recipe of any kind, tell what has become of each of its settings, and write it as a file of ours."""

from __future__ import annotations

from pathlib import Path

from trainer.config import Opened, open_recipe, save_config
from trainer.config.report import of_unsupported, pairs
from trainer.ground.errors import ConfigError, Problem
from trainer.settings.section import Show, argument
from trainer.tools.tool import COMPLETED, REFUSED, Arguments, Desk, Tool


class ImportArguments(Arguments):
    """The file, and where its settings go."""

    file: str = argument(..., Show("File", widget="file"))
    """Settings of another trainer, a script that starts one, a LoRA file, or settings of this program.

    Known are kohya_ss' JSON, TOML of sd-scripts and LoRA_Easy_Training_Scripts, command lines in .sh, .bat and .ps1.
    Of OneTrainer and ai-toolkit what means the same is taken over.
    """

    out: str = argument("", Show("Write to", widget="file", unit="RUN.toml"))
    """Write the settings there, as a TOML file of this program. Without it they are only told."""

    ignore_unsupported: bool = argument(False, Show("Open without these"))
    """Write the file without the settings that change the result and are not supported."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Write over a file that is there."""


class Import(Tool[ImportArguments]):
    """Prints one report before anything is written."""

    name = "import"
    help = "read settings of another program, or of a LoRA file, and write them as RUN.toml"
    arguments = ImportArguments
    positional = {"file": "FILE"}

    def run(self, arguments: ImportArguments, desk: Desk) -> int:
        opened = open_recipe(Path(arguments.file))
        desk.say("\n".join(opened.report.lines()))
        if not arguments.out:
            return COMPLETED
        if opened.report.unsupported and not arguments.ignore_unsupported:
            desk.note(
                "Not written: what is not supported changes the result. Write it without by --ignore-unsupported."
            )
            return REFUSED
        target = Path(arguments.out)
        if target.exists() and not arguments.overwrite:
            raise ConfigError(
                [Problem("--out", f"{str(target)!r} is there already; name another file, or --overwrite.")]
            )
        save_config(opened.config, target, header_of(Path(arguments.file).name, opened))
        desk.say(f"Written to {target}.")
        return COMPLETED


def header_of(name: str, opened: Opened) -> str:
    """Return the comment at the top of a file that was made of another one: what of that one is not in it."""
    report = opened.report
    lines = [f"Settings of a LoRA training, from {name}, {report.kind}."]
    lines += [
        f"Not in it, since it is not supported: {of_unsupported(each).rstrip('.')}" for each in report.unsupported
    ]
    lines += [f"Not in it, since it cannot be used: {each}".rstrip(".") for each in report.wrong]
    lines += [f"Not in it, since it is not on this computer: {each}" for each in pairs(report.missing)]
    return "\n".join(line.replace("\n", " ") for line in lines)
