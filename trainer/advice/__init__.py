"""Advice on settings: what is unusual, why it matters, what to set instead. It never stops anyone; errors do.

Each rule is one small class, and a line in `RULES`. The figures are the recipe that trainers of LoRAs for Stable
Diffusion go by: 2,000 to 3,000 steps, AdamW at 1e-4 to 5e-5, rank 16 to 128 with alpha 8 to 128 and not above the rank.
An optimizer's usual rates are declared in its class.
"""

from __future__ import annotations

from dataclasses import replace

from trainer.advice import leftovers
from trainer.advice.flow import Distilled, GuidanceInTraining, MaskedPadding, Prediction, TextEncodedAhead
from trainer.advice.learning_rates import (
    FirstSteps,
    LearningRate,
    OptimizerArguments,
    RateWithoutEffect,
    ScheduleWithoutEffect,
    Strength,
    TextEncoderRate,
    Untrained,
    Warmup,
    strength,
)
from trainer.advice.length import (
    AIM_STEPS,
    FEWEST_STEPS,
    MOST_STEPS,
    Regularisation,
    RepeatsAlone,
    TotalSteps,
    best_epochs,
    formula_steps,
)
from trainer.advice.model import (
    ClipSkip,
    DoubleClipping,
    NoiseOffset,
    Samples,
    TwoWeightings,
    ZeroTerminal,
    is_anime,
)
from trainer.advice.network import Alpha, Rank
from trainer.advice.pictures import BucketStep, CaptionDropout, Enlarging, KeepTokens, Resolution
from trainer.advice.rule import TRIAL_SIDE, Advice, Rule, Situation
from trainer.config import TrainingConfig, datasets_of, known_settings
from trainer.config.datasets import KEY

__all__ = [
    "AIM_STEPS",
    "FEWEST_STEPS",
    "MOST_STEPS",
    "RULES",
    "TRIAL_SIDE",
    "Advice",
    "Rule",
    "Situation",
    "advise",
    "best_epochs",
    "formula_steps",
    "is_anime",
    "strength",
]

RULES: tuple[Rule, ...] = (
    *leftovers.RULES,
    TotalSteps(),
    RepeatsAlone(),
    Regularisation(),
    LearningRate(),
    OptimizerArguments(),
    RateWithoutEffect(),
    Untrained(),
    Warmup(),
    FirstSteps(),
    ScheduleWithoutEffect(),
    TextEncoderRate(),
    Rank(),
    Alpha(),
    Strength(),
    Resolution(),
    Enlarging(),
    BucketStep(),
    KeepTokens(),
    ClipSkip(),
    CaptionDropout(),
    TwoWeightings(),
    NoiseOffset(),
    DoubleClipping(),
    Samples(),
    ZeroTerminal(),
    Prediction(),
    Distilled(),
    MaskedPadding(),
    GuidanceInTraining(),
    TextEncodedAhead(),
)


def advise(config: TrainingConfig, known: Situation) -> tuple[Advice, ...]:
    """Return all advice on a configuration and its pictures: first what is serious, then in the order of the rules."""
    found = [advice for rule in RULES for advice in _of_rule(rule, config, known)]
    return tuple(sorted(found, key=lambda advice: not advice.serious))


def _of_rule(rule: Rule, config: TrainingConfig, known: Situation) -> list[Advice]:
    """Return what a rule says; where its setting may differ by dataset, it is each of them that it is about."""
    if not config.dataset.datasets or not known_settings()[rule.key].within:
        return list(rule.look(config, known))
    found: dict[Advice, str] = {}
    for dataset in datasets_of(config):
        of_subsets = [(each.config, each.place) for each in dataset.subsets]
        for own, place in [(dataset.config, dataset.place), *of_subsets]:
            for advice in rule.look(own, known):
                found.setdefault(replace(advice, remedy=None), place)
    return [
        replace(advice, key=KEY, message=f"{place}: {advice.key} {advice.message}") for advice, place in found.items()
    ]
