"""Messages name settings by their keys, as files and the command line do; the page says them with its labels.

A message is written once, with keys: `set noise_offset too`. A key is known by its underscore, so every message of the
program can be told in either way, and none has to be written with the page in mind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from trainer.settings.walk import Setting

PROGRAM = "python launch.py"
"""How tools are asked for at a terminal."""

_QUOTED = re.compile(r"""("[^"\n]*"|(?<!\w)'[^'\n]*'(?!\w))""")
"""Values and paths stand in quotes; what is in there is not ours to change."""

_KEY = re.compile(r"(?<![\w./\\=-])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![\w/\\=-]|\.\w)")

_WHOM = r"(this|it|both|one of the two|“[^”]*”)"

_PHRASES = (
    (re.compile(rf"\b([Ss])et {_WHOM} (?:to|=) (true|false)\b"), lambda m: _turned(m[1] == "S", m[2], m[3] == "true")),
    (re.compile(r"^true (?=is\b|needs\b)"), lambda m: "this "),
    (re.compile(r"\btrue\b"), lambda m: "on"),
    (re.compile(r"\bfalse\b"), lambda m: "off"),
)


def in_labels(text: str, known: Mapping[str, Setting], about: str = "") -> str:
    """Return a message with labels in place of keys, and with the words that a person has for a switch or a field.

    Args:
        text: a message with keys, as errors, notices and advice hold it.
        about: the key of the setting that the message stands beside, if it does.
    """
    names = _names(known)
    pieces = _QUOTED.split(text)
    for place in range(0, len(pieces), 2):
        pieces[place] = _KEY.sub(lambda match: f"“{names[match[0]]}”" if match[0] in names else match[0], pieces[place])
    # What was quoted is put aside, so that phrases are seen whole.
    quoted = pieces[1::2]
    spoken = "\0".join(pieces[0::2])
    for pattern, words in _PHRASES:
        spoken = pattern.sub(words, spoken)
    spoken = _left_out(spoken, known, names, about)
    rest = iter(quoted)
    return re.sub("\0", lambda match: next(rest, match[0]), spoken)


def _turned(begins: bool, what: str, on: bool) -> str:
    turn, way = "Turn" if begins else "turn", "on" if on else "off"
    return f"{turn} {way} {what}" if what.startswith("“") else f"{turn} {what} {way}"


def _left_out(text: str, known: Mapping[str, Setting], names: Mapping[str, str], about: str) -> str:
    """A file leaves a setting out; in the page its field is emptied, or its switch turned off."""
    switches = {f"“{names[key]}”" for key, setting in known.items() if setting.kind == "switch"}

    def said(match: re.Match[str]) -> str:
        what, leave = match[2], match[1]
        if what in switches or (not what.startswith("“") and about in known and known[about].kind == "switch"):
            return _turned(leave == "L", what, on=False)
        return f"{leave}eave {what} empty"

    return re.sub(r"\b([Ll])eave (this|“[^”]*”) out\b", said, text)


def _names(known: Mapping[str, Setting]) -> dict[str, str]:
    """Return {key: what it is called in the page}: the label, with the unit where another setting has the same one."""
    times = Counter(setting.show.label for setting in known.values())
    return {
        key: f"{setting.show.label} ({setting.show.unit})" if times[setting.show.label] > 1 else setting.show.label
        for key, setting in known.items()
    }
