"""Command lines of sd-scripts, pasted or in a script for a shell: the words of one call, as arguments with values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.ground.errors import ConfigError, Problem
from trainer.settings import toml
from trainer.settings.importing.recipe import Reader, Recipe, Source
from trainer.settings.importing.shells import BY_ENDING, Unclosed, Word, commands, shell_of
from trainer.settings.kohya import Said
from trainer.settings.problems import shown
from trainer.settings.processes import relative_of
from trainer.settings.sd_scripts import ARGUMENTS, switches
from trainer.settings.walk import Setting

_SCRIPT = re.compile(r"(?:^|[\\/])((?:[a-z0-9]+_)*train_network\.py)$")
_CALL = re.compile(r"train_network(?:\.py)?\b")
_OTHER_SCRIPT = re.compile(r"\b(?:[a-z0-9]+_)*train(?:_[a-z_]+)?\.py\b")
_OF_A_CALL = ("--network_module", "--pretrained_model_name_or_path", "--config_file")
"""A command with one of these is a call too, where a variable names its script."""

_PLAIN = "train_network.py"
_FAMILIES = {
    "sdxl_train_network.py": "sdxl",
    "flux_train_network.py": "flux",
    "anima_train_network.py": "anima",
}
"""{script: our model_family} where the script decides it."""

_LISTS = ("network_args", "optimizer_args", "lr_scheduler_args", "base_weights", "base_weights_multiplier")


class CommandLine(Reader):
    """A call of one of sd-scripts' LoRA trainers."""

    name = "a command line of sd-scripts"

    def recognises(self, source: Source) -> bool:
        if source.metadata is not None:
            return False
        if source.path.suffix.lower() in BY_ENDING:
            return True
        lines = source.text.splitlines()
        return any(_CALL.search(line) for line in lines) and any(_option(line) for line in lines)

    def read(self, source: Source, known: Mapping[str, Setting]) -> Recipe:
        calls = _calls(source)
        if not calls:
            raise ConfigError([Problem(str(source.path), _no_call(source.text))])
        recipe = arguments_of(calls[0], known)
        if len(calls) > 1:
            recipe.remarks.append(f"The file holds {len(calls)} calls of a trainer; the first was read.")
        self._lay_over_config_file(recipe, source, known)
        return recipe

    def _lay_over_config_file(self, recipe: Recipe, source: Source, known: Mapping[str, Setting]) -> None:
        """Put the file that --config_file names under the arguments, as sd-scripts does."""
        name = recipe.flat.pop("config_file", None)
        if name is None:
            return
        found = source.named(str(name) if str(name).lower().endswith(".toml") else f"{name}.toml")
        if found is None:
            message = f'"{name}" is not there; put it beside this file, since most settings are in it.'
            recipe.problems.append(Problem("config_file", message, name))
            return
        below, problems = toml.flatten(toml.parse(toml.read_text(found), str(found)), known)
        recipe.flat = {**below, **recipe.flat}
        recipe.problems += problems
        recipe.said.append(Said("config_file", name, {}, f"{len(below)} settings of that file were read with it"))


def _option(line: str) -> bool:
    """Say whether a line of a pasted text begins with an option, or holds the call with one."""
    return line.lstrip().startswith("--") or bool(_CALL.search(line) and "--" in line)


def _no_call(text: str) -> str:
    other = next((name for name in _OTHER_SCRIPT.findall(text) if not _SCRIPT.search(name)), "")
    if other:
        return f"it calls {other}, which trains no LoRA; what can be read is a call of train_network.py and its like."
    return "no call of train_network.py was found in it, nor one of its like; what sets settings alone is no recipe."


def _calls(source: Source) -> list[tuple[Word, ...]]:
    """Return the calls of a trainer in a script or in pasted text. Raises ConfigError where a quote stays open."""
    shell = shell_of(source.text, source.path.suffix)
    lines = source.text.splitlines(keepends=True)
    call = next((number for number, line in enumerate(lines) if _CALL.search(line)), 0)
    open_quote: Unclosed | None = None
    for begin in dict.fromkeys((0, call)):  # a word such as "it's" above a call that was pasted opens no quote
        try:
            calls = list(_with_what_follows(commands("".join(lines[begin:]), shell)))
        except Unclosed as unclosed:
            open_quote = unclosed.below(begin)
            continue
        if calls:
            return calls
    if open_quote:
        raise ConfigError([Problem(str(source.path), str(open_quote))])
    return []


def _with_what_follows(found: Iterator[tuple[Word, ...]]) -> Iterator[tuple[Word, ...]]:
    """Yield the calls among commands; lines of arguments behind one that lost the sign to go on are part of it."""
    call: tuple[Word, ...] = ()
    for words in found:
        if call and words[0].text.startswith("--"):
            call += words
            continue
        if call:
            yield call
        call = words if _is_call(words) else ()
    if call:
        yield call


def _is_call(words: Sequence[Word]) -> bool:
    if any(_SCRIPT.search(word.text) for word in words):
        return any(word.text.startswith("--") or word.unknown for word in words)
    begins = [word.text.partition("=")[0] for word in words]
    return any(word.whole for word in words) and any(name in begins for name in _OF_A_CALL)


def arguments_of(words: Sequence[Word], known: Mapping[str, Setting]) -> Recipe:
    """Return what the words of one call say: what follows the script's name, as arguments with their values."""
    place = next((index for index, word in enumerate(words) if _SCRIPT.search(word.text)), None)
    if place is None:
        place = max(index for index, word in enumerate(words) if word.whole and index < _first_option(words))
    script = words[place].text.replace("\\", "/").rpartition("/")[2]
    recipe = Recipe({"network_module": "networks.lora"})
    recipe.remarks += [_not_read(word) for word in words[:place] if word.whole]
    if words[place].unknown:
        recipe.remarks.append(f"Which trainer it calls hangs on {words[place].unknown[0]}; {_PLAIN} was taken.")
    elif script not in (_PLAIN, *_FAMILIES):
        recipe.problems.append(Problem(script, "it trains another kind of model than this program does."))
    _take(recipe, _options(words[place + 1 :]), known)
    if script in _FAMILIES:
        family = relative_of(_FAMILIES[script], recipe.flat)
        recipe.flat["model_family"] = family
        recipe.said.append(Said(script, "", {"model_family": family}))
    return recipe


def _first_option(words: Sequence[Word]) -> int:
    begins = [word.text.partition("=")[0] in _OF_A_CALL for word in words]
    return begins.index(True)


@dataclass(slots=True)
class _Option:
    """An argument with the words that follow it; `equals` where its value is in the same word."""

    name: str
    values: list[Word] = field(default_factory=list)
    equals: bool = False


def _options(words: Sequence[Word]) -> Iterator[_Option]:
    """Yield the arguments of a call in order; what stands before the first has no name."""
    current = _Option("")
    for word in words:
        if word.text.startswith("--") and len(word.text) > 2 and not word.whole:
            yield current
            name, equals, value = word.text[2:].partition("=")
            current = _Option(name, [Word(value, word.unknown)] if equals else [], bool(equals))
        else:
            current.values.append(word)
    yield current


def _take(recipe: Recipe, options: Iterator[_Option], known: Mapping[str, Setting]) -> None:
    """Put arguments into a recipe: their values, and what is wrong with them."""
    names, alone = _names(known), switches(known)
    for option in options:
        name = _whole_name(option, names, recipe)
        if not name:
            continue
        # A variable behind a switch, or behind a value that is whole, is none of this argument's.
        left = [word for word in option.values if word.whole and name not in _LISTS]
        if name not in alone and option.values and option.values[0].whole:
            left.remove(option.values[0])
        recipe.remarks += [_not_read(word) for word in left]
        values = [word for word in option.values if word not in left]
        text = " ".join(word.text for word in values)
        lost = [each for word in values for each in word.unknown]
        problem = ""
        if lost:
            problem = f"{shown(text)} holds {', '.join(lost)}, which nothing here sets; write the value in its place."
        elif not values and name in names and name not in alone and name not in _LISTS:
            problem = "it has no value; write one behind it."
        if problem:
            recipe.flat.pop(name, None)
            recipe.problems.append(Problem(name, problem, text))
        else:
            recipe.flat[name] = _value(name, [word.text for word in values])


def _not_read(word: Word) -> str:
    return f"{word.unknown[0]} is put together in the file, and was not read."


def _whole_name(option: _Option, names: frozenset[str], recipe: Recipe) -> str:
    """Return the name of an argument that may be cut short, "" where it can't be told or where there is none."""
    if not option.name:
        recipe.remarks += [_not_read(word) for word in option.values if word.whole]
        return ""
    if option.name in names:
        return option.name
    longer = sorted(name for name in names if name.startswith(option.name))
    if len(longer) == 1:
        recipe.said.append(Said(f"--{option.name}", "", {}, f"short for {longer[0]}"))
        return longer[0]
    if longer:
        message = f"it may be {' or '.join(longer)}; write the whole name."
        recipe.problems.append(Problem(option.name, message))
        return ""
    return option.name


def _names(known: Mapping[str, Setting]) -> frozenset[str]:
    """Return the names of all arguments of sd-scripts' trainers."""
    found = {"config_file", "network_args", *ARGUMENTS}
    for setting in known.values():
        there = setting.sd_scripts
        found |= {setting.argument, *((*there.once, *there.switches) if there and not there.inside else ())} - {""}
    return frozenset(found)


def read_options(words: Sequence[str], known: Mapping[str, Setting]) -> Recipe:
    """Return what words behind a call would say: `--name value ...`, `--name=value` and `--name`."""
    recipe = Recipe()
    _take(recipe, _options([Word(word) for word in words]), known)
    return recipe


def _value(key: str, values: list[str]) -> object:
    if key in _LISTS or len(values) > 1:
        return [value for each in values for value in (each.split() if key in _LISTS else [each])]
    if not values:
        return True
    return values[0]
