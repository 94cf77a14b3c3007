"""What to give up when memory is short: one list, by what it costs in speed, the least first.

"Fit to my card" goes down it before a run, and the run itself where memory runs out, as far as that can be done on the
way; what is left is named in the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from trainer.advice.parts import text_rates
from trainer.config import TrainingConfig

Values = Mapping[str, object]
"""Settings by key."""


@dataclass(frozen=True, slots=True)
class Saving:
    """One way to need less memory.

    `words` say it in an error, as what to do; `values` returns the settings that do it, none where that is done or
    would contradict other settings. `on_the_way` says that a run under way can do it, with the same result but for
    rounding.
    """

    words: str
    values: Callable[[TrainingConfig], Values]
    on_the_way: bool = False


def _texts(config: TrainingConfig) -> Values:
    """Encode captions ahead, where no text encoder learns and each caption is the same in every step."""
    captions, text = config.captions, config.text
    chance = captions.shuffle_caption or captions.caption_tag_dropout_rate or captions.enable_wildcard
    varied = chance or captions.token_warmup_step
    ahead = text.cache_text_encoder_outputs or text.cache_text_encoder_outputs_to_disk
    if ahead or varied or config.dataset.datasets or text_rates(config, config.model.model_family):
        return {}
    return {"cache_text_encoder_outputs": True}


def _latents(config: TrainingConfig) -> Values:
    moving = config.augmentation.random_crop or config.augmentation.color_aug
    return {} if config.dataset.cache_latents or moving else {"cache_latents": True}


def _fewer_at_the_vae(config: TrainingConfig) -> Values:
    return {"vae_batch_size": 1} if config.dataset.vae_batch_size > 1 else {}


def _parted(config: TrainingConfig) -> Values:
    """Part the batch into its fewest equal parts; as much more accumulation keeps what one step learns from."""
    size = config.training.train_batch_size
    if size == 1 or config.dataset.datasets:
        return {}
    parts = next(parts for parts in range(2, size + 1) if size % parts == 0)
    accumulation = config.training.gradient_accumulation_steps
    return {"train_batch_size": size // parts, "gradient_accumulation_steps": accumulation * parts}


def _again(config: TrainingConfig) -> Values:
    return {} if config.training.gradient_checkpointing else {"gradient_checkpointing": True}


def _streaming(share: float) -> Callable[[TrainingConfig], Values]:
    def values(config: TrainingConfig) -> Values:
        possible = not (config.training.torch_compile or config.network.init_lora_weights)
        return {"streamed_weights": share} if possible and config.memory.streamed_weights < share else {}

    return values


def _fewer_bits(kind: str) -> Callable[[TrainingConfig], Values]:
    order = ("none", "int8", "nf4")

    def values(config: TrainingConfig) -> Values:
        now = config.model.quantize_base
        now = "int8" if now == "fp8" else now
        possible = not config.network.init_lora_weights
        return {"quantize_base": kind} if possible and order.index(now) < order.index(kind) else {}

    return values


SAVINGS: tuple[Saving, ...] = (
    Saving("turn on cache_text_encoder_outputs", _texts),
    Saving("turn on cache_latents", _latents),
    Saving("lower vae_batch_size", _fewer_at_the_vae),
    Saving("lower train_batch_size (and raise gradient_accumulation_steps to match)", _parted, on_the_way=True),
    Saving("turn on gradient_checkpointing", _again, on_the_way=True),
    Saving("raise streamed_weights", _streaming(0.5)),
    Saving("set quantize_base to int8", _fewer_bits("int8")),
    Saving("raise streamed_weights", _streaming(1.0)),
    Saving("set quantize_base to nf4", _fewer_bits("nf4")),
)
"""The list."""

LAST = "lower resolution"
"""What is left when all of it is done. It changes what is learned, so it is nobody's but the user's to decide."""


def ladder(
    config: TrainingConfig, changed: Callable[[Values], TrainingConfig | None]
) -> Iterator[tuple[Values, TrainingConfig]]:
    """Yield settings that need less and less memory: all that was given up so far, after each step down the list.

    Args:
        changed: returns the settings with these values in place of their own, None where the two contradict.
    """
    given: dict[str, object] = {}
    for saving in SAVINGS:
        while values := saving.values(config):
            less = changed({**given, **values})
            if less is None:
                break
            config = less
            given |= values
            yield dict(given), config


def remedies(config: TrainingConfig, *, least: bool = False) -> list[str]:
    """Return what is left to do, in words. `least` says that what can be done on the way was done."""
    left = [each.words for each in SAVINGS if not (least and each.on_the_way) and each.values(config)]
    return [*dict.fromkeys(left), LAST]
