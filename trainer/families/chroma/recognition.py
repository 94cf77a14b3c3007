"""How Chroma's files are told, and how large their models are, from their headers. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.families.chroma.facts import DENOISER, T5, TRANSFORMER_CONFIG
from trainer.families.chroma.weight_names import APPROXIMATOR
from trainer.families.flux import facts as flux
from trainer.families.flux import recognition as told
from trainer.families.reading.headers import Header

PREFIXES: Mapping[str, tuple[str, ...]] = {T5: told.PREFIXES[flux.T5], "vae": told.PREFIXES["vae"]}
"""{component: what its names begin with in ComfyUI's checkpoints}."""

_FIRST, _LAST = f"{APPROXIMATOR}.in_proj.weight", f"{APPROXIMATOR}.out_proj.weight"
_ORIGINAL = ("double_blocks.0.img_attn.norm.key_norm.scale", "img_in", "txt_in", "double_blocks", "single_blocks")
_DIFFUSERS = (
    *("transformer_blocks.0.attn.norm_k.weight", "x_embedder", "context_embedder"),
    *("transformer_blocks", "single_transformer_blocks"),
)
"""Of each layout: a norm as wide as a head, the layers before the blocks, and the lists of blocks."""


def is_chroma(header: Header) -> bool:
    """Say whether a file has Chroma's transformer, which draws latents from text alone."""
    config = _transformer(header)
    return bool(config) and config["in_channels"] == flux.TOKEN and not header.ends(*told.SMALL)


def sizes(component: str, header: Header) -> dict[str, Any]:
    """Return what a file says of a component's configuration: how wide its layers are and how many it has."""
    if component == DENOISER:
        found = _transformer(header)
        found.pop("in_channels", None)
        return found
    return told.sizes(flux.T5, header) if component == T5 else {}


def _transformer(header: Header) -> dict[str, Any]:
    prefix = next((each for each in (told.PREFIX, "") if each + _FIRST in header.shapes), None)
    if prefix is None or prefix + _LAST not in header.shapes:
        return {}
    norm, picture, text, double, single = _ORIGINAL if prefix + _ORIGINAL[0] in header.shapes else _DIFFUSERS
    shapes = header.shapes
    names = (f"{prefix}{picture}.weight", f"{prefix}{text}.weight", prefix + _FIRST)
    if any(len(shapes.get(name, ())) != 2 for name in names):
        return {}
    head = shapes.get(prefix + norm, (TRANSFORMER_CONFIG["attention_head_dim"],))[0]

    def count(blocks: str) -> int:
        start = f"{prefix}{blocks}."
        return len({name[len(start) :].partition(".")[0] for name in shapes if name.startswith(start)})

    (width, token), (_, words), (hidden, told_in) = (shapes[name] for name in names)
    return {
        "in_channels": token,
        "num_layers": count(double),
        "num_single_layers": count(single),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": words,
        "approximator_num_channels": told_in,
        "approximator_hidden_dim": hidden,
        "approximator_layers": count(f"{APPROXIMATOR}.layers"),
    }
