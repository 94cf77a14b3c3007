"""What a caption becomes on its way to the text encoder: prefix, dropout, wildcards, shuffle, separators.

Order and random draws are those of sd-scripts (`library/train_util.py` process_caption), so a `random.Random(seed)`
gives the text that it gives with `random.seed(seed)`. Tags are joined as it does since its pull request 2390.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.config import TrainingConfig
from trainer.ground.randomness import python_random

_BRACES = re.compile(r"\{\{|\}\}|\{([^}]+)\}")


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """The settings that change a caption; names and meaning are sd-scripts'."""

    shuffle_caption: bool = False
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    caption_separator: str = ","
    secondary_separator: str = ""
    caption_prefix: str = ""
    caption_suffix: str = ""
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    enable_wildcard: bool = False
    token_warmup_min: int = 1
    token_warmup_step: float = 0

    @classmethod
    def from_config(cls, config: TrainingConfig) -> CaptionRules:
        """Return the rules of the captions section."""
        captions = config.captions
        return cls(**{name: getattr(captions, name) for name in cls.__dataclass_fields__})

    @property
    def edits_tags(self) -> bool:
        """True when captions are taken apart into tags; otherwise their text is left as written."""
        return self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0

    @property
    def drops_captions(self) -> bool:
        """True when a whole caption may be replaced by the empty one."""
        return self.caption_dropout_rate > 0 or self.caption_dropout_every_n_epochs > 0

    def warmup_steps(self, total_steps: int) -> float:
        """Return for how many steps tags are still being added; below 1 the setting is a share of all steps."""
        if self.token_warmup_step < 1:
            return math.floor(self.token_warmup_step * total_steps)
        return self.token_warmup_step


def render(raw: str, rules: CaptionRules, *, rng: random.Random, epoch: int, step: int, total_steps: int) -> str:
    """Return the text to train with.

    Args:
        raw: the caption as read; several lines only where a wildcard file has them.
        rng: draws, in this order: caption dropout, line, wildcards, shuffle, tag dropout.
        epoch: counted from 1.
        step: optimizer step, counted from 0; with `total_steps` it places tag warm-up.
    """
    if _is_dropped(rules, rng, epoch):
        return ""
    lines = raw.split("\n")
    caption = rng.choice(lines) if rules.enable_wildcard and len(lines) > 1 else lines[0]
    if rules.caption_prefix:
        caption = f"{rules.caption_prefix} {caption}"
    if rules.caption_suffix:
        caption = f"{caption} {rules.caption_suffix}"
    if rules.enable_wildcard:
        caption = _fill_wildcards(caption, rng)
    if rules.edits_tags:
        caption = _edit_tags(caption, rules, rng, step, total_steps)
    if rules.secondary_separator:
        caption = caption.replace(rules.secondary_separator, rules.caption_separator)
    return caption


def variants(raw: str, rules: CaptionRules) -> tuple[str, ...] | None:
    """Return every text that `render` can make of a caption, or None when chance or the step decides too much.

    A text encoder that is not trained need only see these.
    """
    if rules.edits_tags or (rules.enable_wildcard and ("\n" in raw or "{" in raw)):
        return None
    always = render(raw, _without_dropout(rules), rng=random.Random(0), epoch=1, step=0, total_steps=1)
    return tuple(dict.fromkeys((always, "") if rules.drops_captions else (always,)))


def prepared(raw: str, rules: CaptionRules, *, count: int, seed: int, index: int) -> tuple[str, ...]:
    """Return the texts that stand for a caption where text encoders see it before training only.

    They are all that it can become, or where chance decides `count` draws, of which each step sees one. A caption
    dropped as a whole is not among them: that is decided in each step.

    Args:
        index: the example's number; with `seed` and the draw's number it decides the draw.
    """
    whole = replace(rules, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0)
    every = variants(raw, whole)
    if every is not None:
        return every
    draws = (
        render(raw, whole, rng=python_random(seed, draw, index, "variant"), epoch=1, step=0, total_steps=1)
        for draw in range(count)
    )
    return tuple(dict.fromkeys(draws))


def choose(texts: Sequence[str], rules: CaptionRules, *, rng: random.Random, epoch: int) -> str:
    """Return the text to train with among those that `prepared` gave, or the empty one where it is dropped."""
    return "" if _is_dropped(rules, rng, epoch) else rng.choice(texts)


def _without_dropout(rules: CaptionRules) -> CaptionRules:
    return CaptionRules(
        caption_prefix=rules.caption_prefix,
        caption_suffix=rules.caption_suffix,
        enable_wildcard=rules.enable_wildcard,
        caption_separator=rules.caption_separator,
        secondary_separator=rules.secondary_separator,
    )


def _is_dropped(rules: CaptionRules, rng: random.Random, epoch: int) -> bool:
    if rules.caption_dropout_rate > 0 and rng.random() < rules.caption_dropout_rate:
        return True
    every = rules.caption_dropout_every_n_epochs
    return every > 0 and epoch % every == 0


def _fill_wildcards(caption: str, rng: random.Random) -> str:
    """Replace `{a|b}` by one of its parts; `{{` and `}}` stand for the braces themselves."""

    def chosen(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        return rng.choice(match[1].split("|"))

    return _BRACES.sub(chosen, caption)


def _edit_tags(caption: str, rules: CaptionRules, rng: random.Random, step: int, total_steps: int) -> str:
    head, tags, tail = _split_tags(caption, rules)
    warmup = rules.warmup_steps(total_steps)
    if warmup and step < warmup:
        shown = math.floor(step * (len(tags) - rules.token_warmup_min) / warmup) + rules.token_warmup_min
        tags = tags[:shown]
    if rules.shuffle_caption:
        rng.shuffle(tags)
    if rules.caption_tag_dropout_rate > 0:
        tags = [tag for tag in tags if rng.random() >= rules.caption_tag_dropout_rate]
    separator = rules.caption_separator
    joint = separator if separator[-1:].isspace() else f"{separator} "
    return joint.join([*head, *tags, *tail])


def _split_tags(caption: str, rules: CaptionRules) -> tuple[list[str], list[str], list[str]]:
    """Return the tags that stay in front, those that may change, and those that stay behind."""
    separator = rules.keep_tokens_separator
    if not separator or separator not in caption:
        tags = [tag.strip() for tag in caption.strip().split(rules.caption_separator)]
        return tags[: rules.keep_tokens], tags[rules.keep_tokens :], []
    head, _, rest = caption.partition(separator)
    middle, _, tail = rest.partition(separator)
    parts = ([tag.strip() for tag in part.split(rules.caption_separator)] for part in (head, middle, tail))
    first, flexible, last = ([tag for tag in part if tag] for part in parts)
    return first, flexible, last
