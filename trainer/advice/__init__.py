"""Advice on settings: what is unusual, why it matters, what to set instead. It never stops anyone; errors do.

Each rule is one small class, and a line in `RULES`. The figures are the recipe that trainers of LoRAs for Stable
Diffusion go by: 2,000 to 3,000 steps, AdamW at 1e-4 to 5e-5, rank 16 to 128 with alpha 8 to 128 and not above the rank.
An optimizer's usual rates are declared in its class.
"""

from __future__ import annotations

from trainer.advice import leftovers
from trainer.advice.learning_rates import (
    LearningRate,
    RateWithoutEffect,
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
    AdafactorClipping,
    ClipSkip,
    NoiseOffset,
    Samples,
    TwoWeightings,
    ZeroTerminal,
    is_anime,
)
from trainer.advice.network import Alpha, Rank
from trainer.advice.pictures import BucketStep, CaptionDropout, Enlarging, KeepTokens, Resolution
from trainer.advice.rule import TRIAL_SIDE, Advice, Rule, Situation
from trainer.config import TrainingConfig

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
    RateWithoutEffect(),
    Untrained(),
    Warmup(),
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
    AdafactorClipping(),
    Samples(),
    ZeroTerminal(),
)


def advise(config: TrainingConfig, known: Situation) -> tuple[Advice, ...]:
    """Return all advice on a configuration and its pictures: first what is serious, then in the order of the rules."""
    found = [advice for rule in RULES for advice in rule.look(config, known)]
    return tuple(sorted(found, key=lambda advice: not advice.serious))
