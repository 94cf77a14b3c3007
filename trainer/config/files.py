"""Configurations and files: load with everything laid over the defaults, save with comments."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from trainer.config import recipes
from trainer.config.assembly import Assembled, assemble
from trainer.config.training_config import TrainingConfig, known_settings, to_flat
from trainer.ground.errors import ConfigError, Problem
from trainer.settings import importing, kohya, toml
from trainer.settings.importing import datasets as listing
from trainer.settings.section import PATHS

PROJECT = Path(__file__).resolve().parents[2]
PRESETS = PROJECT / "presets"

_PATHS_OF_SUBSETS = ("image_dir", "metadata_file")
"""Names of paths in tables of datasets that are no settings of a run."""

_NOTHING: Mapping[str, object] = MappingProxyType({})


def load_config(
    path: Path | None = None,
    overrides: Mapping[str, object] = _NOTHING,
    *,
    preset: Path | None = None,
    ignore_unsupported: bool = False,
) -> TrainingConfig:
    """Return defaults < preset < file < overrides. Raises ConfigError with every problem found."""
    assembled = load_layers(path, overrides, preset=preset, ignore_unsupported=ignore_unsupported)
    if assembled.config is None:
        raise ConfigError(assembled.problems)
    return assembled.config


def load_layers(
    path: Path | None = None,
    overrides: Mapping[str, object] = _NOTHING,
    *,
    preset: Path | None = None,
    ignore_unsupported: bool = False,
) -> Assembled:
    """As `load_config`, but with problems in place of an error, and with the notices a user should see."""
    layers: list[Mapping[str, object]] = []
    problems: list[Problem] = []
    notices: list[str] = []
    for source in (preset, path):
        if source is None:
            continue
        imported = _imported(Path(source), ignore_unsupported)
        layers.append(imported.values)
        problems += imported.problems
        notices += imported.notices
    overrides, misplaced = _with_datasets(overrides)
    problems += misplaced
    assembled = assemble([*layers, overrides])
    problems += assembled.problems
    return Assembled(None if problems else assembled.config, tuple(problems), (*notices, *assembled.notices))


def read_layer(path: Path, *, ignore_unsupported: bool = False) -> dict[str, object]:
    """Return what one file sets, under our keys, unchecked. Raises ConfigError if it cannot be read or translated."""
    imported = _imported(Path(path), ignore_unsupported)
    if imported.problems:
        raise ConfigError(imported.problems)
    return imported.values


def _imported(path: Path, ignore_unsupported: bool) -> kohya.Imported:
    try:
        reader, recipe = importing.read(importing.source_of(path), known_settings())
    except ConfigError as error:
        return kohya.Imported({}, list(error.problems))
    imported = recipes.translated(reader, recipe)
    imported.notices += recipes.notices(reader, recipe, imported)
    kohya.tell(imported, ignore_unsupported=ignore_unsupported)
    if path.resolve().parent == PRESETS:
        imported.values = _from_project(imported.values)
    return imported


def _with_datasets(layer: Mapping[str, object]) -> tuple[Mapping[str, object], tuple[Problem, ...]]:
    """Return a layer with the datasets of the file that its dataset_config names."""
    if listing.FILE not in layer:
        return layer, ()
    others = {key: value for key, value in layer.items() if key != listing.FILE}
    try:
        return {**others, listing.KEY: listing.read_file(Path(str(layer[listing.FILE])))}, ()
    except ConfigError as error:
        return others, error.problems


def _from_project(values: Mapping[str, object]) -> dict[str, object]:
    """Make the paths of a shipped preset, which are relative to the project, good from any working folder."""
    return dict(values) if Path.cwd() == PROJECT else _joined(values, PROJECT)


def anchored(config: TrainingConfig) -> TrainingConfig:
    """Return the settings with the paths that are relative to the working folder made good from any other."""
    return assemble([_joined(to_flat(config), Path.cwd())]).config or config


def _joined(values: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return values with `folder` before their relative paths, those of datasets too."""
    return {key: _joined_value(key, value, folder) for key, value in values.items()}


def _joined_value(key: str, value: object, folder: Path) -> object:
    if isinstance(value, Mapping):
        return _joined(value, folder)
    if isinstance(value, list | tuple):
        return [_joined_value(key, each, folder) for each in value]
    return str(folder / value) if isinstance(value, str) and _is_path(key, value, folder) else value


def _is_path(key: str, value: str, folder: Path) -> bool:
    """Say whether a value is a path: what is a model's name on a hub, or prompts, is in no folder."""
    if not value:
        return False
    if key in _PATHS_OF_SUBSETS:
        return True
    widget = known_settings()[key].show.widget if key in known_settings() else ""
    if widget == "multiline":
        return kohya.names_a_file(value)
    return widget == "folder" or (widget in PATHS and (folder / value).exists())


def save_config(config: TrainingConfig, path: Path, header: str = "") -> None:
    """Write every setting with its help line as a comment, in one step. Raises ConfigError if it cannot be written."""
    toml.write(Path(path), toml.document(known_settings().values(), to_flat(config), header))


def to_kohya(config: TrainingConfig, prompts_file: str = "", datasets_file: str = "") -> dict[str, object]:
    """Return the configuration as sd-scripts reads it: flat, with `network_module` and `network_args` packed."""
    return kohya.export_flat(to_flat(config), known_settings(), prompts_file, datasets_file)


def parse_set(text: str) -> tuple[str, object]:
    """Return (key, value) of the "key=value" of `--set`: a TOML literal, else a text. Raises ConfigError.

    A setting that is a text takes what looks like a number, a date or a truth value as the text it is.
    """
    key, equals, written = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError([Problem("--set", f"{text!r} cannot be used; write it as key=value, as in network_dim=16.")])
    value = _literal(written)
    known = known_settings().get(key)
    if known is not None and known.kind == "text" and not isinstance(value, str | list):
        return key, written
    return key, value


def _literal(written: str) -> object:
    try:
        document = tomllib.loads(f"value = {written}")
    except (ValueError, RecursionError):
        return written
    return document["value"] if len(document) == 1 else written
