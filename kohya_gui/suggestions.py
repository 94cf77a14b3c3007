"""Beside the model field: what was recognised, and what suits it, each as a click and never by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kohya_gui import form
from kohya_gui.presets import Preset
from kohya_gui.survey import MODEL, Survey
from trainer.advice import TRIAL_SIDE
from trainer.config import known_settings, to_flat
from trainer.inspection import suits
from trainer.outline import is_guess, model_in_words

MOST_PRESETS = 3

NOT_SAID = ("clip_skip", 1)
"""A model's name may say that it wants another clip skip; no name says that it wants none, so a 2 stays."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One button beside a field: the values that it sets, or the preset that it shows."""

    name: str
    label: str
    values: Mapping[str, object] = field(default_factory=dict)
    preset: str = ""


def notes(survey: Survey | None) -> dict[str, str]:
    """Return {key: sentence} of what the recognised model makes of the settings."""
    if survey is None or survey.recognition is None:
        return {}
    seen = survey.recognition
    if is_guess(seen):
        return {MODEL: f"{model_in_words(seen)}."}
    suit = suits(seen)
    made = f", made for {seen.side} × {seen.side} pixels" if seen.side else ""
    return {**suit.remarks, MODEL: " ".join([f"{model_in_words(seen)}{made}.", *suit.questions])}


def offers(survey: Survey | None, presets: Mapping[str, Preset], base: str) -> list[Offer]:
    """Return what would suit the recognised model better than the settings; `base` is the preset in use."""
    if survey is None or survey.recognition is None or is_guess(survey.recognition):
        return []
    suit, known, values = suits(survey.recognition), known_settings(), to_flat(survey.config)
    found = [
        Offer(key, form.assignment(known[key], value), {key: value})
        for key, value in suit.settings.items()
        if values[key] != value and key not in suit.remarks and (key, value) != NOT_SAID
    ]
    if base in suit.presets or 0 < survey.recognition.side < TRIAL_SIDE:
        return found
    shown = [name for name in suit.presets if name in presets][:MOST_PRESETS]
    return found + [Offer(f"preset-{name}", f"Preset: {presets[name].title}", preset=name) for name in shown]
