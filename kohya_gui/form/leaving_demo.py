"""From the demo to one's own: who chooses a model or pictures leaves the demo, with all that only the demo can use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kohya_gui.form.draft import defaults
from kohya_gui.form.presets import is_kept
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


def is_whole(base: Mapping[str, object], demo: Mapping[str, object]) -> bool:
    """Say whether all of the demo lies under the form, and no recipe or preset that kept its model and folders."""
    return all(base[name] == value for name, value in demo.items())


def without_demo(
    key: str, values: Mapping[str, object], base: Mapping[str, object], demo: Mapping[str, object]
) -> tuple[dict[str, object], dict[str, object]]:
    """Return the form, and what lies under it, without the demo: what was typed stays, all else has its default.

    Where a recipe or a preset lies over the demo it stays, and what it had kept of the demo goes. For one's own
    pictures the name and a first prompt are proposed where neither was typed.
    """
    plain = defaults()
    whole = is_whole(base, demo)
    gone = {name for name in plain if whole or (is_kept(name) and base[name] == demo.get(name))}
    left = {name: plain[name] if name in gone and values[name] == base[name] else values[name] for name in plain}
    under = {name: plain[name] if name in gone else base[name] for name in plain}
    if key != PICTURES:
        return left, under
    proposed = proposals(Path(str(values[PICTURES])))
    return {**left, **{name: value for name, value in proposed.items() if values[name] == base[name]}}, under


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
