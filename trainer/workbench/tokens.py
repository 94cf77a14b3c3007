"""How many tokens a caption has for the text encoders of a model, and how many they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainingConfig
from trainer.families import FAMILIES, Recognition
from trainer.families.family import FILE

_CHUNKED, _WHOLE, _ENCODER = "max_token_length", "t5xxl_max_token_length", "t5xxl"
_WORDS, _VOCABULARY = "t5_max_token_length", "t5_tokenizer"
"""The setting of models that take T5's words and not its states, and the folder that their vocabulary lies in."""


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """`count` returns the tokens of a text; of more than `limit` the rest is cut off, as `setting` says."""

    setting: str
    limit: int
    count: Callable[[str], int]


def load(config: TrainingConfig, model: Recognition) -> TokenLimit | None:
    """Return what a model reads of a caption, None where that is not known. Loads its tokenizer, and PyTorch.

    Raises:
        ModelError: the vocabulary is not to be had.
    """
    from trainer.families.text import clip, t5
    from trainer.families.text.weighted import parse_weights

    family = FAMILIES[model.family]
    if _CHUNKED not in family.unused:
        chunked = clip.load_tokenizer(None if model.form == FILE else Path(model.source) / "tokenizer")

        def count(text: str) -> int:
            # Weights in a caption are no text where they are read as such.
            parts = [part for part, _ in parse_weights(text)] if config.text.weighted_captions else [text]
            return sum(len(chunked(part, add_special_tokens=False, verbose=False)["input_ids"]) for part in parts)

        return TokenLimit(_CHUNKED, config.model.max_token_length, count)
    if _WORDS not in family.unused:
        words = t5.load_tokenizer(t5.VOCABULARY.find(config.model.t5_tokenizer_path, *_vocabularies(config, model)))
        limit = config.text.t5_max_token_length - 1
        return TokenLimit(_WORDS, limit, lambda text: len(words.encode(text, add_special_tokens=False).ids))
    if length := family.text_length(model.configs):
        whole = t5.load_tokenizer(t5.VOCABULARY.find(config.model.t5_tokenizer_path, *_places(config, model)))
        # One of the tokens is the end of the text.
        limit = (config.model.t5xxl_max_token_length or length) - 1
        return TokenLimit(_WHOLE, limit, lambda text: len(whole.encode(text, add_special_tokens=False).ids))
    return None


def _places(config: TrainingConfig, model: Recognition) -> list[Path]:
    """Return the folders in which T5's vocabulary lies, those where the training looks for it."""
    source, own = Path(model.source), config.model.t5xxl
    beside = [Path(own) if Path(own).is_dir() else Path(own).parent] if own else []
    component = FAMILIES[model.family].files[_ENCODER]
    usual = source.parent if model.form == FILE else source / component.replace("text_encoder", "tokenizer")
    return [*beside, usual]


def _vocabularies(config: TrainingConfig, model: Recognition) -> list[Path]:
    """Return the folders in which T5's words lie where only they are taken."""
    source, own = Path(model.source), config.model.qwen3
    beside = [Path(own) if Path(own).is_dir() else Path(own).parent] if own else []
    return [folder / _VOCABULARY for folder in (*beside, source.parent if model.form == FILE else source)]
