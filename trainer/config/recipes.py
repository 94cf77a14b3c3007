"""Opening a file of settings of any kind: its values under our keys, and one report on what has become of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config.assembly import assemble
from trainer.config.rules import LATENT_STEP, RULES
from trainer.config.training_config import TrainingConfig, known_settings
from trainer.ground.errors import ConfigError, Problem
from trainer.settings import importing, kohya
from trainer.settings.importing.recipe import Reader, Recipe
from trainer.settings.importing.toml_files import Toml
from trainer.settings.kohya import Said
from trainer.settings.problems import shown
from trainer.settings.section import PATHS

_MADE = ("output_dir", "logging_dir")
"""Folders that a run makes."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Report:
    """What has become of everything that a file says.

    `assumed` are values that the program which wrote the file takes where it is silent; `unsupported` changes the
    result; `wrong` are values that no setting can have; `missing` {key: path} of what is not on this computer.
    """

    kind: str
    taken: tuple[str, ...] = ()
    said: tuple[Said, ...] = ()
    assumed: Mapping[str, object] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unsupported: tuple[Problem, ...] = ()
    wrong: tuple[Problem, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what a person reads, a line each; keys stand for settings (`in_labels` says them with labels)."""
        assumed = [f"{key} = {shown(value)}" for key, value in self.assumed.items()]
        return [
            f"Read as {self.kind}.",
            *_listed("Taken as it stands", self.taken),
            *(f"Said otherwise here: {_of_said(each)}." for each in self.said),
            *_listed("Left out by the file, and so as the program that wrote it has it", assumed),
            *_listed("Off in the file", self.off),
            *_listed("Without effect on the result", self.unused),
            *_listed("Not known here, and ignored", self.ignored),
            *(f"Not supported: {problem}" for problem in self.unsupported),
            *(f"Cannot be used, and left out: {problem}" for problem in self.wrong),
            *(f"Not on this computer, and left out: {key} = {shown(path)}." for key, path in self.missing.items()),
            *self.remarks,
        ]


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was opened: the report, the usable values under our keys, and the configuration that they make."""

    report: Report
    values: Mapping[str, object]
    config: TrainingConfig


def _listed(title: str, names: tuple[str, ...] | list[str]) -> list[str]:
    return [f"{title}: {', '.join(names)}."] if names else []


def _of_said(said: Said) -> str:
    before = f"{said.key} {shown(said.before)}" if said.before != "" else said.key
    becomes = ", ".join(f"{key} {shown(value)}" for key, value in said.becomes.items())
    why = f" ({said.why})" if said.why and becomes else said.why
    return f"{before} -> {becomes}{why}" if becomes else f"{before}, {why}"


def open_recipe(path: Path) -> Opened:
    """Return what a file of settings of any kind says, without what cannot be used here.

    A value that no setting can have does not keep the others out, and neither does what is not supported: the report
    names them.

    Raises:
        ConfigError: the file as a whole cannot be read.
    """
    known = known_settings()
    reader, recipe = importing.read(path, known)
    imported = translated(reader, recipe)
    missing = _missing(imported.values) if recipe.foreign else {}
    values = {key: value for key, value in imported.values.items() if key not in missing}
    config, usable, wrong = _usable(values)
    said = _without_repeats([*recipe.said, *imported.said])
    told = {each.key for each in said} | {key for each in said for key in each.becomes}
    report = Report(
        reader.name,
        taken=tuple(key for key in recipe.flat if key in usable and key not in told and key not in recipe.assumed),
        said=said,
        assumed={key: value for key, value in recipe.assumed.items() if key in usable},
        unused=tuple(key for key in dict.fromkeys([*recipe.unused, *imported.unused]) if key not in told),
        off=tuple(recipe.off),
        ignored=tuple(imported.ignored),
        unsupported=tuple(imported.unsupported),
        wrong=(*imported.problems, *wrong),
        missing=missing,
        remarks=tuple(recipe.remarks),
    )
    return Opened(report, usable, config)


def translated(reader: Reader, recipe: Recipe) -> kohya.Imported:
    """Return a recipe under our keys; `problems` are its own and those of the translation, unsupported ones apart."""
    imported = kohya.translated(recipe.flat, known_settings())
    imported.problems[:0] = recipe.problems
    if recipe.foreign:
        _round(imported)
    return imported


def notices(reader: Reader, recipe: Recipe, imported: kohya.Imported) -> list[str]:
    """Return what a run at the terminal is told beside its problems: of a TOML file only what is left out of it."""
    if isinstance(reader, Toml) and not recipe.remarks and not recipe.said:
        return []
    said = [f"Said otherwise here: {_of_said(each)}." for each in _without_repeats([*recipe.said, *imported.said])]
    assumed = [f"{key} = {shown(value)}" for key, value in recipe.assumed.items()]
    silent = _listed("Left out by the file, and so as the program that wrote it has it", assumed)
    return [
        f"Read as {reader.name}.",
        *said,
        *silent,
        *_listed("Without effect on the result", tuple(recipe.unused)),
        *recipe.remarks,
    ]


def _without_repeats(said: list[Said]) -> tuple[Said, ...]:
    found: list[Said] = []
    for each in said:
        if each not in found and each.becomes != {each.key: each.before}:
            found.append(each)
    return tuple(found)


def _round(imported: kohya.Imported) -> None:
    """Round a size down that sd-scripts trains without buckets although the VAE cannot hold it: it drops the rest."""
    given = imported.values.get("resolution")
    if imported.values.get("enable_bucket", True) or not isinstance(given, str | int | list):
        return
    sides = re.findall(r"\d+", str(given))
    rounded = ",".join(str(int(side) // LATENT_STEP * LATENT_STEP) for side in sides)
    if 1 <= len(sides) <= 2 and any(int(side) % LATENT_STEP for side in sides):
        why = f"the VAE drops what is left over of {LATENT_STEP} pixels"
        imported.said.append(Said("resolution", given, {"resolution": rounded}, why))
        imported.values["resolution"] = rounded


def _missing(values: Mapping[str, object]) -> dict[str, str]:
    """Return {key: path} of what a file from elsewhere names and this computer has not."""
    known = known_settings()
    found: dict[str, str] = {}
    for key, value in values.items():
        if not isinstance(value, str) or not value or key not in known or not _is_path(key, value):
            continue
        path = Path(value)
        there = path.exists() or (key in _MADE and path.parent.exists() and "\\" not in value)
        if not there and not (known[key].show.widget == "file" and _HUB_NAME.fullmatch(value)):
            found[key] = value
    return found


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
