"""The names that weights have in the original layout, from those that diffusers and transformers give them.

The layout is that of CompVis' and Stability's checkpoints; OpenCLIP's text encoders are there as OpenCLIP has them.
Names only; the one difference in values is that the VAE's attention is made of 1x1 convolutions there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_ATTENTION_BEFORE_2023 = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

_OPEN_CLIP_TOP = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_JOINED = ("q_proj", "k_proj", "v_proj")
"""OpenCLIP has query, key and value as one matrix, in this order."""

_OPEN_CLIP_BLOCK = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)")
_UNET_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_LEVEL = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the original name of one UNet weight, without the prefix of checkpoints."""
    if found := _UNET_BLOCK.fullmatch(name):
        side, level, kind, number, rest = found.groups()
        place = _down_place if side == "down_blocks" else _up_place
        return f"{place(int(level), kind, int(number), config)}.{_unet_rest(kind, rest)}"
    if found := _UNET_MIDDLE.fullmatch(name):
        kind, number, rest = found.groups()
        # The middle is residual, attention, residual.
        place_number = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place_number}.{_unet_rest(kind, rest)}"
    return _renamed(name, _UNET_TOP)


def vae_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the original name of one VAE weight; the original decoder counts its levels from the finest up."""
    if found := _VAE_LEVEL.fullmatch(name):
        half, level, kind, number, rest = found.groups()
        if half == "encoder":
            place = f"encoder.down.{level}"
        else:
            place = f"decoder.up.{len(config['block_out_channels']) - 1 - int(level)}"
        if kind == "resnets":
            return f"{place}.block.{number}.{_renamed(rest, {'conv_shortcut': 'nin_shortcut'})}"
        return f"{place}.{kind.removesuffix('rs')}.{rest}"
    if found := _VAE_MIDDLE.fullmatch(name):
        half, kind, number, rest = found.groups()
        if kind == "resnets":
            return f"{half}.mid.block_{int(number) + 1}.{rest}"
        return f"{half}.mid.attn_{int(number) + 1}.{_renamed(rest, _VAE_ATTENTION)}"
    return name.replace(".conv_norm_out.", ".norm_out.")


def vae_name_before_2023(name: str) -> str:
    """Return the name of one VAE weight in files that diffusers wrote before its attention was renamed."""
    head, separator, rest = name.partition(".mid_block.attentions.0.")
    return head + separator + _renamed(rest, _VAE_ATTENTION_BEFORE_2023) if separator else name


def open_clip_name(name: str) -> tuple[str, int | None]:
    """Return OpenCLIP's name of one weight of `CLIPTextModelWithProjection`, and which third of it the weight is.

    The third is None where the weight is the whole. The projection is a matrix there that is multiplied from the
    other side, so the caller transposes it.
    """
    if name == "text_projection.weight":
        return "text_projection", None
    if name == "text_model.embeddings.position_embedding.weight":
        return "positional_embedding", None
    if found := _OPEN_CLIP_BLOCK.fullmatch(name):
        place = f"transformer.resblocks.{found[1]}"
        layer, _, kind = found[2].rpartition(".")
        joined = layer.removeprefix("self_attn.")
        if joined in _JOINED:
            return f"{place}.attn.in_proj_{kind}", _JOINED.index(joined)
        return f"{place}.{_renamed(found[2], _OPEN_CLIP_LAYER)}", None
    return _renamed(name, _OPEN_CLIP_TOP), None


def _down_place(level: int, kind: str, number: int, config: Mapping[str, Any]) -> str:
    stride = config["layers_per_block"] + 1
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * stride}.0"
    return f"input_blocks.{1 + level * stride + number}.{int(kind == 'attentions')}"


def _up_place(level: int, kind: str, number: int, config: Mapping[str, Any]) -> str:
    stride = config["layers_per_block"] + 1
    if kind == "upsamplers":
        # It shares the place of its level's last layer, behind the residual block and, where there is one, attention.
        behind = 2 if config["up_block_types"][level].startswith("CrossAttn") else 1
        return f"output_blocks.{level * stride + stride - 1}.{behind}"
    return f"output_blocks.{level * stride + number}.{int(kind == 'attentions')}"


def _unet_rest(kind: str, rest: str) -> str:
    if kind == "resnets":
        return _renamed(rest, _UNET_RESIDUAL)
    if kind == "downsamplers":
        return _renamed(rest, {"conv": "op"})
    return rest


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """Replace the layer of "layer.weight" or "layer.bias"; layers that the table lacks keep their name."""
    layer, _, kind = name.rpartition(".")
    return f"{table.get(layer, layer)}.{kind}"
