"""Command lines of sd-scripts, pasted or in a script for a shell: quotes, line ends and variables of each.

Nothing is run: assignments of plain values are put in where their names stand, and a name that has none is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.ground.errors import ConfigError, Problem
from trainer.settings import toml
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.importing.toml_files import take_dataset_config
from trainer.settings.kohya import Said
from trainer.settings.problems import shown
from trainer.settings.walk import Setting

_SCRIPT = re.compile(r"(?:^|[\\/])((?:[a-z0-9]+_)*train_network\.py)$")
_CALL = re.compile(r"train_network(?:\.py)?\b")
_UNSET = "\0"
"""Stands before a name in use that is not set."""

_PLAIN = "train_network.py"
_FAMILIES = {"sdxl_train_network.py": "sdxl"}
"""{script: our model_family} where the script decides it."""


@dataclass(frozen=True, slots=True)
class Shell:
    """How a shell writes: what ends a line that goes on, what escapes a sign, which quotes there are.

    `literal` is the quote inside which nothing is replaced; `assignment` finds name and value, `variable` a name in
    use. `doubles`: a quote written twice inside its like is the sign itself; `twice`: a sign that is so everywhere.
    """

    continuation: str
    escape: str
    quotes: str
    literal: str
    assignment: re.Pattern[str]
    variable: re.Pattern[str]
    comment: str
    doubles: bool = False
    escapes_in_quotes: bool = True
    twice: str = ""

    @property
    def whole(self) -> re.Pattern[str]:
        """A word that is a name in use and nothing else, be it a list's."""
        return re.compile(rf"(?:{self.variable.pattern})(?:\[[@*]\]\}})?", self.variable.flags)


_POSIX = Shell(
    "\\",
    "\\",
    "\"'",
    "'",
    re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(.*)$"),
    re.compile(r"\$\{?([A-Za-z_]\w*)\}?"),
    "#",
)
_BATCH = Shell(
    "^",
    "^",
    '"',
    "",
    re.compile(r"^\s*set\s+\"?([A-Za-z_]\w*)=(.*?)\"?$", re.IGNORECASE),
    re.compile(r"%([A-Za-z_]\w*)%"),
    r"::|rem\b",
    escapes_in_quotes=False,
    twice="%",
)
_POWERSHELL = Shell(
    "`",
    "`",
    "\"'",
    "'",
    re.compile(r"^\s*\$(?:Env:)?([A-Za-z_]\w*)\s*=\s*(.*)$", re.IGNORECASE),
    re.compile(r"\$(?:Env:)?\{?([A-Za-z_]\w*)\}?", re.IGNORECASE),
    "#",
    doubles=True,
)
_BY_ENDING = {".sh": _POSIX, ".bat": _BATCH, ".cmd": _BATCH, ".ps1": _POWERSHELL}


class CommandLine(Reader):
    """A call of one of sd-scripts' LoRA trainers."""

    name = "a command line of sd-scripts"

    def recognises(self, source: Source) -> bool:
        if source.metadata is not None or not _CALL.search(source.text):
            return False
        if source.path.suffix.lower() in _BY_ENDING:
            return True
        return any(_CALL.search(line) and "--" in line for line in _joined(source.text, _shell_of(source)))

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        shell = _shell_of(source)
        calls = [words for words in _commands(source.text, shell) if any(_SCRIPT.search(word) for word in words)]
        if not calls:
            raise ConfigError([Problem(str(source.path), "no call of train_network.py was found in it.")])
        made = [word for word in calls[0] if word.startswith(_UNSET) and shell.whole.fullmatch(word[1:])]
        recipe = arguments_of([word for word in calls[0] if word not in made])
        recipe.remarks += [f"{word[1:]} is put together in the file, and was not read." for word in made]
        if len(calls) > 1:
            recipe.remarks.append(f"The file holds {len(calls)} calls of a trainer; the first was read.")
        for key, value in recipe.flat.items():
            texts = [str(each) for each in (value if isinstance(value, list) else [value])]
            if any(_UNSET in text for text in texts):
                recipe.flat[key] = value = " ".join(texts).replace(_UNSET, "")
                message = f"{shown(value)} holds a name that is not set in the file; write its value in its place."
                recipe.problems.append(Problem(key, message, value))
        self._lay_over_config_file(recipe, source, known)
        take_dataset_config(recipe, source)
        return recipe

    def _lay_over_config_file(self, recipe: Recipe, source: Source, known: Mapping[str, Setting]) -> None:
        """Put the file that --config_file names under the arguments, as sd-scripts does."""
        name = recipe.flat.pop("config_file", None)
        if name is None:
            return
        path = Path(str(name) if str(name).lower().endswith(".toml") else f"{name}.toml")
        found = next((place for place in (path, source.path.parent / path) if place.is_file()), None)
        if found is None:
            message = f'"{name}" is not there; put it beside this file, since most settings are in it.'
            recipe.problems.append(Problem("config_file", message, name))
            return
        below, problems = toml.flatten(toml.parse(toml.read_text(found), str(found)), known)
        recipe.flat = {**below, **recipe.flat}
        recipe.problems += problems
        recipe.said.append(Said("config_file", name, {}, f"{len(below)} settings of that file were read with it"))


def arguments_of(words: Sequence[str]) -> Recipe:
    """Return what the words of one call say: what follows the script's name, as arguments with their values."""
    place = next(index for index, word in enumerate(words) if _SCRIPT.search(word))
    script = words[place].replace("\\", "/").rpartition("/")[2]
    recipe = Recipe({"network_module": "networks.lora", **options_of(words[place + 1 :])})
    if script not in (_PLAIN, *_FAMILIES):
        message = "it trains another kind of model than this program does."
        recipe.problems.append(Problem(script, message))
    if script in _FAMILIES:
        recipe.flat["model_family"] = _FAMILIES[script]
        recipe.said.append(Said(script, "", {"model_family": _FAMILIES[script]}))
    return recipe


_LISTS = ("network_args", "optimizer_args", "lr_scheduler_args", "base_weights", "base_weights_multiplier")


_ENDS = ("&&", "||", "|", ";", "&", ">", ">>", "2>&1")
"""What ends a command before its line ends."""


def options_of(words: Sequence[str]) -> dict[str, object]:
    """Return {argument: value} of `--name value ...`, `--name=value` and `--name`: a text, a list of texts, or True."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word in _ENDS:
            break
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        elif name:
            found[name].append(word)
    return {key: _value(key, values) for key, values in found.items()}


def _value(key: str, values: list[str]) -> object:
    if key in _LISTS or len(values) > 1:
        return [value for each in values for value in (each.split() if key in _LISTS else [each])]
    if not values:
        return True
    return values[0]


def _shell_of(source: Source) -> Shell:
    """Return the shell that a file is for: by its ending, else by how its lines go on."""
    by_ending = _BY_ENDING.get(source.path.suffix.lower())
    if by_ending:
        return by_ending
    ends = [line.rstrip()[-1:] for line in source.text.splitlines()]
    return max((_POSIX, _BATCH, _POWERSHELL), key=lambda shell: ends.count(shell.continuation))


def _joined(text: str, shell: Shell) -> Iterator[str]:
    """Yield the lines of a script, those that go on put together."""
    pending = ""
    for line in text.splitlines():
        bare = line.rstrip()
        if bare.endswith(shell.continuation):
            pending += bare[:-1] + " "
            continue
        yield pending + line
        pending = ""
    if pending:
        yield pending


_MADE = re.compile(r"\s*(?:[\[({@`]|\$\()")
"""How a value begins that only the shell can make: a list, an object, a command's output."""


def _commands(text: str, shell: Shell) -> Iterator[list[str]]:
    """Yield the words of each line, with the variables that were set before it put in."""
    variables: dict[str, str] = {}
    for line in _joined(text, shell):
        if re.match(shell.comment, line.lstrip(), re.IGNORECASE):
            continue
        assigned = shell.assignment.match(line)
        if assigned and not _CALL.search(line) and not _MADE.match(assigned[2]):
            words = _words(assigned[2], shell, variables)
            variables[assigned[1].lower()] = words[0] if len(words) == 1 else assigned[2].strip()
            continue
        yield _words(line, shell, variables)


def _escapes(shell: Shell, quote: str) -> bool:
    return shell.escapes_in_quotes and quote != shell.literal


def _words(line: str, shell: Shell, variables: Mapping[str, str]) -> list[str]:
    """Return the words of a line: what stands in quotes is one, and a comment is none."""
    words: list[str] = []
    word, quote, begun, index = "", "", False, 0
    while index < len(line):
        if shell.twice and line.startswith(shell.twice * 2, index):
            word, begun, index = word + shell.twice, True, index + 2
            continue
        name = None if quote and quote == shell.literal else shell.variable.match(line, index)
        if name:
            word += variables.get(name[1].lower(), f"{_UNSET}{name[0]}")
            begun, index = True, name.end()
            continue
        sign = line[index]
        index += 1
        if quote:
            if sign == quote and shell.doubles and line[index : index + 1] == quote:
                word, index = word + quote, index + 1
            elif sign == quote:
                quote = ""
            elif sign == shell.escape and _escapes(shell, quote) and line[index : index + 1] in (quote, shell.escape):
                word, index = word + line[index], index + 1
            else:
                word += sign
        elif sign in shell.quotes:
            quote, begun = sign, True
        elif sign == shell.escape and index < len(line):
            word, begun, index = word + line[index], True, index + 1
        elif sign.isspace():
            words, word, begun = [*words, word] if begun else words, "", False
        elif sign == shell.comment and not begun:
            break
        else:
            word, begun = word + sign, True
    return [*words, word] if begun else words
