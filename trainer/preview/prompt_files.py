"""Sample prompts from a file: lines of text, or sd-scripts' tables in TOML and JSON.

    prompts.txt     a prompt a line, in the notation of `prompts.parse_prompt`; # begins a comment
    prompts.toml    [prompt] with what all have in common, and a [[prompt.subset]] for each picture
    prompts.json    a list of tables, or of lines as in a .txt

The keys of a table are sd-scripts' (`library/train_util.py` load_prompts): prompt, negative_prompt, width, height,
seed, scale, sample_steps, sample_sampler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.ground.errors import ConfigError, Problem
from trainer.ground.paths import MISSING, MOST_TEXT, TooLarge, normalised, read_bytes
from trainer.settings import toml
from trainer.settings.problems import shown

Entry = str | Mapping[str, object]
"""One prompt: a line, or a table."""

_TOML_RULE = "it must hold [prompt] and in it a [[prompt.subset]] for each picture"
_JSON_RULE = "it must be a list of prompts, each a text or a table with the key prompt"


def read_file(text: str) -> list[Entry]:
    """Return the prompts of the file that the setting names.

    Raises:
        ConfigError: there is no such file, or it is of another kind than its ending says.
    """
    path = Path(_path(text))
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise refused(text, f"prompts are read from {', '.join(_READERS)} files, and {shown(path.name)} is none")
    try:
        content = read_bytes(path, MOST_TEXT)
    except MISSING as error:
        raise refused(
            text, f"there is no file {shown(str(path))}; check the path, or write the prompts themselves, one a line"
        ) from error
    except TooLarge as error:
        raise refused(
            text, f"{shown(str(path))} has more than {MOST_TEXT:,} bytes, which prompts never have"
        ) from error
    except OSError as error:
        raise refused(text, f"{shown(str(path))} cannot be read: {error.strerror or error}") from error
    try:
        return reader(content.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        raise refused(text, f"{shown(str(path))} is not UTF-8 text; save it as UTF-8") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise refused(text, f"{shown(str(path))} holds no prompts: {error}") from error


def _path(text: str) -> str:
    try:
        return normalised(text)
    except ValueError as error:
        raise refused(text, str(error)) from error


def refused(text: str, reason: str) -> ConfigError:
    """Return the refusal of the setting."""
    return ConfigError([Problem("sample_prompts", reason if reason.endswith((".", "?")) else f"{reason}.", text)])


def _lines(content: str, path: Path) -> list[Entry]:
    return list(content.splitlines())


def _toml(content: str, path: Path) -> list[Entry]:
    try:
        document = toml.parse(content, path.name)
    except ConfigError as error:
        raise ValueError(error.problems[0].message) from error
    common = document.get("prompt")
    subsets = common.get("subset") if isinstance(common, dict) else None
    if not isinstance(common, dict) or not isinstance(subsets, list) or not all(map(_is_table, subsets)):
        raise ValueError(_TOML_RULE)
    shared = {key: value for key, value in common.items() if key != "subset"}
    return [{**shared, **subset} for subset in subsets]


def _json(content: str, path: Path) -> list[Entry]:
    document = json.loads(content)
    if not isinstance(document, list) or not all(isinstance(entry, str) or _is_table(entry) for entry in document):
        raise ValueError(_JSON_RULE)
    return document


def _is_table(entry: object) -> bool:
    return isinstance(entry, dict)


_READERS: Mapping[str, Callable[[str, Path], list[Entry]]] = {".txt": _lines, ".toml": _toml, ".json": _json}
