"""FLUX.1's weights in its own layout and in diffusers', for models of any size. No torch.

The module that runs is diffusers', with query, key, value (and the feed-forward of single blocks) made one layer as in
the original (`families.reading.fused`). So every entry of it is one of the original's, and one or several of
diffusers'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

DOUBLE, SINGLE = "double_blocks", "single_blocks"
"""What the original calls its two kinds of blocks; the names of LoRA files are made of them."""

FUSED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "transformer_blocks": {
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.added_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_transformer_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
"""{list of blocks: {layer of ours: the layers of diffusers that it is, in the order of its rows}}."""

SWAPPED = "norm_out.linear"
"""The layer whose two halves, shift and scale, stand the other way round in the original."""

LAYERS: Mapping[str, Mapping[str, str]] = {
    "transformer_blocks": {
        "norm1.linear": "img_mod.lin",
        "attn.qkv": "img_attn.qkv",
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.to_out.0": "img_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "norm1_context.linear": "txt_mod.lin",
        "attn.added_qkv": "txt_attn.qkv",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "attn.to_add_out": "txt_attn.proj",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
    },
    "single_transformer_blocks": {
        "linear1": "linear1",
        "proj_out": "linear2",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
        "norm.linear": "modulation.lin",
    },
}
"""{list of blocks: {layer of ours: layer of the original}}."""

OUTSIDE: Mapping[str, str] = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    SWAPPED: "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
"""{layer of ours outside the blocks: layer of the original}."""

_BLOCKS = {"transformer_blocks": DOUBLE, "single_transformer_blocks": SINGLE}
_IN_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")


def original_layer(path: str) -> str:
    """Return what the original calls a layer of ours."""
    found = _IN_BLOCK.fullmatch(path)
    if found is None:
        return OUTSIDE[path]
    blocks, number, layer = found.groups()
    return f"{_BLOCKS[blocks]}.{number}.{LAYERS[blocks][layer]}"


def original_name(name: str) -> str:
    """Return the original's name of a weight of ours; its norms call their weight a scale."""
    path, _, kind = name.rpartition(".")
    layer = original_layer(path)
    return f"{layer}.scale" if layer.endswith(("query_norm", "key_norm")) else f"{layer}.{kind}"


def diffusers_names(name: str) -> tuple[str, ...]:
    """Return diffusers' names of the weights that, one below the other, are a weight of ours."""
    path, _, kind = name.rpartition(".")
    found = _IN_BLOCK.fullmatch(path)
    if found is None:
        return (name,)
    blocks, number, layer = found.groups()
    return tuple(f"{blocks}.{number}.{part}.{kind}" for part in FUSED[blocks].get(layer, (layer,)))
