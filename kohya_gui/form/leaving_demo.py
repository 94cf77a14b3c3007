"""From the demo to one's own: who chooses a model or pictures leaves the demo, with all that only the demo can use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kohya_gui.form.draft import defaults
from kohya_gui.form.survey import MODEL, PICTURES
from trainer.config.values import parse_file_name

OWN = {MODEL: "Your own model", PICTURES: "Your own pictures"}
"""The two settings by which somebody leaves the demo, and what is said then."""

_NUMBERED = re.compile(r"\d+_(.+)")


def is_own(key: str, values: Mapping[str, object], base: Mapping[str, object], demo: Mapping[str, object]) -> bool:
    """Say whether the demo lies under the form and the setting `key` names something of one's own that is there."""
    text = str(values.get(key) or "")
    if key not in OWN or not demo or not text or base.get(key) != demo.get(key) or text == demo.get(key):
        return False
    try:
        return Path(text).is_dir() or (key == MODEL and Path(text).is_file())
    except (OSError, ValueError):
        return False


def without_demo(key: str, values: Mapping[str, object], base: Mapping[str, object]) -> dict[str, object]:
    """Return the form without the demo: what was typed stays, all else has its default.

    For one's own pictures the name and a first prompt are proposed where neither was typed.
    """
    left = {name: values[name] if values[name] != base[name] else default for name, default in defaults().items()}
    if key != PICTURES:
        return left
    proposed = proposals(Path(str(values[PICTURES])))
    return {**left, **{name: value for name, value in proposed.items() if values[name] == base[name]}}


def proposals(folder: Path) -> dict[str, object]:
    """Return the output name and the first prompt for a folder of pictures: what its folders are named after."""
    words = trigger(folder)
    if not words:
        return {}
    try:
        name = {"output_name": parse_file_name(re.sub(r"\s+", "_", words))}
    except ValueError:
        name = {}
    return {**name, "sample_prompts": words, "sample_every_n_epochs": 1}


def trigger(folder: Path) -> str:
    """Return the words that stand for what is learned, as in `10_sks dog`; else the folder's own name."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except OSError:
        return ""
    found = [match[1] for name in (*names, folder.name) if (match := _NUMBERED.fullmatch(name))]
    return (found[0] if found else folder.name).replace("\n", " ").strip()
