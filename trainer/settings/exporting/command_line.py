"""Arguments of sd-scripts as a command line, in the way that each shell writes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_SCRIPTS = {
    "sdxl": "sdxl_train_network.py",
    "flux": "flux_train_network.py",
    "chroma": "flux_train_network.py",
    "anima": "anima_train_network.py",
}
_SCRIPT = "train_network.py"


@dataclass(frozen=True, slots=True)
class Writing:
    """How a shell is written: its word in quotes, what ends a line that goes on, and signs that a value can't have."""

    quoted: Callable[[str], str]
    continuation: str
    impossible: str


def _batch(word: str) -> str:
    return '"' + word.replace("%", "%%") + '"' if not word or set(word) & set(" \t&|<>^%()!;,=`'") else word


def _powershell(word: str) -> str:
    plain = word and all(sign.isalnum() or sign in "._-/\\=:+" for sign in word)
    return word if plain else "'" + word.replace("'", "''") + "'"


SHELLS: Mapping[str, Writing] = {
    "sh": Writing(shlex.quote, "\\", "\r\n\0"),
    "bat": Writing(_batch, "^", '\r\n\0"'),
    "ps1": Writing(_powershell, "`", '\r\n\0"'),
}
"""{ending of a script: how its shell is written}. PowerShell before 7.3 loses a double quote inside a word."""


def script_of(family: str) -> str:
    """Return sd-scripts' trainer for a `model_family`."""
    return _SCRIPTS.get(family, _SCRIPT)


def command_line(arguments: Mapping[str, object], shell: str, family: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the call of sd-scripts' trainer with these arguments, and those whose values the shell cannot say.

    Args:
        arguments: as `kohya.export_flat` gives them.
        family: the `model_family`, which decides the script.
    """
    writing = SHELLS[shell]
    words, unsaid = [], []
    for key, value in arguments.items():
        values = [_text(each) for each in value] if isinstance(value, list) else [_text(value)]
        if value is False:
            continue  # a switch that is not named is off
        if any(set(each) & set(writing.impossible) for each in values):
            unsaid.append(key)
        elif value is True:
            words.append(f"--{key}")
        elif isinstance(value, list):
            words.append(" ".join([f"--{key}", *map(writing.quoted, values)]))
        else:
            words.append(writing.quoted(f"--{key}={values[0]}"))
    lines = [f"accelerate launch {script_of(family)}", *(f"  {word}" for word in words)]
    return f" {writing.continuation}\n".join(lines) + "\n", tuple(unsaid)


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)
