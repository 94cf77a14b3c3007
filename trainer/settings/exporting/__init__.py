"""Settings as other programs have them: command lines of sd-scripts for each shell, and kohya_ss' JSON."""

from trainer.settings.exporting.command_line import SHELLS, command_line, script_of
from trainer.settings.exporting.kohya_json import kohya_form

__all__ = ["SHELLS", "command_line", "kohya_form", "script_of"]
