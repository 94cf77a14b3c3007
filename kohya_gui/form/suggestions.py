"""Beside the model field: what was recognised, and what suits it, each as a click and never by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kohya_gui.form import fields
from kohya_gui.form.presets import Preset
from kohya_gui.form.survey import MODEL, PICTURES, Survey
from trainer.advice import TRIAL_SIDE
from trainer.config import known_settings, to_flat
from trainer.planning.inspection import files_in_words, suits
from trainer.planning.plan import is_guess, model_in_words

MOST_PRESETS = 3

LEFT_BEHIND = ("reg_data_dir", "sample_prompts")
"""What the demo brings that no other pictures can use."""

LEFT = "This is still the demo's, and your pictures are others."
TOY_MODEL = "The demo's toy model: choose the one that you make pictures with, since a LoRA works with its kind only."

NOT_SAID = ("clip_skip", 1)
"""A model's name may say that it wants another clip skip; no name says that it wants none, so a 2 stays."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One button beside the field `key`: the values that it sets, or the preset that it shows."""

    name: str
    label: str
    values: Mapping[str, object] = field(default_factory=dict)
    preset: str = ""
    key: str = MODEL


def notes(survey: Survey | None) -> dict[str, str]:
    """Return {key: sentence} of what the recognised model makes of the settings."""
    if survey is None or survey.recognition is None:
        return {}
    seen = survey.recognition
    if is_guess(seen):
        return {MODEL: f"{model_in_words(seen)}."}
    suit = suits(seen)
    made = f", made for {survey.side} × {survey.side} pixels" if survey.side else ""
    chosen = files_in_words(survey.config, seen)
    return {**suit.remarks, **chosen, MODEL: " ".join([f"{model_in_words(seen)}{made}.", *suit.questions])}


def offers(survey: Survey | None, presets: Mapping[str, Preset], base: str) -> list[Offer]:
    """Return what would suit the recognised model better than the settings; `base` is the preset in use."""
    if survey is None or survey.recognition is None or is_guess(survey.recognition):
        return []
    seen, known, values = survey.recognition, known_settings(), to_flat(survey.config)
    suit = suits(seen)
    found = [
        Offer(key, fields.assignment(known[key], value), {key: value})
        for key, value in suit.settings.items()
        if values[key] != value and key not in suit.remarks and (key, value) != NOT_SAID
    ]
    if base in suit.presets or 0 < survey.side < TRIAL_SIDE:
        return found
    shown = [name for name in suit.presets if name in presets][:MOST_PRESETS]
    return found + [Offer(f"preset-{name}", f"Preset: {presets[name].title}", preset=name) for name in shown]


def of_the_demo(values: Mapping[str, object], demo: Mapping[str, object]) -> tuple[str, ...]:
    """Return the settings that still are the demo's in a form with other pictures: a trap for who began with it."""
    if values[PICTURES] == demo.get(PICTURES):
        return ()
    return tuple(key for key in (MODEL, *LEFT_BEHIND) if values[key] and values[key] == demo.get(key))


def demo_notes(keys: Iterable[str]) -> dict[str, str]:
    """Return {key: sentence} for what still is the demo's."""
    return {key: TOY_MODEL if key == MODEL else LEFT for key in keys}


def demo_offers(keys: Iterable[str]) -> list[Offer]:
    """Return the buttons that clear what still is the demo's and can be empty."""
    settings = [known_settings()[key] for key in keys if key in LEFT_BEHIND]
    return [
        Offer(f"clear-{setting.key}", f"Clear {setting.show.label}", {setting.key: setting.default}, key=setting.key)
        for setting in settings
    ]
