"""Make a file that a run saved on its way its final one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from trainer.results.run_record import run_folder_at
from trainer.settings.section import Show, argument
from trainer.tools.asking import refusal
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool


class KeepArguments(Arguments):
    """The file."""

    file: str = argument(..., Show("File", widget="file"))
    """A LoRA that the run saved, such as NAME-000004.safetensors."""


class Keep(Tool[KeepArguments]):
    """The run's NAME.safetensors has its numbers then, byte for byte, and its metadata, which tell its epoch and step.

    The final file of before stays, as NAME-step00000500.safetensors.
    """

    name = "keep"
    title = "Keep this one"
    help = "make a file that a run saved on its way its final one"
    arguments = KeepArguments
    positional = {"file": "FILE"}

    def run(self, arguments: KeepArguments, desk: Desk) -> int:
        folder = run_folder_at(arguments.file)
        if folder is None or not Path(arguments.file).is_file():
            raise refusal("file", arguments.file, "it is no file that a run saved")
        kept = self.load().keep(folder, Path(arguments.file))
        desk.wrote(kept)
        desk.say(f"{kept.name} is {Path(arguments.file).name} now")
        return COMPLETED

    def load(self) -> ModuleType:
        """Import what needs torch."""
        from trainer.trial import keeping

        return keeping
