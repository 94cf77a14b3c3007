"""Advice on the model, the loss and the noise, and on samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from trainer.advice.rule import Advice, Rule, Situation
from trainer.config import TrainingConfig
from trainer.families import FAMILIES
from trainer.optimizers import kind_of

ANIME = (
    "anime", "anything", "counterfeit", "abyssorange", "meina", "novelai", "waifu", "pastelmix", "illustrious",
    "noobai", "animagine", "pony",
)  # fmt: skip
ANIME_WORDS = ("nai", "aom")
"""Parts of the names of anime models; the short ones count only as words of their own."""


class ClipSkip(Rule):
    name = "clip-skip"
    key = "clip_skip"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if known.model_family in FAMILIES and self.key in FAMILIES[known.model_family].remarks:
            return
        if config.model.clip_skip == 1 and is_anime(config.model.pretrained_model_name_or_path):
            yield self.advice(
                "the base model's name is one of an anime model; these use clip skip 2.",
                "They were trained on the last layer but one of the text encoder, and are used with it.",
                {"clip_skip": 2},
            )


def is_anime(model: str) -> bool:
    """Say whether a model's file name is like those of anime models that descend from NovelAI's."""
    name = PurePath(model.replace("\\", "/")).name.lower()
    words = re.split(r"[^a-z]+", name)
    return any(hint in name.replace("-", "").replace("_", "") for hint in ANIME) or any(
        word in ANIME_WORDS for word in words
    )


class TwoWeightings(Rule):
    name = "two-loss-weightings"
    key = "debiased_estimation_loss"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if config.loss.min_snr_gamma is not None and config.loss.debiased_estimation_loss:
            yield self.advice(
                "min_snr_gamma is set too.",
                "Both let steps with little noise count for less, so together they do it twice; use one of them.",
                {"debiased_estimation_loss": False},
            )


class NoiseOffset(Rule):
    name = "noise-offset"
    key = "noise_offset"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        offset = config.noise.noise_offset
        if offset is None:
            return
        if offset > 0.2:
            reason = "More washes colours out."
            yield self.advice(f"{offset:g}; 0.05 to 0.15 is usual.", reason, {"noise_offset": 0.1})
        if config.noise.multires_noise_iterations is not None:
            yield self.advice(
                "multires_noise_iterations is set too.",
                "Both widen the range of brightness; use one of them.",
                {"noise_offset": None},
            )


class DoubleClipping(Rule):
    name = "double-clipping"
    key = "max_grad_norm"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        kind = kind_of(config.optimizer.optimizer_type)
        if kind.clips and config.optimizer.max_grad_norm > 0:
            reason = f"{kind.name} clips its own updates; clipping the gradients too slows it down."
            yield self.advice(f"{kind.name} is used with gradient clipping.", reason, {"max_grad_norm": 0.0})


class Samples(Rule):
    name = "samples"
    key = "sample_prompts"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        sampling = config.sampling
        wanted = sampling.sample_every_n_epochs or sampling.sample_every_n_steps or sampling.sample_at_first
        if wanted and not sampling.sample_prompts.strip():
            reason = "Write one prompt a line, with the trigger word in it."
            yield self.advice("samples are asked for, but there are no prompts.", reason)
        elif sampling.sample_prompts.strip() and not wanted and not known.prompts_left_out:
            yield self.advice(
                "there are prompts, but it is not said when to draw them.",
                "Samples on the way show when to stop.",
                {"sample_every_n_epochs": 1},
                key="sample_every_n_epochs",
            )


class ZeroTerminal(Rule):
    name = "zero-terminal-snr"
    key = "zero_terminal_snr"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        velocity = config.model.v_parameterization or "v-prediction" in known.model_variant
        if config.noise.zero_terminal_snr and not velocity:
            yield self.advice(
                "the model predicts noise.",
                "Where the input is all noise, predicting noise teaches nothing; this is for v-prediction models.",
                {"zero_terminal_snr": False},
            )
