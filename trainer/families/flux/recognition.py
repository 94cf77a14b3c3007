"""How FLUX.1's files are told, and how large their models are, from their headers. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.families.flux.facts import CLIP, DENOISER, LATENTS, T5, TOKEN, TRANSFORMER_CONFIG
from trainer.families.reading.headers import Header
from trainer.families.reading.unsupported import says

PREFIX = "model.diffusion_model."
"""What the transformer's names begin with in ComfyUI's checkpoints."""
PREFIXES: Mapping[str, tuple[str, ...]] = {
    CLIP: ("text_encoders.clip_l.transformer.",),
    T5: ("text_encoders.t5xxl.transformer.",),
    "vae": ("vae.", "first_stage_model."),
}
"""{component: what its names begin with in such checkpoints}."""

_ORIGINAL, _DIFFUSERS = "double_blocks.0.img_attn.norm.key_norm.scale", "transformer_blocks.0.attn.add_k_proj.bias"
_OTHERS = ("distilled_guidance_layer.", "single_stream_modulation.", "nerf_blocks.", "early_stream_modulations.")
"""Chroma, FLUX.2, Chroma Radiance and FLUX.3."""
SMALL = (".absmax", ".quant_map", ".nf4")


def transformer_prefix(header: Header) -> str | None:
    """Return what the names of the transformer of a file begin with; None where it is not FLUX.1's."""
    for prefix in (PREFIX, ""):
        if prefix + _ORIGINAL in header.shapes and f"{prefix}vector_in.in_layer.weight" in header.shapes:
            return None if header.has(*(prefix + each for each in _OTHERS)) else prefix
    single = header.has("single_transformer_blocks.0.attn.") and header.has("time_text_embed.text_embedder.")
    return "" if _DIFFUSERS in header.shapes and single else None


def input_width(header: Header) -> int:
    """Return how many numbers a token has for the transformer of a file; 0 where there is none of FLUX.1's."""
    prefix = transformer_prefix(header)
    if prefix is None:
        return 0
    shape = header.shapes.get(f"{prefix}img_in.weight") or header.shapes.get("x_embedder.weight", ())
    return shape[1] if len(shape) == 2 else 0


def is_flux(header: Header) -> bool:
    """Say whether a file has a transformer that draws from text alone."""
    return input_width(header) == TOKEN and not header.ends(*SMALL) and not is_kontext(header)


def is_kontext(header: Header) -> bool:
    """Say whether a file calls itself Kontext, which no weight tells."""
    return input_width(header) == TOKEN and says(header, "kontext")


def sizes(component: str, header: Header) -> dict[str, Any]:
    """Return what a file says of a component's configuration: how wide its layers are and how many it has."""
    made = {DENOISER: _transformer, CLIP: _clip, T5: _t5}.get(component)
    return made(header) if made is not None else {}


def holds_vae(header: Header) -> bool:
    """Say whether a file has a VAE of as many channels, alone or in a checkpoint."""
    inward = (shape for name, shape in header.shapes.items() if name.endswith("decoder.conv_in.weight"))
    return any(shape[1:2] == (LATENTS.channels,) for shape in inward)


def _shape(header: Header, component: str, *names: str) -> tuple[int, ...]:
    """Return the shape of the first of these weights that a file has, behind any prefix of its component."""
    for prefix in (*PREFIXES.get(component, ()), ""):
        for name in names:
            if found := header.shapes.get(prefix + name):
                return found
    return ()


def _count(names: Iterable[str], pattern: str) -> int:
    """Return how many numbers a pattern finds."""
    return len({found[1] for name in names if (found := re.search(pattern, name))})


def _transformer(header: Header) -> dict[str, Any]:
    prefix = transformer_prefix(header)
    if prefix is None:
        return {}
    original = prefix + _ORIGINAL in header.shapes
    width_of, norm, words, pooled, told, double, single = (
        ("img_in", "double_blocks.0.img_attn.norm.key_norm.scale", "txt_in", "vector_in.in_layer", "guidance_in.",
         r"double_blocks\.(\d+)\.", r"single_blocks\.(\d+)\.")
        if original else
        ("x_embedder", "transformer_blocks.0.attn.norm_k.weight", "context_embedder",
         "time_text_embed.text_embedder.linear_1", "time_text_embed.guidance_embedder.",
         r"(?<!single_)transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\.")
    )  # fmt: skip
    shapes = header.shapes
    width = _size(shapes, f"{prefix}{width_of}.weight", 0)
    head = _size(shapes, prefix + norm, 0) or int(TRANSFORMER_CONFIG["attention_head_dim"])
    return {
        "num_layers": _count(shapes, double),
        "num_single_layers": _count(shapes, single),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": _size(shapes, f"{prefix}{words}.weight", 1),
        "pooled_projection_dim": _size(shapes, f"{prefix}{pooled}.weight", 1),
        "guidance_embeds": header.has(prefix + told),
    }


def _size(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0


def _clip(header: Header) -> dict[str, Any]:
    table = _shape(header, CLIP, "text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight")
    places = _shape(
        header, CLIP, "text_model.embeddings.position_embedding.weight", "embeddings.position_embedding.weight"
    )
    inner = _shape(header, CLIP, "text_model.encoder.layers.0.mlp.fc1.weight", "encoder.layers.0.mlp.fc1.weight")
    if not (len(table) == len(places) == len(inner) == 2):
        return {}
    return {
        "vocab_size": table[0],
        "hidden_size": table[1],
        "max_position_embeddings": places[0],
        "intermediate_size": inner[0],
        "num_hidden_layers": _count(_of(header, CLIP), r"^(?:text_model\.)?encoder\.layers\.(\d+)\."),
    }


def _t5(header: Header) -> dict[str, Any]:
    attention = "encoder.block.0.layer.0.SelfAttention"
    table = _shape(header, T5, "shared.weight", "encoder.embed_tokens.weight")
    query, inner = (
        _shape(header, T5, f"{attention}.q.weight"),
        _shape(header, T5, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
    )
    bias = _shape(header, T5, f"{attention}.relative_attention_bias.weight")
    if not (len(table) == len(query) == len(inner) == len(bias) == 2) or not bias[1]:
        return {}
    return {
        "vocab_size": table[0],
        "d_model": table[1],
        "num_heads": bias[1],
        "relative_attention_num_buckets": bias[0],
        "d_kv": query[0] // bias[1],
        "d_ff": inner[0],
        "num_layers": _count(_of(header, T5), r"^encoder\.block\.(\d+)\."),
    }


def _of(header: Header, component: str) -> Iterable[str]:
    """Yield the names of a component's weights without the prefix that they may have."""
    for name in header.shapes:
        prefix = next((each for each in PREFIXES[component] if name.startswith(each)), "")
        yield name.removeprefix(prefix)
