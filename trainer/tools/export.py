"""Write settings as sd-scripts reads them."""

from __future__ import annotations

from pathlib import Path

import toml

from trainer.config import to_kohya
from trainer.tools.of_settings import FileArguments, OfSettings, read_settings
from trainer.tools.tool import COMPLETED, Desk


class Export(OfSettings[FileArguments]):
    """Prints a flat TOML file with `network_module` and `network_args`."""

    name = "export"
    help = "print settings as a TOML file of sd-scripts"
    arguments = FileArguments
    positional = {"file": "RUN.toml"}

    def run(self, arguments: FileArguments, desk: Desk) -> int:
        desk.say(toml.dumps(to_kohya(read_settings(arguments, desk, Path(arguments.file)))))
        return COMPLETED
