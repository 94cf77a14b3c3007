"""The layers of Anima, its adapter and Qwen3 that LoRAs attach to, in the order in which kohya's files have them.

Names and order are those of sd-scripts' networks/lora_anima.py. Those that it leaves out unless a pattern takes them in
(modulations, and what is before and behind the blocks) are marked as the model's rim. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.families.anima.facts import CONDITIONER, DENOISER, TEXT
from trainer.families.anima.weight_names import ADAPTER, original_layer
from trainer.families.family import ComponentConfigs
from trainer.targets import Target

TEXT_PREFIX, PREFIX = "lora_te_", "lora_unet_"
ADAPTER_PREFIX = PREFIX + ADAPTER.replace(".", "_")

_MODULATIONS = ("norm1", "norm2", "norm3")
_TIMES = 3
"""Widths that a modulation has: shift, scale and gate."""


def adapter_targets(configs: ComponentConfigs) -> tuple[Target, ...]:
    """List the layers that a LoRA attaches to: Qwen3, what is before the blocks, the adapter, the blocks, the end."""
    config = configs[DENOISER]
    return (
        *_text(configs[TEXT]),
        *_before(config),
        *_conditioner(configs[CONDITIONER]),
        *_blocks(config),
        *_after(config),
    )


def width_of(config: Mapping[str, Any]) -> int:
    """Return how wide the transformer is."""
    return int(config["num_attention_heads"] * config["attention_head_dim"])


def _text(config: Mapping[str, Any]) -> Iterator[Target]:
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    for number in range(config["num_hidden_layers"]):
        attention, dense = f"layers.{number}.self_attn", f"layers.{number}.mlp"
        for projection, outputs in (("q", query), ("k", key), ("v", key)):
            yield _of_text(f"{attention}.{projection}_proj", width, outputs, attention)
        yield _of_text(f"{attention}.o_proj", query, width)
        yield _of_text(f"{dense}.gate_proj", width, inner, dense)
        yield _of_text(f"{dense}.up_proj", width, inner, dense)
        yield _of_text(f"{dense}.down_proj", inner, width)


def _of_text(path: str, inputs: int, outputs: int, shares: str = "") -> Target:
    return Target(TEXT, path, TEXT_PREFIX + path.replace(".", "_"), inputs, outputs, shares=shares)


def _conditioner(config: Mapping[str, Any]) -> Iterator[Target]:
    width, inner = config["model_dim"], int(config["model_dim"] * config["mlp_ratio"])
    for number in range(config["num_layers"]):
        block = f"blocks.{number}"
        for side, taken in (("self_attn", width), ("cross_attn", config["source_dim"])):
            attention = f"{block}.{side}"
            shared = attention if side == "self_attn" else ""
            yield _of_conditioner(f"{attention}.q_proj", width, width, shared)
            yield _of_conditioner(f"{attention}.k_proj", taken, width, attention)
            yield _of_conditioner(f"{attention}.v_proj", taken, width, attention)
            yield _of_conditioner(f"{attention}.o_proj", width, width)
        yield _of_conditioner(f"{block}.mlp.0", width, inner)
        yield _of_conditioner(f"{block}.mlp.2", inner, width)


def _of_conditioner(path: str, inputs: int, outputs: int, shares: str = "") -> Target:
    return Target(CONDITIONER, path, ADAPTER_PREFIX + path.replace(".", "_"), inputs, outputs, shares=shares)


def _blocks(config: Mapping[str, Any]) -> Iterator[Target]:
    width, low = width_of(config), config["adaln_lora_dim"]
    inner = int(width * config["mlp_ratio"])
    for number in range(config["num_layers"]):
        block = f"transformer_blocks.{number}"
        for attention, taken in (("attn1", width), ("attn2", config["text_embed_dim"])):
            path = f"{block}.{attention}"
            yield _of_denoiser(f"{path}.to_q", width, width, shares=path if attention == "attn1" else "")
            yield _of_denoiser(f"{path}.to_k", taken, width, shares=path)
            yield _of_denoiser(f"{path}.to_v", taken, width, shares=path)
            yield _of_denoiser(f"{path}.to_out.0", width, width)
        yield _of_denoiser(f"{block}.ff.net.0.proj", width, inner)
        yield _of_denoiser(f"{block}.ff.net.2", inner, width)
        for norm in _MODULATIONS:
            yield _of_denoiser(f"{block}.{norm}.linear_1", width, low, rim=True)
            yield _of_denoiser(f"{block}.{norm}.linear_2", low, _TIMES * width, rim=True)


def _before(config: Mapping[str, Any]) -> Iterator[Target]:
    width = width_of(config)
    _, rows, columns = config["patch_size"]
    channels = config["in_channels"] + bool(config["concat_padding_mask"])
    yield _of_denoiser("patch_embed.proj", channels * rows * columns, width, rim=True)
    yield _of_denoiser("time_embed.t_embedder.linear_1", width, width, rim=True)
    yield _of_denoiser("time_embed.t_embedder.linear_2", width, _TIMES * width, rim=True)


def _after(config: Mapping[str, Any]) -> Iterator[Target]:
    width, low = width_of(config), config["adaln_lora_dim"]
    _, rows, columns = config["patch_size"]
    yield _of_denoiser("proj_out", width, config["out_channels"] * rows * columns, rim=True)
    yield _of_denoiser("norm_out.linear_1", width, low, rim=True)
    yield _of_denoiser("norm_out.linear_2", low, 2 * width, rim=True)


def _of_denoiser(path: str, inputs: int, outputs: int, *, shares: str = "", rim: bool = False) -> Target:
    name = PREFIX + original_layer(path).replace(".", "_")
    return Target(DENOISER, path, name, inputs, outputs, shares=shares, extra=rim, rim=rim)
