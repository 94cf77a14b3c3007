"""The configurations of a model's components: JSON as people have it, judged before anything is built from it.

A configuration decides how much memory is taken and for how long a loop runs, so its numbers have bounds. The bounds
are far beyond any model there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.ground import paths
from trainer.ground.errors import ModelError

_MOST_BYTES = 4 << 20
_REMEDY = "Copy or download the model again."

_WIDTH, _DEPTH = (1, 1 << 16), (1, 1 << 9)
_BOUNDS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(
        ("in_channels", "out_channels", "block_out_channels", "latent_channels", "norm_num_groups"), _WIDTH
    ),
    **dict.fromkeys(
        ("cross_attention_dim", "projection_class_embeddings_input_dim", "addition_time_embed_dim"), _WIDTH
    ),
    **dict.fromkeys(("hidden_size", "num_attention_heads", "attention_head_dim"), _WIDTH),
    **dict.fromkeys(("d_model", "d_kv", "d_ff", "num_heads", "joint_attention_dim", "pooled_projection_dim"), _WIDTH),
    **dict.fromkeys(("text_embed_dim", "adaln_lora_dim", "source_dim", "target_dim", "model_dim"), _WIDTH),
    **dict.fromkeys(("base_dim", "z_dim", "dim_mult", "input_channels", "num_key_value_heads", "head_dim"), _WIDTH),
    **dict.fromkeys(("num_res_blocks", "patch_size"), _DEPTH),
    **dict.fromkeys(("layers_per_block", "num_hidden_layers", "num_layers"), _DEPTH),
    "num_single_layers": (0, 1 << 9),
    "axes_dims_rope": _WIDTH,
    "relative_attention_num_buckets": (1, 1 << 16),
    "relative_attention_max_distance": (1, 1 << 20),
    "transformer_layers_per_block": (0, 1 << 9),
    "projection_dim": (0, 1 << 16),
    "intermediate_size": (1, 1 << 20),
    "max_position_embeddings": (1, 1 << 20),
    "vocab_size": (1, 1 << 24),
    "target_vocab_size": (1, 1 << 24),
    "sample_size": (1, 1 << 16),
    "num_train_timesteps": (1, 1 << 20),
}
"""The smallest and the largest whole number of an entry that has one, or a list of them; null is left as it is."""

_SHARES = ("beta_start", "beta_end", "norm_eps", "layer_norm_eps")
"""Entries that are numbers above 0 and below 1."""

_MOST_LEVELS = 32
_PER_LEVEL = ("down_block_types", "up_block_types")
_DIVISIBLE = (("hidden_size", "num_attention_heads"), ("block_out_channels", "norm_num_groups"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON table.

    Raises:
        ModelError: it cannot be read, or it is too long to be one.
    """
    try:
        found = paths.read_json(path, _MOST_BYTES)
        if not isinstance(found, dict):
            raise TypeError("it is no table")
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}).", _REMEDY) from error
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Read a component's configuration.

    Raises:
        ModelError: as `read_json` and `check_config`.
    """
    config = read_json(path)
    check_config(config, str(path))
    return config


def check_config(config: Mapping[str, Any], place: str) -> None:
    """See that the numbers of a configuration can be those of a model.

    Args:
        place: where it stands, for errors.

    Raises:
        ModelError: one cannot.
    """
    for key, (least, most) in _BOUNDS.items():
        for number in _each(config.get(key)):
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
                raise ModelError(
                    f"{place}: {key} is {_short(number)}; it must be a whole number from {least} to {most}.", _REMEDY
                )
    for key in _SHARES:
        for number in _each(config.get(key)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1:
                raise ModelError(f"{place}: {key} is {_short(number)}; it must be a number between 0 and 1.", _REMEDY)
    _check_levels(config, place)
    for whole, part in _DIVISIBLE:
        parts = config.get(part)
        if isinstance(parts, int) and any(number % parts for number in _each(config.get(whole))):
            raise ModelError(f"{place}: {whole} is not a multiple of {part}, {parts}.", _REMEDY)


def _check_levels(config: Mapping[str, Any], place: str) -> None:
    levels = config.get("block_out_channels")
    if levels is None:
        return
    if not isinstance(levels, list | tuple) or not 1 <= len(levels) <= _MOST_LEVELS:
        raise ModelError(f"{place}: block_out_channels must be a list of 1 to {_MOST_LEVELS} numbers.", _REMEDY)
    for key in _PER_LEVEL:
        types = config.get(key, levels)
        if not isinstance(types, list | tuple) or len(types) != len(levels):
            raise ModelError(f"{place}: {key} must be a list as long as block_out_channels, {len(levels)}.", _REMEDY)


def _each(value: Any) -> Iterator[Any]:
    """Yield what a value, or a list of lists of them, holds; nothing of null."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _each(each)
    elif value is not None:
        yield value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
