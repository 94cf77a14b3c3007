"""The forms that values may be written in, and the ones they are kept in: pure functions on plain values.

Each `parse_...` returns the kept form and raises ValueError with the rule in words that follow "it cannot be used:".
"""

from __future__ import annotations

import re

from trainer.adapters.rates import SHAPES
from trainer.process import DDPM, FLOW
from trainer.settings.section import PROCESS

DDPM_ONLY, FLOW_ONLY = {PROCESS: (DDPM.name,)}, {PROCESS: (FLOW.name,)}
"""In `Show.when`: settings that models of the one kind have and those of the other don't."""

SMALLEST_SIDE = 64
LARGEST_SIDE = 4096
HIGHEST_RATE = 100
_HIGHEST_RANK = 4096
_HIGHEST_WEIGHT = 1000

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_FORBIDDEN = set('<>:"/\\|?*')
_LONGEST_NAME = 180


def parse_resolution(value: object) -> str:
    """Return "width,height" in pixels from 512, "512", "512,768", "512x768" or [512, 768]."""
    parts = re.split(r"[,x]", value) if isinstance(value, str) else value
    sides = _sides(parts)
    if len(sides) not in (1, 2) or not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in sides):
        raise ValueError("")
    return f"{sides[0]},{sides[-1]}"


def size_of(resolution: str) -> tuple[int, int]:
    """Return (width, height) in pixels of a resolution in its kept form."""
    width, height = resolution.split(",")
    return int(width), int(height)


def _sides(value: object) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if not isinstance(value, list | tuple):
        return ()
    texts = [str(part).strip() for part in value]
    return tuple(int(text) if re.fullmatch("[0-9]{1,5}", text) else 0 for text in texts)


def parse_steps_or_share(value: object) -> object:
    """Return a whole number of steps (0 for none) or a share of all steps between 0 and 1; "10%" is a share too."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,2}(\.[0-9]{1,6})?\s*%\s*", value):
        value = float(value.strip().rstrip("%")) / 100
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10**9:
        raise ValueError("")
    if value >= 1 and value != int(value):
        raise ValueError("")
    return value if 0 < value < 1 else int(value)


def parse_rate(value: object) -> object:
    """Return a learning rate, or a tuple of one for each text encoder."""
    rates = value if isinstance(value, tuple) else (value,)
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= HIGHEST_RATE:
            raise ValueError("")
    if not rates:
        raise ValueError("")
    numbers = tuple(float(rate) for rate in rates)
    return numbers if isinstance(value, tuple) else numbers[0]


def parse_numbers(value: object) -> object:
    """Return a tuple of numbers from one text "0,4,8", or from a list of numbers or of texts."""
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or any(isinstance(each, bool) for each in texts):
        raise ValueError("")
    parts = [part.strip() for each in texts for part in str(each).split(",") if part.strip()]
    if not all(re.fullmatch(r"[0-9]{1,6}(\.[0-9]{0,6})?", part) for part in parts):
        raise ValueError("")
    return tuple(float(part) if "." in part else int(part) for part in parts)


def parse_alphas(value: object) -> object:
    """Return a tuple of numbers with a fraction."""
    numbers = parse_numbers(value)
    assert isinstance(numbers, tuple)
    return tuple(map(float, numbers))


def parse_dims(value: object) -> object:
    """Return a tuple of ranks, whole numbers from 0 on."""
    numbers = parse_numbers(value)
    assert isinstance(numbers, tuple)
    if not all(number == int(number) and number <= _HIGHEST_RANK for number in numbers):
        raise ValueError("")
    return tuple(map(int, numbers))


def parse_in_dims(value: object) -> object:
    """Return five ranks, or none; sd-scripts writes them in brackets."""
    text = value.strip().removeprefix("[").removesuffix("]") if isinstance(value, str) else value
    numbers = parse_dims(text)
    assert isinstance(numbers, tuple)
    if len(numbers) not in (0, 5):
        raise ValueError("")
    return numbers


def parse_indices(value: object) -> object:
    """Return "all", "none", or numbers and ranges of them, such as "0,1,5-8", without spaces."""
    text = "".join(str(value).split()) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if text not in ("all", "none") and not re.fullmatch(r"[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*", text):
        raise ValueError("")
    return text


def parse_patterns(value: object) -> object:
    """Return a tuple of regular expressions."""
    patterns = (value,) if isinstance(value, str) else value
    if not isinstance(patterns, tuple) or not all(isinstance(each, str) and _compiles(each) for each in patterns):
        raise ValueError("")
    return tuple(each for each in patterns if each)


def parse_pattern_dims(value: object) -> object:
    """Return a tuple of "pattern=rank" with a regular expression and a whole number each."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):
        raise ValueError("")
    for pattern, _, dim in (each.rpartition("=") for each in given if each):
        if not pattern or not _compiles(pattern) or not re.fullmatch("[0-9]{1,4}", dim) or int(dim) > _HIGHEST_RANK:
            raise ValueError("")
    return tuple(each for each in given if each)


def parse_pattern_rates(value: object) -> object:
    """Return a tuple of "pattern=rate" with a regular expression and a learning rate each."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, tuple) or not all(isinstance(each, str) for each in given):
        raise ValueError("")
    for pattern, _, rate in (each.rpartition("=") for each in given if each):
        if not pattern or not _compiles(pattern) or not 0 <= _number(rate) <= HIGHEST_RATE:
            raise ValueError("")
    return tuple(each for each in given if each)


def parse_block_weights(value: object) -> object:
    """Return the weights of blocks as one text: "0,0.5,1", or a course over them with what is added, "cosine+.25"."""
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("")
    text = "".join(value.split())
    name, plus, base = text.partition("+")
    if name in SHAPES:
        numbers = [base] if plus else []
    else:
        numbers = [part or "0" for part in text.split(",")] if text else []
    if not all(0 <= _number(each) <= _HIGHEST_WEIGHT for each in numbers):
        raise ValueError("")
    return text


def _number(text: str) -> float:
    """Return the number that a text is, -1 where it is none."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def parse_lines(value: object) -> object:
    """Return one text, a line for each of a list of texts."""
    if isinstance(value, tuple) and all(isinstance(each, str) for each in value):
        return "\n".join(value)
    return value


def parse_extension(value: object) -> object:
    """Return a caption file's ending, which begins with a dot; a missing one is added."""
    if not isinstance(value, str):
        return value
    if set(value) & _FORBIDDEN:
        raise ValueError('it must be an ending without a path, such as ".txt"')
    return value if value.startswith(".") or not value else f".{value}"


def parse_file_name(value: object) -> object:
    """Return a name that is a plain file name on every system, without its ending."""
    if not isinstance(value, str):
        return value
    if any(character in _FORBIDDEN or ord(character) < ord(" ") for character in value):
        raise ValueError('it must be a plain file name, without folders and without < > : " / \\ | ? *')
    if value != value.strip() or value.endswith(".") or not value:
        raise ValueError("a file name must not be empty, nor begin or end with a space, nor end with a dot")
    if _RESERVED.fullmatch(value):
        raise ValueError("Windows keeps this name for itself; choose another")
    if value.lower().endswith(".safetensors"):
        raise ValueError("leave out .safetensors; it is added")
    if len(value.encode("utf-8", errors="replace")) > _LONGEST_NAME:
        raise ValueError(f"a file name must not be longer than {_LONGEST_NAME} bytes")
    return value
