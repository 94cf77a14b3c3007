"""Advice on settings: what is unusual, why it matters, what to set instead. It never stops anyone; errors do.

Each rule is one small class. The figures are the recipe that trainers of LoRAs for Stable Diffusion go by: 2,000 to
3,000 steps, AdamW at 1e-4 to 5e-5, rank 16 to 128 with alpha 8 to 128 and not above the rank.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar

from trainer.config import TrainingConfig, rates, resolution_size
from trainer.config.rules import rate_of_one
from trainer.families import FAMILIES
from trainer.optimizers import OPTIMIZERS

FEWEST_STEPS, AIM_STEPS, MOST_STEPS = 2000, 2500, 3000
TRIAL_RANK, TRIAL_STEPS, TRIAL_SIDE = 8, 500, 256
LOWEST_RANK, HIGHEST_RANK = 16, 128
LOWEST_ALPHA, HIGHEST_ALPHA = 8, 128
SDXL_SIDE = 1024
SMALLEST_SIDE = 512
"""Models know little of pictures smaller than this, or than three quarters of the side they were made at."""
TEXT_ENCODER_RATE = 5e-5

RATES: Mapping[str, tuple[float, float, float]] = {
    "AdamW": (5e-5, 1e-4, 1e-4),
    "AdamW8bit": (5e-5, 1e-4, 1e-4),
    "Lion": (5e-6, 3e-5, 1e-5),
    "DAdaptAdam": (1.0, 1.0, 1.0),
    "Prodigy": (1.0, 1.0, 1.0),
}
"""{optimizer_type: (lowest, highest, advised) learning rate}."""

ANIME = (
    "anime", "anything", "counterfeit", "abyssorange", "meina", "novelai", "waifu", "pastelmix", "illustrious",
    "noobai", "animagine", "pony",
)  # fmt: skip
ANIME_WORDS = ("nai", "aom")
"""Parts of the names of anime models; the short ones count only as words of their own."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known of the pictures. `samples` are pictures times repeats, as the folders' names say.

    `most_repeats` is the highest number of repeats among the training folders. `exact_steps` is the plan's number of
    steps for the whole run, None before there is a plan. `model_side` is the side of the square pictures that the base
    model was made for, 0 where the model is not known; `model_family` is its family, "" where that is not known.
    """

    images: int = 0
    samples: int = 0
    reg_images: int = 0
    reg_samples: int = 0
    most_repeats: int = 1
    exact_steps: int | None = None
    model_side: int = 0
    model_family: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """One remark: which rule makes it, on which setting, and what to set instead where that is certain."""

    rule: str
    key: str
    message: str
    reason: str
    remedy: Mapping[str, object] | None = None

    def __str__(self) -> str:
        return f"{self.key}: {self.message} {self.reason}"


def formula_steps(counts: Counts, config: TrainingConfig) -> float:
    """Return (images x repeats + regularisation images x repeats) x epochs / batch size.

    Where the length is set in steps, these are the answer.
    """
    training = config.training
    if training.max_train_epochs is None:
        return float(training.max_train_steps or 0)
    return (counts.samples + counts.reg_samples) * training.max_train_epochs / training.train_batch_size


def strength(config: TrainingConfig) -> float:
    """Return alpha / rank, by which the LoRA's output, and with it the learning rate, is multiplied."""
    return config.network.network_alpha / config.network.network_dim


def is_trial(config: TrainingConfig) -> bool:
    """Say whether a run is too small to be meant for use: the demo, a test, a first look."""
    steps = config.training.max_train_steps
    return config.network.network_dim <= TRIAL_RANK or (steps is not None and steps <= TRIAL_STEPS) or is_tiny(config)


def is_tiny(config: TrainingConfig) -> bool:
    """Say whether the resolution is below what any published model is made for, as the demo's is."""
    return max(resolution_size(config)) < TRIAL_SIDE


def advise(config: TrainingConfig, counts: Counts) -> tuple[Advice, ...]:
    """Return all advice on a configuration and its pictures, in the order of the rules."""
    return tuple(advice for rule in RULES for advice in rule.look(config, counts))


class Rule(ABC):
    """One piece of experience. `name` identifies it, `key` is the setting that it is about."""

    name: ClassVar[str]
    key: ClassVar[str]

    @abstractmethod
    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        """Yield advice, or nothing where all is well."""

    def advice(self, message: str, reason: str, remedy: Mapping[str, object] | None = None, key: str = "") -> Advice:
        return Advice(self.name, key or self.key, message, reason, remedy)


class TotalSteps(Rule):
    name = "total-steps"
    key = "max_train_epochs"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        epochs = config.training.max_train_epochs
        steps = counts.exact_steps if counts.exact_steps is not None else formula_steps(counts, config)
        if is_trial(config) or not steps or FEWEST_STEPS <= steps <= MOST_STEPS:
            return
        message = f"{steps:,.0f} steps in all; {FEWEST_STEPS:,} to {MOST_STEPS:,} is the aim."
        if steps < FEWEST_STEPS:
            reason = "With few steps the concept is only half learned."
        else:
            reason = "With many steps the pictures are learned by heart; the best LoRA may be one saved earlier."
        if epochs is None:
            yield self.advice(message, reason, {"max_train_steps": AIM_STEPS}, key="max_train_steps")
            return
        wanted = best_epochs(steps / epochs)
        if wanted != epochs:
            landing = f" {wanted} epochs make {steps / epochs * wanted:,.0f}."
            yield self.advice(message, reason + landing, {"max_train_epochs": wanted})
        elif steps > MOST_STEPS:
            yield self.advice(message, f"{reason} A single epoch has as many: lower the repeats in the folders' names.")


def best_epochs(steps_per_epoch: float) -> int:
    """Return the number of epochs, at least 1, that comes nearest to the aim, and within it nearest to its middle."""

    def distance(epochs: int) -> tuple[float, float]:
        steps = epochs * steps_per_epoch
        return max(FEWEST_STEPS - steps, steps - MOST_STEPS, 0.0), abs(steps - AIM_STEPS)

    middle = int(AIM_STEPS / steps_per_epoch)
    return min((max(1, middle), middle + 1), key=distance)


class RepeatsAlone(Rule):
    name = "repeats-without-regularisation"
    key = "train_data_dir"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        if not counts.images or counts.reg_images or counts.most_repeats <= 1:
            return
        yield self.advice(
            f"{counts.most_repeats} repeats without regularisation pictures; 1 is enough: name the folder 1_...",
            "Repeats are there to balance regularisation pictures; alone they only make an epoch longer, and saves "
            "and samples rarer. Raise the epochs instead.",
        )


class Regularisation(Rule):
    name = "no-regularisation"
    key = "reg_data_dir"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        if counts.images and not counts.reg_images and not is_trial(config):
            yield self.advice(
                "there are no regularisation pictures.",
                "Pictures of the class in general help against overfitting: without them every one of its kind may "
                "come to look like yours.",
            )


class LearningRate(Rule):
    name = "learning-rate"
    key = "learning_rate"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        optimizer = config.optimizer
        name, key = optimizer.optimizer_type, "learning_rate" if optimizer.unet_lr is None else "unet_lr"
        rate = rates(config).get("unet")
        one_rate = OPTIMIZERS[name].one_rate
        if rate is None or name not in RATES or (is_tiny(config) and not one_rate):
            return
        lowest, highest, advised = RATES[name]
        if one_rate and rate != advised:
            reason = f"{name} finds the rate itself; this number only multiplies it."
            message = f"{rate:g} with {name}; it should be exactly {advised:g}."
            yield self.advice(message, reason, rate_of_one(config), key)
        elif not one_rate and not lowest <= rate <= highest * max(1.0, 0.5 / strength(config)):
            message = f"{rate:g} with {name}; {lowest:g} to {highest:g} is usual."
            reason = "Higher rates burn pictures or turn them to noise, lower ones learn next to nothing."
            yield self.advice(message, reason, {key: advised}, key)


class Warmup(Rule):
    name = "warm-up"
    key = "lr_warmup_steps"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        warmup = config.optimizer.lr_warmup_steps
        steps = counts.exact_steps if counts.exact_steps is not None else formula_steps(counts, config)
        share = warmup if warmup < 1 else warmup / steps if steps else 0.0
        if share > 0.5 and config.optimizer.lr_scheduler != "constant":
            yield self.advice(
                f"the warm-up takes {min(share, 1.0):.0%} of all steps; 5 to 10 % is usual.",
                "The rate is hardly ever as high as you set it.",
                {"lr_warmup_steps": 0.05},
            )


class TextEncoderRate(Rule):
    name = "text-encoder-rate"
    key = "text_encoder_lr"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        found = rates(config)
        if len(found) < 2 or OPTIMIZERS[config.optimizer.optimizer_type].one_rate or is_tiny(config):
            return
        if found.get("text_encoder", 0.0) > max(TEXT_ENCODER_RATE, found["unet"] / 2):
            yield self.advice(
                f"{found['text_encoder']:g} is high beside the UNet's {found['unet']:g}.",
                "The text encoder overfits first, and then words lose their meaning; half of the UNet's rate or less "
                "is usual.",
                {"text_encoder_lr": min(TEXT_ENCODER_RATE, found["unet"] / 2)},
            )


class Rank(Rule):
    name = "rank"
    key = "network_dim"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        rank = config.network.network_dim
        if rank <= TRIAL_RANK or LOWEST_RANK <= rank <= HIGHEST_RANK or config.network.dim_from_weights:
            return
        if rank < LOWEST_RANK:
            reason = "Lower ranks hold little; up to 8 is for trials."
        else:
            reason = "Higher ranks also learn what they should not, and make a larger file."
        message = f"rank {rank}; {LOWEST_RANK} to {HIGHEST_RANK} is usual, and 32 is often enough."
        yield self.advice(message, reason, {"network_dim": 32, "network_alpha": 16.0})


class Alpha(Rule):
    name = "alpha"
    key = "network_alpha"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        rank, alpha = config.network.network_dim, config.network.network_alpha
        if config.network.dim_from_weights:
            return
        if alpha > rank:
            message = f"alpha {alpha:g} is above the rank {rank}."
            reason = f"It multiplies the LoRA's output, and so the learning rate, by {alpha / rank:.3g}."
            yield self.advice(message, reason, {"network_alpha": rank / 2})
        elif rank > TRIAL_RANK and not LOWEST_ALPHA <= alpha <= HIGHEST_ALPHA:
            message = f"alpha {alpha:g}; {LOWEST_ALPHA} to {HIGHEST_ALPHA} is usual."
            reason = f"With rank {rank} it multiplies the learning rate by {alpha / rank:.3g}."
            yield self.advice(message, reason, {"network_alpha": float(min(rank, HIGHEST_ALPHA)) / 2})


class Strength(Rule):
    name = "strength"
    key = "network_alpha"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        factor, rate = strength(config), rates(config).get("unet")
        if factor == 1 or rate is None or config.network.dim_from_weights:
            return
        acts = f"so a learning rate of {rate:g} acts like {rate * factor:.3g} at a strength of 1."
        if OPTIMIZERS[config.optimizer.optimizer_type].one_rate:
            acts = f"and {config.optimizer.optimizer_type} finds a rate to match."
        yield self.advice(
            f"the strength is alpha / rank = {config.network.network_alpha:g} / {config.network.network_dim} = "
            f"{factor:.3g}, {acts}",
            "When you change the rank, change alpha with it to keep the strength.",
        )


def usual_sides(model_side: int) -> tuple[int, int]:
    """Return the least and the greatest side of squares whose area suits a model made at `model_side` (0 = unknown)."""
    if not model_side:
        return SMALLEST_SIDE, SDXL_SIDE * 3 // 2
    return max(SMALLEST_SIDE, model_side * 3 // 4), model_side * 3 // 2


class Resolution(Rule):
    name = "resolution"
    key = "resolution"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        width, height = resolution_size(config)
        smallest, largest = usual_sides(counts.model_side)
        if is_tiny(config) or 0 < counts.model_side < SMALLEST_SIDE or smallest**2 <= width * height <= largest**2:
            return
        small = width * height < smallest**2
        made_at = counts.model_side or (SMALLEST_SIDE if small else SDXL_SIDE)
        yield self.advice(
            f"{width},{height}; {made_at},{made_at} is usual for this kind of model.",
            f"It was made at {made_at} and knows little of so "
            + ("small pictures." if small else "large ones; memory and time rise with the area."),
            {"resolution": f"{made_at},{made_at}"},
        )


class Enlarging(Rule):
    name = "enlarging"
    key = "bucket_no_upscale"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        if config.dataset.enable_bucket and not config.dataset.bucket_no_upscale:
            yield self.advice(
                "pictures smaller than the resolution will be enlarged.",
                "The LoRA learns their blur; leave them at their own size.",
                {"bucket_no_upscale": True},
            )


class BucketStep(Rule):
    name = "bucket-step"
    key = "bucket_reso_steps"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        step = config.dataset.bucket_reso_steps
        if config.dataset.enable_bucket and step % 64 and not is_tiny(config):
            yield self.advice(
                f"{step} is not a multiple of 64.",
                "Stable Diffusion halves latents three times; other sizes do not divide evenly and train worse.",
                {"bucket_reso_steps": 64},
            )


class KeepTokens(Rule):
    name = "keep-tokens"
    key = "keep_tokens"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        captions = config.captions
        changed = captions.shuffle_caption or captions.caption_tag_dropout_rate > 0
        if changed and not captions.keep_tokens and not captions.keep_tokens_separator:
            yield self.advice(
                "captions are shuffled, and no tag is kept in front.",
                "The trigger word moves about or is dropped; put it first in every caption and keep it there.",
                {"keep_tokens": 1},
            )


class ClipSkip(Rule):
    name = "clip-skip"
    key = "clip_skip"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        if counts.model_family in FAMILIES and self.key in FAMILIES[counts.model_family].remarks:
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


class CaptionDropout(Rule):
    name = "caption-dropout"
    key = "caption_dropout_rate"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        rate = config.captions.caption_dropout_rate
        if rate > 0.3:
            yield self.advice(
                f"{rate:g} of all pictures train without a caption; 0.05 to 0.1 is usual.",
                "The trigger word loses its power, and what is learned shows without it.",
                {"caption_dropout_rate": 0.1},
            )


class TwoWeightings(Rule):
    name = "two-loss-weightings"
    key = "debiased_estimation_loss"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        if config.loss.min_snr_gamma is not None and config.loss.debiased_estimation_loss:
            yield self.advice(
                "min_snr_gamma is set too.",
                "Both weight the loss by the noise level, in opposite directions; use one of them.",
                {"debiased_estimation_loss": False},
            )


class NoiseOffset(Rule):
    name = "noise-offset"
    key = "noise_offset"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
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


class AdafactorClipping(Rule):
    name = "adafactor-clipping"
    key = "max_grad_norm"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        if config.optimizer.optimizer_type == "Adafactor" and config.optimizer.max_grad_norm > 0:
            reason = "Adafactor clips its own updates; clipping the gradients too slows it down."
            yield self.advice("Adafactor is used with gradient clipping.", reason, {"max_grad_norm": 0.0})


class Samples(Rule):
    name = "samples"
    key = "sample_prompts"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        sampling = config.sampling
        wanted = sampling.sample_every_n_epochs or sampling.sample_every_n_steps or sampling.sample_at_first
        if wanted and not sampling.sample_prompts.strip():
            reason = "Write one prompt a line, with the trigger word in it."
            yield self.advice("samples are asked for, but there are no prompts.", reason)
        elif sampling.sample_prompts.strip() and not wanted:
            yield self.advice(
                "there are prompts, but it is not said when to draw them.",
                "Samples on the way show when to stop.",
                {"sample_every_n_epochs": 1},
                key="sample_every_n_epochs",
            )


class ZeroTerminal(Rule):
    name = "zero-terminal-snr"
    key = "zero_terminal_snr"

    def look(self, config: TrainingConfig, counts: Counts) -> Iterator[Advice]:
        if config.noise.zero_terminal_snr and not config.model.v_parameterization:
            yield self.advice(
                "the model predicts noise.",
                "Where the input is all noise, predicting noise teaches nothing; this is for v-prediction models.",
                {"zero_terminal_snr": False},
            )


RULES: tuple[Rule, ...] = (
    TotalSteps(),
    RepeatsAlone(),
    Regularisation(),
    LearningRate(),
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
