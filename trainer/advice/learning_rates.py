"""Advice on learning rates: each optimizer's own order, and what acts rather than what is written."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.advice.flow import is_flow
from trainer.advice.length import formula_steps
from trainer.advice.parts import denoiser_rate, denoiser_title, text_rates
from trainer.advice.rule import Advice, Rule, Situation
from trainer.config import TrainingConfig, schedule_of
from trainer.config.rules import rate_of_one
from trainer.ground.errors import ConfigError
from trainer.optimizers import kind_of
from trainer.schedules import Schedule, using

TEXT_ENCODER_RATE = 5e-5
FLOW_FACTOR = 4.0
"""Large transformers take rates so many times higher: recipes for FLUX.1 go up to 4e-4 with AdamW."""
TRIAL_FACTOR = 30.0
"""Toy models bear, and in their few steps need, rates so many times higher."""


def strength(config: TrainingConfig) -> float:
    """Return alpha / rank, by which the LoRA's output, and with it the learning rate, is multiplied."""
    return config.network.network_alpha / config.network.network_dim


def acting_rate(config: TrainingConfig, rate: float) -> float | None:
    """Return what the optimizer makes of a learning rate at first; None where the rate has no effect."""
    optimizer = config.optimizer
    return kind_of(optimizer.optimizer_type).acting_rate(rate, optimizer.optimizer_args)


class LearningRate(Rule):
    name = "learning-rate"
    key = "learning_rate"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        optimizer = config.optimizer
        name, key = optimizer.optimizer_type, "learning_rate" if optimizer.unet_lr is None else "unet_lr"
        kind, rate = kind_of(name), denoiser_rate(config, known.model_family)
        acts = None if rate is None else acting_rate(config, rate)
        if rate is None or acts is None or kind.usual_rates is None:
            return
        lowest, highest, advised = kind.usual_rates
        if kind.finds_rate:
            if rate != advised:
                reason = f"{name} finds the rate itself; this number only multiplies it."
                message = f"{rate:g} with {name}; it should be exactly {advised:g}."
                yield self.advice(message, reason, rate_of_one(config), key=key)
            return
        highest *= TRIAL_FACTOR if known.trial else max(1.0, 0.5 / strength(config))
        highest *= FLOW_FACTOR if is_flow(known) else 1.0
        if lowest <= acts <= highest:
            return
        shown = f"{rate:g}" if acts == rate else f"{rate:g}, which acts like {acts:.3g} at first,"
        message = f"{shown} with {name}; {lowest:g} to {highest:.3g} is usual."
        reason = "Higher rates burn pictures or turn them to noise, lower ones learn next to nothing."
        yield self.advice(message, reason, {key: advised * rate / acts}, key=key, serious=acts > 30 * highest)


class OptimizerArguments(Rule):
    name = "optimizer-arguments"
    key = "optimizer_args"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        given = config.optimizer.optimizer_args
        kind = kind_of(config.optimizer.optimizer_type)
        there = {argument.partition("=")[0].strip() for argument in given}
        missing = [argument for argument in kind.usual_arguments if argument.partition("=")[0] not in there]
        if missing:
            yield self.advice(
                f"{kind.name} is used without {', '.join(missing)}.",
                kind.help,
                {"optimizer_args": [*given, *missing]},
            )


class RateWithoutEffect(Rule):
    name = "rate-without-effect"
    key = "learning_rate"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if acting_rate(config, config.optimizer.learning_rate) is None:
            name = config.optimizer.optimizer_type
            yield self.advice(
                f"{config.optimizer.learning_rate:g} has no effect: {name} takes its rate from the step count.",
                "So have the schedule and the rates of single parts. For rates of your own leave relative_step out of "
                "optimizer_args, or set it to False.",
            )


class Untrained(Rule):
    name = "denoiser-untrained"
    key = "learning_rate"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        family, only = known.model_family, config.network.network_train_text_encoder_only
        if text_rates(config, family) and denoiser_rate(config, family) is None and not only:
            title = denoiser_title(config, family)
            yield self.advice(
                f"the {title}'s rate is 0, so only the text encoder is trained.",
                f"A LoRA without the {title} changes what words mean, and hardly what pictures look like.",
                {"learning_rate": 1e-4, "unet_lr": None},
                key="learning_rate" if config.optimizer.unet_lr is None else "unet_lr",
                serious=True,
            )


class Warmup(Rule):
    name = "warm-up"
    key = "lr_warmup_steps"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        warmup = config.optimizer.lr_warmup_steps
        steps = known.exact_steps if known.exact_steps is not None else formula_steps(known, config)
        share = warmup if warmup < 1 else warmup / steps if steps else 0.0
        if share > 0.5 and config.optimizer.lr_scheduler != "constant":
            yield self.advice(
                f"the warm-up takes {min(share, 1.0):.0%} of all steps; 5 to 10 % is usual.",
                "The rate is hardly ever as high as you set it.",
                {"lr_warmup_steps": 0.05},
            )


class FirstSteps(Rule):
    name = "first-steps"
    key = "lr_warmup_steps"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        optimizer = config.optimizer
        kind, schedule = kind_of(optimizer.optimizer_type), schedule_of(config, 1000)
        if kind.needs_warmup and _begins_high(schedule):
            remedy: dict[str, object] = {"lr_warmup_steps": optimizer.lr_warmup_steps or 0.05, "lr_scheduler_type": ""}
            if optimizer.lr_scheduler not in using("lr_warmup_steps"):
                remedy["lr_scheduler"] = "constant_with_warmup"
            yield self.advice(f"{kind.name} is to begin without a warm-up.", kind.needs_warmup, remedy)


def _begins_high(schedule: Schedule) -> bool:
    """Say whether the first step has more than half of the rate; what cannot be gone through is said elsewhere."""
    try:
        return schedule.rates(1.0, [0])[0] > 0.5
    except ConfigError:
        return False


class ScheduleWithoutEffect(Rule):
    name = "schedule-without-effect"
    key = "lr_scheduler"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        optimizer = config.optimizer
        kind, name = kind_of(optimizer.optimizer_type), optimizer.lr_scheduler_type or optimizer.lr_scheduler
        if kind.schedule_free and name != "constant":
            own = " Its argument warmup_steps makes one of its own." if "warmup_steps" in kind.arguments else ""
            yield self.advice(
                f"{name} and its warm-up have no effect with {kind.name}.",
                f"It needs no schedule: the rate is the same at each step, and an average of the weights is used.{own}",
                {"lr_scheduler": "constant", "lr_scheduler_type": "", "lr_scheduler_args": []},
            )


class TextEncoderRate(Rule):
    name = "text-encoder-rate"
    key = "text_encoder_lr"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        family = known.model_family
        other, highest = denoiser_rate(config, family), max(text_rates(config, family), default=0.0)
        if other is None or kind_of(config.optimizer.optimizer_type).finds_rate or known.trial:
            return
        if highest > max(TEXT_ENCODER_RATE, other / 2):
            title = denoiser_title(config, family)
            yield self.advice(
                f"{highest:g} is high beside the {title}'s {other:g}.",
                f"The text encoder overfits first, and then words lose their meaning; half of the {title}'s rate or "
                "less is usual.",
                {"text_encoder_lr": min(TEXT_ENCODER_RATE, other / 2)},
            )


class Strength(Rule):
    name = "strength"
    key = "network_alpha"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        factor, rate = strength(config), denoiser_rate(config, known.model_family)
        if factor == 1 or rate is None or config.network.dim_from_weights:
            return
        acting = acting_rate(config, rate)
        acts = f"so a learning rate of {rate:g} acts like {rate * factor:.3g} at a strength of 1."
        if acting is None:
            acts = "by which what the optimizer moves is multiplied."
        elif acting != rate:
            acts = f"so {rate:g}, which acts like {acting:.3g} at first, acts like {acting * factor:.3g}."
        elif kind_of(config.optimizer.optimizer_type).finds_rate:
            acts = f"and {config.optimizer.optimizer_type} finds a rate to match."
        yield self.advice(
            f"the strength is alpha / rank = {config.network.network_alpha:g} / {config.network.network_dim} = "
            f"{factor:.3g}, {acts}",
            "When you change the rank, change alpha with it to keep the strength.",
        )
