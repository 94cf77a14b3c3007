"""Datasets: several sets of pictures in one run, with settings of their own, as in sd-scripts' dataset_config.

A dataset is a table of settings with a list of subsets, which are tables too. What a subset leaves out is as its
dataset says, then as `general` says, then as the run says. So each of them comes to a configuration of its own, and
whoever asks for buckets or caption rules asks that one. `read` brings tables into the form that is kept: `general` is
part of each dataset, values are as their settings keep them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from pydantic import ValidationError

from trainer.config.pictures import Table
from trainer.config.training_config import TrainingConfig, known_settings
from trainer.config.values import parse_resolution
from trainer.ground.errors import Problem
from trainer.settings import sd_scripts
from trainer.settings.problems import nearest, refused, shown
from trainer.settings.section import NO_ENTRY, PATHS, Section, Show, There, setting
from trainer.settings.walk import Setting, sections_of, settings_in

KEY = "datasets"
SUBSETS, GENERAL = "subsets", "general"
ATTRIBUTES, _PRESERVATION = "custom_attributes", "diff_output_preservation"
"""A table of sd-scripts' datasets, and the only thing in it that does anything there."""
_NAMES = {"train_batch_size": "batch_size"}
"""{setting: its name in a dataset}, as sd-scripts has it."""


class DatasetTable(Section):
    """What a dataset says beside settings of the run."""

    resolutions: tuple[int | str | tuple[int, ...], ...] = setting(
        (),
        Show("Resolutions", unit="pixels", widget="list"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There((), name=None),
        parse=lambda value: tuple(parse_resolution(each) for each in _sizes(value)),
        rule='a list of sizes such as [512, 768, "1024,768"], each side from 64 to 4096',
    )
    """Train the same folders at each of these sizes, as if the dataset were there once for each."""


class SubsetTable(Section):
    """What a subset says beside settings of the run; `num_repeats` and `class_tokens` may be said above it too."""

    image_dir: str = setting(
        "",
        Show("Folder", widget="folder"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There(""),
    )
    """The folder of the pictures. Folders in it are not looked into."""

    metadata_file: str = setting(
        "",
        Show("Metadata file", widget="file"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There(""),
    )
    """A .json or .jsonl file that lists pictures with captions, in place of looking into the folder.

    Paths of pictures in it are as they stand, or relative to the folder.
    """

    num_repeats: int = setting(
        1,
        Show("Repeats"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There(1),
        ge=0,
        le=1_000_000,
        within="dataset",
    )
    """How often each picture is shown in an epoch; 0 leaves the folder out."""

    class_tokens: str = setting(
        "",
        Show("Class tokens"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There(""),
        within="dataset",
    )
    """The caption of pictures that have no caption file."""

    is_reg: bool = setting(
        False,
        Show("Regularisation"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """These are regularisation pictures; together they are shown as often as the dataset's other pictures."""

    diff_output_preservation: bool = setting(
        False,
        Show("Keep as the base model has it"),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There(False, inside=ATTRIBUTES),
        within="dataset",
    )
    """Teach that these pictures are to look as the base model makes them, whatever else is learned.

    In place of the noise the base model's own answer is what is asked for, so what the pictures show matters less than
    their captions: name the class without the trigger word. Each of them costs a pass of the model more. In sd-scripts'
    files it is custom_attributes = { diff_output_preservation = true }.
    """


TABLES: Mapping[str, type[Section]] = {"datasets": DatasetTable, "datasets.subsets": SubsetTable}
"""Lists of tables, by what they are called in a file, with what they have beside settings of the run."""


@dataclass(frozen=True, slots=True)
class Subset:
    """One folder or list of pictures; `place` names it in messages, `config` is the run's with what it says."""

    place: str
    image_dir: str
    metadata_file: str
    num_repeats: int
    class_tokens: str
    is_reg: bool
    diff_output_preservation: bool
    config: TrainingConfig


@dataclass(frozen=True, slots=True)
class Dataset:
    """Subsets that share resolution, batch size and buckets; `config` is the run's with what the dataset says."""

    place: str
    subsets: tuple[Subset, ...]
    config: TrainingConfig


@dataclass(slots=True)
class Reading:
    """What tables come to: those that are kept, what is wrong, what is not supported, and what has no effect."""

    tables: list[Table] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unsupported: list[Problem] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


@cache
def dataset_settings() -> Mapping[str, Setting]:
    """Return {key in the table: setting} of what a dataset may say, for its subsets too."""
    return {
        **_of_run("dataset"),
        **settings_in("dataset", DatasetTable),
        **{key: each for key, each in settings_in("subset", SubsetTable).items() if each.within},
        **_of_run("subset"),
    }


@cache
def subset_settings() -> Mapping[str, Setting]:
    """Return {key in the table: setting} of what a subset may say."""
    return {**settings_in("subset", SubsetTable), **_of_run("subset")}


def _of_run(level: str) -> dict[str, Setting]:
    return {_NAMES.get(key, key): each for key, each in known_settings().items() if each.within == level}


def read(given: object) -> Reading:
    """Return what datasets come to that are written as a list, or as a mapping with `general` beside `datasets`."""
    reading = Reading()
    general: object = {}
    if isinstance(given, Mapping):
        general, given = given.get(GENERAL, {}), given.get(KEY, [])
    if not isinstance(general, Mapping) or not isinstance(given, list | tuple) or not all(map(_is_table, given)):
        message = "datasets cannot be used: it must be a list, [[datasets]], in which each dataset is a table."
        reading.problems.append(Problem(KEY, message, given))
        return reading
    above = _kept(general, GENERAL, dataset_settings(), reading)
    for number, table in enumerate(given, 1):
        _read_dataset(table, f"dataset {number}", above, reading)
    return reading


def as_written(given: object) -> list[Table]:
    """Return the tables with the values that a file has, `general` in each of them, to be shown and corrected.

    What is no key of a table is left out.
    """
    general: object = {}
    if isinstance(given, Mapping):
        general, given = given.get(GENERAL, {}), given.get(KEY, [])
    above = _plain(general, dataset_settings())
    found = []
    for table in given if isinstance(given, list | tuple) else ():
        inner = table.get(SUBSETS) if isinstance(table, Mapping) else None
        subsets = [_plain(each, subset_settings()) for each in inner] if isinstance(inner, list | tuple) else []
        if subsets:
            found.append({**above, **_plain(table, dataset_settings()), SUBSETS: subsets})
    return found


def _plain(table: object, known: Mapping[str, Setting]) -> Table:
    """Return what a table says of known keys, as values that a field can show."""
    said = table.items() if isinstance(table, Mapping) else ()
    return {
        key: value if isinstance(value, bool | int | float | str) else _listed_plain(value)
        for key, value in said
        if key in known and value is not None
    }


def _listed_plain(value: object) -> object:
    return [str(each) for each in value] if isinstance(value, list | tuple) else str(value)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _read_dataset(table: Table, place: str, above: Table, reading: Reading) -> None:
    subsets = table.get(SUBSETS)
    if not (isinstance(subsets, list | tuple) and subsets and all(map(_is_table, subsets))):
        message = f"{place}: it has no folders; write each as a table [[datasets.subsets]] with its image_dir."
        reading.problems.append(Problem(KEY, message, subsets))
        return
    own = _kept({key: value for key, value in table.items() if key != SUBSETS}, place, dataset_settings(), reading)
    if "resolution" in own and "resolutions" not in own:
        above = {key: value for key, value in above.items() if key != "resolutions"}
    inner = [
        _kept(subset, f"{place}, subset {number}", subset_settings(), reading)
        for number, subset in enumerate(subsets, 1)
    ]
    listed = ["metadata_file" in subset for subset in subsets]
    if any(listed) and not all(listed):
        message = f"{place}: some subsets have a metadata_file and some have none; give each kind a dataset of its own."
        reading.problems.append(Problem(KEY, message))
    reading.tables.append({**above, **own, SUBSETS: inner})


def _kept(table: Mapping[str, object], place: str, known: Mapping[str, Setting], reading: Reading) -> Table:
    """Return a table's values as they are kept. What cannot be used is left out, and said."""
    kept: Table = {}
    for key, value in table.items():
        if value is None:  # JSON's way to leave a key out
            continue
        if key == ATTRIBUTES and isinstance(value, Mapping):
            kept[_PRESERVATION] = bool(value.get(_PRESERVATION))
            reading.unused += [f"{place}: {key} {name}" for name in value if name != _PRESERVATION]
            continue
        if key not in known:
            _say_unknown(key, value, place, known, reading)
            continue
        made, message = _made(known[key], value)
        if message:
            reading.problems.append(Problem(KEY, f"{place}: {key} {message}", value))
        else:
            kept[key] = made
    return kept


def _made(declared: Setting, value: object) -> tuple[object, str]:
    """Return a value in the form that is kept, or the rule that it breaks."""
    own: dict[str, type[Section]] = {"dataset": DatasetTable, "subset": SubsetTable}
    section = own.get(declared.section)
    if section is None or declared.key not in section.model_fields:
        section = sections_of(TrainingConfig)[declared.section]
    try:
        made = getattr(section(**{declared.key: value}), declared.key)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
        return None, refused(declared, value, reason).message
    return list(made) if isinstance(made, tuple) else made, ""


def _say_unknown(key: str, value: object, place: str, known: Mapping[str, Setting], reading: Reading) -> None:
    """Sort a key that has no place in a table: without effect, not supported, in the wrong place, or not known."""
    lacking = sd_scripts.ARGUMENTS.get(key)
    if lacking is not None and key not in known_settings() and key not in subset_settings():
        if lacking.does_nothing(value):
            reading.unused.append(f"{place}: {key}")
        else:
            instead = f"; {lacking.instead}" if lacking.instead else ""
            message = f"{place}: {key} {shown(value)} is not supported by this program and would change the result"
            reading.unsupported.append(Problem(KEY, f"{message}{instead}.", value))
        return
    reading.problems.append(Problem(KEY, f"{place}: {key} {_way_out(key, place, known)}", value))


def _way_out(key: str, place: str, known: Mapping[str, Setting]) -> str:
    table = "subset" if "subset" in place else "dataset"
    if key in _NAMES:
        return f"is called {_NAMES[key]} in a dataset."
    if key in subset_settings():
        return "is said of a single subset; write it under [[datasets.subsets]]."
    if key in dataset_settings():
        return "is said of a dataset; write it above its [[datasets.subsets]], or under [general]."
    if key in known_settings():
        return "is a setting of the whole run; write it beside the datasets."
    near = nearest(key, known)
    return f"is no key of a {table}; {f'did you mean {near}?' if near else f'there are {_listed(known)}.'}"


def _listed(known: Iterable[str]) -> str:
    return ", ".join(known)


def _sizes(value: object) -> Sequence[object]:
    """Return the sizes in a list, or in a text such as "512; 768; 1024x768"."""
    if isinstance(value, str):
        return [each.strip() for each in value.split(";" if ";" in value else " ") if each.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("")
    return value


def datasets_of(config: TrainingConfig) -> tuple[Dataset, ...]:
    """Return the datasets of a run, one for each resolution; none where its pictures are in `train_data_dir`."""
    return tuple(_datasets(config))


def _datasets(config: TrainingConfig) -> Iterator[Dataset]:
    for number, table in enumerate(config.dataset.datasets, 1):
        place = f"dataset {number}"
        for size in table.get("resolutions") or [None]:
            said = table if size is None else {**table, "resolution": size}
            own = _with(config, said)
            subsets = tuple(
                _subset(own, said, subset, f"{place}, subset {index}") for index, subset in enumerate(table[SUBSETS], 1)
            )
            yield Dataset(place, subsets, own)


def _subset(config: TrainingConfig, dataset: Table, table: Table, place: str) -> Subset:
    said = {**dataset, **table}
    fields = {key: said.get(key, declared.default) for key, declared in settings_in("subset", SubsetTable).items()}
    return Subset(place, config=_with(config, table), **fields)  # type: ignore[arg-type]


def _with(config: TrainingConfig, table: Table) -> TrainingConfig:
    """Return a configuration with what a table says; its values are in the form that is kept."""
    ours = {name: key for key, name in _NAMES.items()}
    said: dict[str, dict[str, object]] = {}
    for name, value in table.items():
        declared = known_settings().get(ours.get(name, name))
        if declared is not None and declared.within:
            said.setdefault(declared.section, {})[declared.key] = value
    if not said:
        return config
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in said.items()}
    return dataclasses.replace(config, **sections)


def without_paths(table: Table) -> Table:
    """Return a dataset's table without what names a file or a folder."""
    kept = {key: value for key, value in table.items() if key not in _paths()}
    if SUBSETS in table:
        kept[SUBSETS] = [without_paths(subset) for subset in table[SUBSETS]]
    return kept


def paths_in(tables: object) -> Iterator[tuple[str, str]]:
    """Yield (place, path) of each file and folder that tables name, whatever else is in them."""
    for number, table in enumerate(tables if isinstance(tables, list | tuple) else (), 1):
        inner = table.get(SUBSETS) if isinstance(table, dict) else None
        subsets = inner if isinstance(inner, list | tuple) else ()
        places = [
            (f"dataset {number}", table),
            *((f"dataset {number}, subset {n}", s) for n, s in enumerate(subsets, 1)),
        ]
        for place, each in places:
            named = each.items() if isinstance(each, dict) else ()
            yield from ((place, value) for key, value in named if key in _paths() and isinstance(value, str) and value)


@cache
def _paths() -> frozenset[str]:
    known = {**dataset_settings(), **subset_settings()}
    return frozenset(key for key, declared in known.items() if declared.show.widget in PATHS)


def batch_sizes(config: TrainingConfig) -> tuple[int, ...]:
    """Return the batch size of each dataset of a run, in order."""
    datasets = datasets_of(config)
    return tuple(each.config.training.train_batch_size for each in datasets) or (config.training.train_batch_size,)


def differences(before: Sequence[Table], now: Sequence[Table]) -> list[tuple[str, Setting | None, object, object]]:
    """Return (place, setting, value before, value now) of each key in which datasets differ.

    The setting is None where there are more or fewer datasets or subsets than there were.
    """
    if len(before) != len(now):
        return [("datasets", None, len(before), len(now))]
    found: list[tuple[str, Setting | None, object, object]] = []
    for number, (old, new) in enumerate(zip(before, now, strict=True), 1):
        place = f"dataset {number}"
        found += _differing(old, new, place, dataset_settings())
        if len(old[SUBSETS]) != len(new[SUBSETS]):
            found.append((f"{place}, subsets", None, len(old[SUBSETS]), len(new[SUBSETS])))
            continue
        for index, (was, is_) in enumerate(zip(old[SUBSETS], new[SUBSETS], strict=True), 1):
            found += _differing(was, is_, f"{place}, subset {index}", subset_settings())
    return found


def _differing(
    before: Table, now: Table, place: str, known: Mapping[str, Setting]
) -> Iterator[tuple[str, Setting | None, object, object]]:
    for key in known:
        if before.get(key) != now.get(key):
            yield f"{place}: {key}", known[key], before.get(key), now.get(key)
