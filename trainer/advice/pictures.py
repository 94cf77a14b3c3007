"""Advice on pictures and captions."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.advice.flow import is_flow
from trainer.advice.rule import Advice, Rule, Situation
from trainer.config import TrainingConfig, resolution_size

LARGE_SIDE = 1024
SMALLEST_SIDE = 512
"""Models know little of pictures smaller than this, or than three quarters of the side they were made at."""


def usual_sides(model_side: int) -> tuple[int, int]:
    """Return the least and the greatest side of squares whose area suits a model made at `model_side` (0 = unknown)."""
    if not model_side:
        return SMALLEST_SIDE, LARGE_SIDE * 3 // 2
    return max(SMALLEST_SIDE, model_side * 3 // 4), model_side * 3 // 2


class Resolution(Rule):
    name = "resolution"
    key = "resolution"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        width, height = resolution_size(config)
        smallest, largest = usual_sides(known.model_side)
        if known.trial or smallest**2 <= width * height <= largest**2:
            return
        small = width * height < smallest**2
        made_at = known.model_side or (SMALLEST_SIDE if small else LARGE_SIDE)
        yield self.advice(
            f"{width},{height}; {made_at},{made_at} is usual for this kind of model.",
            f"It was made at {made_at} and knows little of so "
            + ("small pictures." if small else "large ones; memory and time rise with the area."),
            {"resolution": f"{made_at},{made_at}"},
            serious=width * height * 4 <= smallest**2,
        )


class Enlarging(Rule):
    name = "enlarging"
    key = "bucket_no_upscale"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        if config.dataset.enable_bucket and not config.dataset.bucket_no_upscale:
            yield self.advice(
                "pictures smaller than the resolution will be enlarged.",
                "The LoRA learns their blur; leave them at their own size.",
                {"bucket_no_upscale": True},
            )


class BucketStep(Rule):
    name = "bucket-step"
    key = "bucket_reso_steps"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        step = config.dataset.bucket_reso_steps
        if config.dataset.enable_bucket and step % 64 and not known.trial and not is_flow(known):
            yield self.advice(
                f"{step} is not a multiple of 64.",
                "Stable Diffusion halves latents three times; other sizes do not divide evenly and train worse.",
                {"bucket_reso_steps": 64},
            )


class KeepTokens(Rule):
    name = "keep-tokens"
    key = "keep_tokens"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        captions = config.captions
        changes = {"are shuffled": captions.shuffle_caption, "lose tags": captions.caption_tag_dropout_rate > 0}
        changed = " and ".join(words for words, done in changes.items() if done)
        if changed and not captions.keep_tokens and not captions.keep_tokens_separator:
            yield self.advice(
                f"captions {changed}, and no tag is kept in front.",
                "The trigger word moves about or is dropped; put it first in every caption and keep it there.",
                {"keep_tokens": 1},
            )


class CaptionDropout(Rule):
    name = "caption-dropout"
    key = "caption_dropout_rate"

    def look(self, config: TrainingConfig, known: Situation) -> Iterator[Advice]:
        rate = config.captions.caption_dropout_rate
        if rate > 0.3:
            yield self.advice(
                f"{rate:g} of all pictures train without a caption; 0.05 to 0.1 is usual.",
                "The trigger word loses its power, and what is learned shows without it.",
                {"caption_dropout_rate": 0.1},
            )
