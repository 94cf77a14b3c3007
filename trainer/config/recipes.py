"""Opening a file of settings of any kind: its values under our keys, and one report on what has become of each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import datasets
from trainer.config.assembly import assemble
from trainer.config.report import SILENT, Report, listed, of_said, pairs, without_repeats
from trainer.config.rules import LATENT_STEP, RULES
from trainer.config.training_config import TrainingConfig, known_settings, to_flat
from trainer.ground.errors import ConfigError, Problem
from trainer.settings import importing, kohya
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.importing.toml_files import Toml
from trainer.settings.kohya import Said
from trainer.settings.problems import shown
from trainer.settings.section import PATHS

_MADE = ("output_dir", "logging_dir")
"""Folders that a run makes."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was opened: the report, the usable values under our keys, and the configuration that they make.

    `wrong` are values that cannot be used, under the keys of their settings, for whoever lets a person correct them.
    `foreign`: another program wrote the file, perhaps on another computer.
    """

    report: Report
    values: Mapping[str, object]
    config: TrainingConfig
    wrong: Mapping[str, object]
    foreign: bool


def open_recipe(recipe: Path | Source) -> Opened:
    """Return what a file of settings of any kind says, or a text as it was read, without what cannot be used here.

    A value that no setting can have does not keep the others out, and neither does what is not supported: the report
    names them.

    Raises:
        ConfigError: the file as a whole cannot be read.
    """
    source = recipe if isinstance(recipe, Source) else importing.source_of(recipe)
    reader, read = importing.read(source, known_settings())
    imported = translated(reader, read)
    missing = _missing(imported.values, source.may) if read.foreign else {}
    values = {key: value for key, value in imported.values.items() if key not in missing}
    config, usable, wrong = _usable(values)
    everything = [*read.said, *imported.said]
    said = without_repeats(everything)
    named = {each.key for each in said}
    told = named | {key for each in said for key in each.becomes}
    same = [each.key for each in everything if each.becomes == {each.key: each.before} and each.key not in told]
    flat = to_flat(config)
    report = Report(
        reader.name,
        taken=tuple(
            key
            for key in dict.fromkeys([*read.flat, *same])
            if key in usable and key not in told and key not in read.assumed
        ),
        said=said,
        assumed={key: value for key, value in read.assumed.items() if key in usable and flat[key] is not None},
        unused=tuple(key for key in dict.fromkeys([*read.unused, *imported.unused]) if key not in named),
        off=tuple(read.off),
        ignored=(*read.ignored, *imported.ignored),
        unsupported=tuple(imported.unsupported),
        wrong=(*imported.problems, *wrong),
        missing=missing,
        remarks=(*read.remarks, *dict.fromkeys(_missing_folders(config, source.may))),
    )
    correct = _to_correct(values, wrong, imported.problems)
    if any(each.key == datasets.KEY for each in (*imported.problems, *wrong)) and datasets.KEY in read.flat:
        correct[datasets.KEY] = datasets.as_written(read.flat[datasets.KEY])
    return Opened(report, usable, config, correct, read.foreign)


def translated(reader: Reader, recipe: Recipe) -> kohya.Imported:
    """Return a recipe under our keys; `problems` are its own and those of the translation, unsupported ones apart."""
    imported = kohya.translated(recipe.flat, known_settings())
    imported.problems[:0] = recipe.problems
    if datasets.KEY in imported.values:
        listed = datasets.read(imported.values[datasets.KEY])
        imported.values[datasets.KEY] = listed.tables
        imported.problems += listed.problems
        imported.unsupported += listed.unsupported
        imported.unused += listed.unused
    if recipe.foreign:
        _round(imported)
        _round_length_of_texts(imported)
    _name_as_in_file(recipe, imported)
    return imported


def _name_as_in_file(recipe: Recipe, imported: kohya.Imported) -> None:
    """Call arguments what the file calls them; what it is silent about is not said otherwise but assumed."""
    said = []
    for each in imported.said:
        key, value = recipe.in_file(each.key, each.before)
        if value is None:
            recipe.assumed |= {name: what for name, what in each.becomes.items() if what}
        else:
            said.append(replace(each, key=key, before=value))
    unused = [recipe.in_file(name, "") for name in imported.unused]
    imported.said, imported.unused = said, [key for key, value in unused if value is not None]
    unsupported = []
    for problem in imported.unsupported:
        name = str(problem.value).partition("=")[0]
        key, value = recipe.in_file(f"{problem.key} {name}", problem.value)
        if key == f"{problem.key} {name}":
            key, value = recipe.in_file(problem.key, problem.value)
        unsupported.append(replace(problem, key=key, value=value))
    imported.unsupported = unsupported


def _to_correct(
    values: Mapping[str, object], refused: Iterable[Problem], unread: Iterable[Problem]
) -> dict[str, object]:
    """Return {key: value} of what cannot be used and can be shown in its field: there it is seen to be wrong.

    Args:
        refused: what no setting can have.
        unread: what the file says in a way that has no value; a text would pass for one.
    """
    known = known_settings()
    found = {each.key: values[each.key] for each in refused if each.key in values}
    shown = [each for each in unread if each.key in known and known[each.key].kind != "text"]
    return found | {each.key: each.value for each in shown if each.value is not None}


def notices(reader: Reader, recipe: Recipe, imported: kohya.Imported) -> list[str]:
    """Return what a run at the terminal is told beside its problems: of a TOML file only what is left out of it."""
    if isinstance(reader, Toml) and not recipe.remarks and not recipe.said:
        return []
    said = without_repeats([*recipe.said, *imported.said])
    told = {each.key for each in said}
    unused = [key for key in recipe.unused if key not in told]
    imported.unused = [key for key in imported.unused if key not in (*told, *unused)]
    return [
        f"Read as {reader.name}.",
        *(f"Said otherwise here: {of_said(each)}." for each in said),
        *listed(SILENT, pairs(recipe.assumed)),
        *listed("Without effect on the result", unused),
        *listed("Not known here, and ignored", recipe.ignored),
        *recipe.remarks,
    ]


def _round(imported: kohya.Imported) -> None:
    """Round sizes down that sd-scripts trains although the VAE cannot hold them: it drops the rest."""
    values, why = imported.values, f"the VAE drops what is left over of {LATENT_STEP} pixels"
    step = values.get("bucket_reso_steps")
    if isinstance(step, int) and not isinstance(step, bool) and step > 0 and step % LATENT_STEP:
        rounded = max(step // LATENT_STEP, 1) * LATENT_STEP
        imported.said.append(Said("bucket_reso_steps", step, {"bucket_reso_steps": rounded}, why))
        values["bucket_reso_steps"] = rounded
    given = values.get("resolution")
    if values.get("enable_bucket", True) or not isinstance(given, str | int | list):
        return
    sides = re.findall(r"\d+", str(given))
    floored = ",".join(str(int(side) // LATENT_STEP * LATENT_STEP) for side in sides)
    if 1 <= len(sides) <= 2 and any(int(side) % LATENT_STEP for side in sides):
        imported.said.append(Said("resolution", given, {"resolution": floored}, why))
        values["resolution"] = floored


def _round_length_of_texts(imported: kohya.Imported) -> None:
    """Take as many parts of 75 tokens as sd-scripts cuts texts into, which takes any length (`strategy_base.py`)."""
    key, part = "max_token_length", 75
    length, allowed = imported.values.get(key), known_settings()[key].choices
    if isinstance(length, int) and not isinstance(length, bool) and length > part and length not in allowed:
        cut = length // part * part
        if cut in allowed:
            imported.values[key] = cut
            why = f"texts are cut into parts of {part} tokens, of which no more are whole"
            imported.said.append(Said(key, length, {key: cut}, why))


def _missing(values: Mapping[str, object], may: Callable[[Path], bool]) -> dict[str, str]:
    """Return {key: path} of what a file from elsewhere names and this computer has not, or may not be looked at."""
    known = known_settings()
    found: dict[str, str] = {}
    for key, value in values.items():
        if not isinstance(value, str) or not value or key not in known or not _is_path(key, value):
            continue
        there = may(Path(value)) and (Path(value).exists() or (key in _MADE and _can_be_made(value)))
        if not there and not (known[key].show.widget == "file" and _HUB_NAME.fullmatch(value)):
            found[key] = value
    return found


def _can_be_made(folder: str) -> bool:
    """Say whether a folder that is not there may become one here, or is one of another computer.

    A path that begins at the root is another computer's where nothing of it is here, or nothing may be made there.
    """
    if os.name == "nt" and folder.startswith(("/", "\\")):
        return False
    if os.name != "nt" and ("\\" in folder or re.match("[A-Za-z]:", folder)):
        return False
    path = Path(folder)
    if not path.is_absolute():
        return True
    nearest = next((parent for parent in path.parents if parent.exists()), Path(path.anchor))
    return nearest != Path(path.anchor) and os.access(nearest, os.W_OK)


def _missing_folders(config: TrainingConfig, may: Callable[[Path], bool]) -> Iterator[str]:
    """Yield a line for each folder or file that datasets name and this computer has not; they stay as they are."""
    for subset in (each for dataset in datasets.datasets_of(config) for each in dataset.subsets):
        masks = subset.config.augmentation.conditioning_data_dir
        for path in (subset.image_dir, subset.metadata_file, masks):
            if path and not (may(Path(path)) and Path(path).exists()):
                yield f"Not on this computer: {shown(path)} of {subset.place}. Choose another in its place."


def _is_path(key: str, value: str) -> bool:
    return known_settings()[key].show.widget in PATHS or (key == "sample_prompts" and kohya.names_a_file(value))


def _usable(values: Mapping[str, object]) -> tuple[TrainingConfig, dict[str, object], tuple[Problem, ...]]:
    """Return the configuration of the values that can be used, these values, and the problems of the others."""
    usable = dict(values)
    problems: list[Problem] = []
    while True:
        assembled = assemble([usable])
        if assembled.config is not None:
            return assembled.config, usable, tuple(problems)
        problems += assembled.problems
        named = {problem.key for problem in assembled.problems}
        wrong = named & usable.keys()
        if not wrong:  # a default does not go together with what the file says
            wrong = {key for rule in RULES if named.intersection(rule.keys) for key in rule.keys} & usable.keys()
            problems += [Problem(key, "it is left out with it.", usable[key]) for key in sorted(wrong)]
        if not wrong:
            raise ConfigError(problems)
        usable = {key: value for key, value in usable.items() if key not in wrong}
