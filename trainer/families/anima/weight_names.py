"""Anima's weights in its own layout; the modules that run are diffusers'. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

BLOCKS = "blocks"
ADAPTER = "llm_adapter."
"""What the names of the adapter's weights begin with in the transformer's file."""

LAYERS: Mapping[str, str] = {
    "norm1.linear_1": "adaln_modulation_self_attn.1",
    "norm1.linear_2": "adaln_modulation_self_attn.2",
    "norm2.linear_1": "adaln_modulation_cross_attn.1",
    "norm2.linear_2": "adaln_modulation_cross_attn.2",
    "norm3.linear_1": "adaln_modulation_mlp.1",
    "norm3.linear_2": "adaln_modulation_mlp.2",
    "attn1.to_q": "self_attn.q_proj",
    "attn1.to_k": "self_attn.k_proj",
    "attn1.to_v": "self_attn.v_proj",
    "attn1.to_out.0": "self_attn.output_proj",
    "attn1.norm_q": "self_attn.q_norm",
    "attn1.norm_k": "self_attn.k_norm",
    "attn2.to_q": "cross_attn.q_proj",
    "attn2.to_k": "cross_attn.k_proj",
    "attn2.to_v": "cross_attn.v_proj",
    "attn2.to_out.0": "cross_attn.output_proj",
    "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
"""{layer of a block of ours: layer of the original}."""

OUTSIDE: Mapping[str, str] = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
"""{layer of ours outside the blocks: layer of the original}."""

_IN_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def original_layer(path: str) -> str:
    """Return what the original calls a layer of the transformer that runs."""
    found = _IN_BLOCK.fullmatch(path)
    if found is None:
        return OUTSIDE[path]
    number, layer = found.groups()
    return f"{BLOCKS}.{number}.{LAYERS[layer]}"


def original_name(name: str) -> str:
    """Return the original's name of a weight of the transformer that runs."""
    path, _, kind = name.rpartition(".")
    return f"{original_layer(path)}.{kind}"
