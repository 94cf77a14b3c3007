"""How many tokens a caption has for the text encoders of a model, and how many they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.config import TrainingConfig
from trainer.families import FAMILIES

_CHUNKED, _WHOLE = "max_token_length", "t5xxl_max_token_length"
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """`count` returns the tokens of a text; of more than `limit` the rest is cut off, as `setting` says."""

    setting: str
    limit: int
    count: Callable[[str], int]


def load(config: TrainingConfig, family: str) -> TokenLimit | None:
    """Return what a model of this family reads of a caption, None where that is not known. Loads the tokenizer.

    Raises:
        ModelError: the vocabulary is not to be had.
    """
    from trainer.families.text.clip import clip_tokenizer
    from trainer.families.text.t5 import find_tokenizer, load_tokenizer

    unused = FAMILIES[family].unused
    if _CHUNKED not in unused:
        chunked = clip_tokenizer()
        return TokenLimit(
            _CHUNKED,
            config.model.max_token_length,
            lambda text: len(chunked(text, add_special_tokens=False, verbose=False)["input_ids"]),
        )
    if _WHOLE not in unused:
        whole = load_tokenizer(find_tokenizer(config.model.t5_tokenizer_path))
        length = config.model.t5xxl_max_token_length or _LONGEST
        return TokenLimit(_WHOLE, length - 1, lambda text: len(whole.encode(text, add_special_tokens=False).ids))
    return None
