"""Series: one setting, or two, with a list of values make the runs of a comparison, each an entry of the queue.

    series-0001.json    beside the entries: its name, the settings, and each run with its values

What came of it is read from the runs' folders. Torch-free.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import TrainingConfig, config_from_layers, known_settings, parse_set, to_flat
from trainer.ground.errors import ConfigError, Problem, StateError
from trainer.ground.files import write_text
from trainer.ground.paths import read_json
from trainer.queue.shelf import Queue, folder_of
from trainer.results.run_folder import RunFolder
from trainer.settings.problems import unknown

MOST_SETTINGS = 2
MOST_RUNS = 60

FIXED = ("output_name", "output_dir", "dataset_config", "sample_prompts")
"""What cannot be varied: names are given to the runs, and values with commas or lines in them are no list."""

_NAME = "series-"
_UNFIT = re.compile(r"[^A-Za-z0-9.+-]+")
_LONGEST_VALUE = 24


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a series, with its values of the varied settings."""

    folder: RunFolder
    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """A comparison: the settings that are varied, and the runs."""

    key: str
    name: str
    settings: tuple[str, ...]
    members: tuple[Member, ...]


def varied(texts: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """Read KEY=VALUE,VALUE,...: the values of each setting; with a semicolon between values they may hold commas.

    Raises:
        ConfigError: with all that cannot be read.
    """
    found: dict[str, tuple[object, ...]] = {}
    problems = []
    for text in texts:
        key, equals, written = (part.strip() for part in text.partition("="))
        parts = [part.strip() for part in written.split(";" if ";" in written else ",")]
        parts = list(dict.fromkeys(part for part in parts if part))
        if not equals or not parts:
            problems.append(Problem("vary", f"{text!r} cannot be used; write it as key=value,value.", text))
        elif key in FIXED:
            problems.append(Problem("vary", f"{key} is not varied; choose another setting.", text))
        elif key not in known_settings():
            problems.append(unknown(key, known_settings()))
        else:
            found[key] = tuple(parse_set(f"{key}={part}")[1] for part in parts)
    if len(found) > MOST_SETTINGS:
        rule = f"at most {MOST_SETTINGS} settings are varied at once, and these are {', '.join(found)}."
        problems.append(Problem("vary", rule))
    if problems:
        raise ConfigError(problems)
    return found


def make(config: TrainingConfig, values: Mapping[str, Sequence[object]], queue: Queue) -> list[TrainingConfig]:
    """Return the settings of each run of a series, under names that are free and say the values.

    Raises:
        ConfigError: a value cannot be used, or there are too many runs.
    """
    combinations = list(itertools.product(*values.values()))
    if len(combinations) > MOST_RUNS:
        rule = f"these are {len(combinations)} runs, and a series has {MOST_RUNS} at most; leave out values."
        raise ConfigError([Problem("vary", rule)])
    made: list[TrainingConfig] = []
    taken: set[str] = set()
    for combination in combinations:
        layer = dict(zip(values, combination, strict=True))
        each = config_from_layers([to_flat(config), layer])
        wanted = "-".join([config.saving.output_name, *map(_in_a_name, combination)])
        name = queue.free_name(Path(each.saving.output_dir), wanted, taken)
        taken.add(name)
        made.append(replace(each, saving=each.saving.model_copy(update={"output_name": name})))
    return made


def _in_a_name(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return _UNFIT.sub("_", text).strip("._")[:_LONGEST_VALUE].strip("._") or "none"


def add(queue: Queue, config: TrainingConfig, values: Mapping[str, Sequence[object]]) -> Series:
    """Put the runs of a series into the queue, and note that they belong together.

    Raises:
        ConfigError: a value cannot be used.
        StateError: the queue cannot be written.
    """
    made = make(config, values, queue)
    entries = queue.add_all(made)
    # As the entries have them: whole paths.
    configs = [entry.config or each for entry, each in zip(entries, made, strict=True)]
    combinations = itertools.product(*values.values())
    members = tuple(Member(folder_of(each), tuple(one)) for each, one in zip(configs, combinations, strict=True))
    number = 1 + max((int(path.stem.removeprefix(_NAME)) for path in _files(queue)), default=0)
    series = Series(f"{_NAME}{number:04d}", config.saving.output_name, tuple(values), members)
    runs = [[str(each.folder.output_dir), each.folder.output_name, list(each.values)] for each in members]
    said = {"name": series.name, "settings": series.settings, "runs": runs}
    try:
        write_text(queue.folder / f"{series.key}.json", json.dumps(said, indent=1))
    except OSError as error:
        raise StateError(f"The series cannot be noted ({error.strerror or error}).", "Free disk space.") from error
    return series


def _files(queue: Queue) -> list[Path]:
    found = queue.folder.glob(f"{_NAME}*.json") if queue.folder.is_dir() else ()
    return sorted(path for path in found if path.stem.removeprefix(_NAME).isdecimal())


def all_of(queue: Queue) -> list[Series]:
    """Return the series that a queue knows, the newest first."""
    found = []
    for path in reversed(_files(queue)):
        try:
            said = read_json(path)
            members = tuple(Member(RunFolder(Path(a), str(b)), tuple(values)) for a, b, values in said["runs"])
            found.append(Series(path.stem, str(said["name"]), tuple(map(str, said["settings"])), members))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
    return found


def remove(queue: Queue, key: str) -> None:
    """Forget a series; its runs and entries stay."""
    if key in {path.stem for path in _files(queue)}:
        (queue.folder / f"{key}.json").unlink(missing_ok=True)
