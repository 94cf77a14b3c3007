"""Whether the settings are about a model like this one, once it is known what the model is. Torch-free."""

from __future__ import annotations

from trainer.config import TrainingConfig, known_settings, to_flat
from trainer.config.datasets import KEY as DATASETS
from trainer.ground.errors import ConfigError, Problem
from trainer.process import PROCESSES, ProcessKind
from trainer.settings.problems import shown
from trainer.settings.section import PROCESS


def check_process(config: TrainingConfig, process: ProcessKind) -> None:
    """See that no setting is changed that belongs to models of another kind of process.

    Raises:
        ConfigError: some are; each is named.
    """
    values, problems = to_flat(config), _in_datasets(config, process)
    for key, setting in known_settings().items():
        kinds = setting.show.when.get(PROCESS, (process.name,))
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        if process.name in kinds or values[key] == default:
            continue
        theirs = " and ".join(PROCESSES[str(kind)].title for kind in kinds)
        message = f"{shown(values[key])} is for {theirs} models, and this is a {process.title} model; leave it out."
        problems.append(Problem(key, message, values[key], {key: default}))
    if problems:
        raise ConfigError(problems)


def _in_datasets(config: TrainingConfig, process: ProcessKind) -> list[Problem]:
    """Return a problem for each setting of another kind of process that datasets say otherwise than the run does."""
    others = [
        (key, " and ".join(PROCESSES[str(kind)].title for kind in setting.show.when[PROCESS]))
        for key, setting in known_settings().items()
        if setting.within and process.name not in setting.show.when.get(PROCESS, (process.name,))
    ]
    return [
        Problem(DATASETS, f"{place}: {key} is for {theirs} models, and this is a {process.title} model; leave it out.")
        for number, table in enumerate(config.dataset.datasets, 1)
        for place, said in [
            (f"dataset {number}", table),
            *((f"dataset {number}, subset {index}", each) for index, each in enumerate(table["subsets"], 1)),
        ]
        for key, theirs in others
        if key in said
    ]
