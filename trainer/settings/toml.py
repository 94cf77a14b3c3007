"""TOML in and out: read with tomllib, written with the toml package's encoder and a comment over every key."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import toml

from trainer.ground import files, paths
from trainer.ground.errors import ConfigError, Problem
from trainer.settings.walk import Setting

_WIDTH = 116
_DEEPEST_KEY = 500
"""Dots in a key; the time that tomllib takes grows with their square."""
_ESCAPES = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\t": "\\t", "\r": "\\r"}


def read(path: Path) -> dict[str, object]:
    """Return the document of a TOML file. Raises ConfigError naming the file, line and column."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Return the text of a file of settings. Raises ConfigError naming the file."""
    try:
        return paths.read_text(path, paths.MOST_TEXT)
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file; check the path and the working folder.") from None
    except IsADirectoryError:
        raise _unreadable(path, "this is a folder; give the path of a .toml file.") from None
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    except paths.TooLarge:
        raise _unreadable(path, f"it is larger than {paths.MOST_TEXT:,} bytes, which settings never are.") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"it cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def parse(text: str, name: str) -> dict[str, object]:
    """Return the document of TOML text; `name` is what messages call it. Raises ConfigError."""
    if any(line.partition("=")[0].count(".") > _DEEPEST_KEY for line in text.splitlines()):
        raise ConfigError([Problem(name, "a key has too many dots to be read.")])
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(name, "brackets are nested too deeply to be read.")]) from None
    except ValueError as error:
        raise ConfigError([Problem(name, f"this is not valid TOML: {error}.{_hint(str(error))}")]) from None


def _hint(message: str) -> str:
    if "\\" in message or "hex" in message.lower() or "escape" in message.lower():
        return " Write a path with backslashes in single quotes: 'C:\\pictures'."
    return ""


def _unreadable(path: Path, reason: str) -> ConfigError:
    return ConfigError([Problem(str(path), reason)])


def flatten(document: Mapping[str, object], known: Container[str]) -> tuple[dict[str, object], tuple[Problem, ...]]:
    """Return {key: value} whatever the sections are called, and the keys that were given two different values.

    Section names carry no meaning, as in sd-scripts: the keys of settings are unique. A table under a known key that
    holds no known key is that key's value, and no section.
    """
    flat: dict[str, object] = {}
    problems: list[Problem] = []
    for name, value in document.items():
        is_section = isinstance(value, dict) and (name not in known or any(key in known for key in value))
        for key, item in value.items() if is_section and isinstance(value, dict) else ((name, value),):
            if key in flat and flat[key] != item:
                problems.append(Problem(key, f"given twice, as {flat[key]!r} and {item!r}; keep one of them.", item))
            flat[key] = item
    return flat, tuple(problems)


def quoted(text: str) -> str:
    """Return a TOML string: one line, or the multi-line form where the text has line breaks."""
    escaped = "".join(_escaped(character) for character in text)
    if "\n" not in escaped:
        return f'"{escaped}"'
    return f'"""\n{escaped}"""'


def _escaped(character: str) -> str:
    if character == '"':
        return '\\"'
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character != "\n" and (ord(character) < ord(" ") or character == "\x7f"):
        return f"\\u{ord(character):04x}"
    return character


class _Encoder(toml.TomlEncoder):  # type: ignore[type-arg]
    """The toml package's encoder with strings, floats and tuples that tomllib reads back exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.dump_funcs[str] = quoted
        self.dump_funcs[float] = repr
        self.dump_funcs[tuple] = self.dump_list


_ENCODER = _Encoder()


def encoded(value: object) -> str:
    """Return a value as TOML; a table in one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {encoded(each)}" for key, each in value.items()) + " }"
    return str(_ENCODER.dump_value(value))


def document(settings: Iterable[Setting], values: Mapping[str, object], header: str = "") -> str:
    """Return a TOML document: sections in order, each key under its help line. A key without a value is left out."""
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    section = ""
    below: list[str] = []
    for setting in settings:
        value = values.get(setting.key)
        if value is None and setting.zero_is_off:
            value = 0
        if value is None:
            continue
        if setting.kind == "tables":
            below += _tables(setting, value)
            continue
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"]
        lines += [*comment(setting.help), f"{setting.key} = {encoded(value)}"]
    return "\n".join([*lines, *below]).lstrip("\n") + "\n"


def _tables(setting: Setting, value: object) -> list[str]:
    """Return the lines of a list of tables; lists of tables in these are tables below them."""
    listed = list(value) if isinstance(value, list | tuple) else []
    return ["", *comment(setting.help), *tables(setting.key, listed)] if listed else []


def tables(name: str, values: Iterable[Mapping[str, object]], depth: int = 0) -> list[str]:
    """Return `[[name]]` for each table, with its values and the tables in it."""
    lines: list[str] = []
    indent = "  " * depth
    for table in values:
        inner = {key: value for key, value in table.items() if _is_tables(value)}
        lines.append(f"{indent}[[{name}]]")
        lines += [f"{indent}{key} = {encoded(value)}" for key, value in table.items() if key not in inner]
        for key, value in inner.items():
            lines += tables(f"{name}.{key}", value, depth + 1)  # type: ignore[arg-type]
    return lines


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def write(path: Path, text: str) -> None:
    """Write a text file in one step: a reader finds the old content or the new, never a part. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, text)
    except OSError as error:
        raise _unreadable(path, f"it cannot be written: {error.strerror or error}.") from None
