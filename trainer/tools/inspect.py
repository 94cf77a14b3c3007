"""Say what a file is and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.planning.inspection import inspect
from trainer.settings.section import Show, argument
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool


class InspectArguments(Arguments):
    """The file."""

    file: str = argument(..., Show("File", widget="file"))
    """A checkpoint, a LoRA, or the folder of a diffusers model."""


class Inspect(Tool[InspectArguments]):
    """Prints JSON."""

    name = "inspect"
    title = "Inspect"
    on_page = True
    help = "say what a checkpoint or LoRA file is"
    arguments = InspectArguments
    positional = {"file": "FILE"}

    def run(self, arguments: InspectArguments, desk: Desk) -> int:
        desk.say(json.dumps(inspect(Path(arguments.file)), indent=1, ensure_ascii=False))
        return COMPLETED
