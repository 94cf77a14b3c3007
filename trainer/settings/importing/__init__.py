"""One way in for every kind of recipe: each kind is a class and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.ground.errors import ConfigError, Problem
from trainer.ground.paths import MISSING, open_regular
from trainer.ground.safetensors_header import HeaderError, read_table
from trainer.settings import toml
from trainer.settings.importing import datasets
from trainer.settings.importing.ai_toolkit import AiToolkit
from trainer.settings.importing.command_line import CommandLine
from trainer.settings.importing.kohya_json import KohyaJson
from trainer.settings.importing.lora_metadata import LoraMetadata
from trainer.settings.importing.one_trainer import OneTrainer
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.importing.toml_files import DatasetsJson, EasyToml, Toml
from trainer.settings.walk import Setting

READERS: tuple[Reader, ...] = (
    LoraMetadata(),
    OneTrainer(),
    AiToolkit(),
    KohyaJson(),
    DatasetsJson(),
    CommandLine(),
    EasyToml(),
    Toml(),
)
"""Every kind of file; the first that recognises one reads it, and the last reads whatever is left."""

_LORA_ENDINGS = (".safetensors",)


def read(source: Source, known: Mapping[str, Setting]) -> tuple[Reader, Recipe]:
    """Return what kind of file it is and what it says. Raises ConfigError if it cannot be read."""
    reader = next(reader for reader in READERS if reader.recognises(source))
    recipe = reader.read(source, known)
    datasets.take_file(recipe, source)
    return reader, recipe


def source_of(path: Path) -> Source:
    """Return a file as the readers want it; of a LoRA only the header is read. Raises ConfigError."""
    if path.suffix.lower() not in _LORA_ENDINGS:
        return Source(path, toml.read_text(path))
    try:
        with open_regular(path) as file:
            return Source(path, metadata=read_table(file, path.stat().st_size).metadata)
    except MISSING:
        raise ConfigError(
            [Problem(str(path), "there is no such file; check the path and the working folder.")]
        ) from None
    except HeaderError as error:
        raise ConfigError([Problem(str(path), f"the file is damaged: {error}.")]) from None
    except OSError as error:
        raise ConfigError([Problem(str(path), f"it cannot be read: {error.strerror or error}.")]) from None


__all__ = ["READERS", "Reader", "Recipe", "Source", "read", "source_of"]
