"""Write settings as sd-scripts reads them, as a TOML file or a command line for a shell, or as kohya_ss does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.config import TrainingConfig, known_settings, to_flat, to_kohya
from trainer.config.dataset_export import dataset_config
from trainer.ground.errors import ConfigError, DataError, Problem
from trainer.pictures.remarks import FILE, read_remarks, summary
from trainer.settings.exporting import SHELLS, command_line, kohya_form, script_of
from trainer.settings.problems import shown
from trainer.settings.processes import NO_CHOICE, NOT_READ, process_of
from trainer.settings.section import Show, argument
from trainer.settings.toml import encoded, write
from trainer.settings.walk import Setting
from trainer.tools.of_settings import FileArguments, OfSettings, read_settings
from trainer.tools.tool import COMPLETED, Desk
from trainer.workbench.album import open_album

TOML, FORM = "toml", "json"


class ExportArguments(FileArguments):
    """A file of settings, and the form that they are printed in."""

    form: str = argument(TOML, Show("Form"), choices=(TOML, FORM, *SHELLS))
    """A TOML file, or a command line for a POSIX shell (sh), for Windows' prompt (bat) or for PowerShell (ps1).

    json is a file that kohya_ss opens.
    """

    datasets: str = argument("", Show("File for datasets", unit="FILE"))
    """Write the datasets into this file too, as sd-scripts reads them with --dataset_config."""


class Export(OfSettings[ExportArguments]):
    """Prints them flat, with `network_module` and `network_args`; what sd-scripts cannot be told is noted."""

    name = "export"
    help = "print settings as sd-scripts or kohya_ss reads them"
    arguments = ExportArguments
    positional = {"file": "RUN.toml"}

    def run(self, arguments: ExportArguments, desk: Desk) -> int:
        config = read_settings(arguments, desk, Path(arguments.file))
        exported = to_kohya(config, datasets_file=arguments.datasets)
        _write_datasets(config, arguments.datasets, desk)
        for line in untold(config, arguments.form):
            desk.note(f"Note: {line}")
        for line in _of_pictures(config):
            desk.note(f"Note: {line}")
        text, unsaid = written(config, exported, arguments.form)
        desk.say(text.rstrip("\n"))
        for key in unsaid:
            value = exported.get(key, to_flat(config).get(key))
            desk.note(f"Note: {key} = {shown(value)} cannot be written in this form; it is left out.")
        return COMPLETED


def _of_pictures(config: TrainingConfig) -> Iterator[str]:
    """Yield what is said of single pictures, which sd-scripts does not read; nothing where no pictures are found."""
    try:
        folders = open_album(config).paths
    except (ConfigError, DataError):
        return
    for folder in dict.fromkeys(folders):
        if said := summary(read_remarks(folder).values()):
            yield (
                f"sd-scripts does not read {folder / FILE} ({said}): it trains all pictures there, whole, and as often "
                "as the folder says."
            )


def _write_datasets(config: TrainingConfig, path: str, desk: Desk) -> None:
    """Write the datasets into a file that is not there yet, and note what sd-scripts cannot be told of them.

    Raises:
        ConfigError: the file is there, or cannot be written.
    """
    if not config.dataset.datasets:
        return
    text, unsaid = dataset_config(config)
    if not path:
        desk.note("Note: sd-scripts takes datasets from a file of their own; name one with --datasets FILE.")
        return
    if Path(path).exists():
        raise ConfigError([Problem("datasets", f"{path!r} is there already; name another file.", path)])
    write(Path(path), text)
    for line in unsaid:
        desk.note(f"Note: {line}")


def written(config: TrainingConfig, exported: Mapping[str, object], form: str) -> tuple[str, tuple[str, ...]]:
    """Return settings in a form of another program's, and the arguments that it cannot say.

    Args:
        exported: what `to_kohya` makes of the settings.
    """
    if form == TOML:
        return "".join(f"{key} = {encoded(value)}\n" for key, value in exported.items()), ()
    family = config.model.model_family
    if form == FORM:
        fields, unsaid = kohya_form(exported, known_settings(), family=family, prompts=config.sampling.sample_prompts)
        return json.dumps(fields, indent=2, sort_keys=True), unsaid
    return command_line(exported, form, family)


def untold(config: TrainingConfig, form: str = TOML) -> Iterator[str]:
    """Yield what differs from our defaults and has no place in sd-scripts."""
    values = to_flat(config)
    family = str(values["model_family"])
    for key, setting in known_settings().items():
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        if (
            values[key] != default
            and key != "model_family"
            and (
                key in (*NO_CHOICE.get(family, {}), *NOT_READ.get(family, ()))
                or not _has_a_place(setting, values[key], process_of(family))
            )
        ):
            yield f"sd-scripts has no {key} like this; {shown(values[key])} is left out."
    if form == TOML and script_of(family) != script_of(""):
        yield f"which model it is only the script says; start it with {script_of(family)}."
    if values["sample_prompts"] and form != FORM and "sample_prompts" not in to_kohya(config):
        yield "sd-scripts takes sample_prompts from a file alone; write them into one and name it."


def _has_a_place(setting: Setting, value: object, process: str) -> bool:
    """Say whether sd-scripts' trainers of such models can be told a value."""
    there = setting.sd_scripts
    if there is None or not setting.belongs_to(process):
        return False
    return there.name is not None or value in (there.default, *there.switches.values())
