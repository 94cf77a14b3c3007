"""How Anima's files are told, and how large their models are, from their headers. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.families.anima.facts import CHANNELS, CONDITIONER, DENOISER, PATCH, TEXT
from trainer.families.anima.weight_names import ADAPTER, BLOCKS
from trainer.families.reading.headers import Header

COMFYUI = "model.diffusion_model."
DENOISERS = ("net.", COMFYUI, "")
"""What names of transformer and adapter begin with: in the published file, in checkpoints, in finetunes."""
PREFIXES: Mapping[str, tuple[str, ...]] = {
    TEXT: ("text_encoders.qwen3_06b.transformer.model.", "model.", ""),
    "vae": ("vae.", ""),
}
"""{component: what its names begin with, in checkpoints and in files of its own}."""
SMALL = (".absmax", ".quant_map", ".nf4")

_PICTURE, _WORDS = "x_embedder.proj.1.weight", f"{ADAPTER}embed.weight"
_TOKEN = (CHANNELS + 1) * PATCH**2
"""Numbers in what the transformer takes as one token: those of latents, and of a mask that is nil."""
_VAES = ("decoder.conv1.weight", "decoder.conv_in.weight")


def prefix_of(header: Header) -> str | None:
    """Return what the names of transformer and adapter begin with; None where a file has not both."""
    return next(
        (each for each in DENOISERS if each + _PICTURE in header.shapes and each + _WORDS in header.shapes), None
    )


def is_anima(header: Header) -> bool:
    """Say whether a file has Anima's transformer, with its adapter."""
    prefix = prefix_of(header)
    if prefix is None or header.ends(*SMALL):
        return False
    return header.shapes[prefix + _PICTURE][1:] == (_TOKEN,) and bool(_transformer(header))


def holds_vae(header: Header) -> bool:
    """Say whether a file has a VAE whose layers count frames, of as many channels, alone or in a checkpoint."""
    names = (prefix + name for prefix in PREFIXES["vae"] for name in _VAES)
    found = [header.shapes[name] for name in names if name in header.shapes]
    return any(len(shape) == 5 and shape[1] == CHANNELS for shape in found)


def sizes(component: str, header: Header) -> dict[str, Any]:
    """Return what a file says of a component's configuration: how wide its layers are and how many it has."""
    made = {DENOISER: _transformer, CONDITIONER: _conditioner, TEXT: _text}.get(component)
    return made(header) if made is not None else {}


class _Shapes:
    """A component's weights behind their prefix."""

    def __init__(self, header: Header, prefix: str) -> None:
        self._shapes, self._prefix = header.shapes, prefix

    def size(self, name: str, axis: int = 0) -> int:
        """Return a size of a weight, 0 where it is not there."""
        shape = self._shapes.get(f"{self._prefix}{name}.weight", ())
        return shape[axis] if len(shape) > axis else 0

    def count(self, blocks: str) -> int:
        """Return how many blocks a list has."""
        start = re.compile(rf"{re.escape(self._prefix + blocks)}\.(\d+)\.")
        return len({found[1] for name in self._shapes if (found := start.match(name))})


def _transformer(header: Header) -> dict[str, Any]:
    prefix = prefix_of(header)
    if prefix is None:
        return {}
    there, first = _Shapes(header, prefix), f"{BLOCKS}.0"
    width, head = there.size("x_embedder.proj.1"), there.size(f"{first}.self_attn.q_norm")
    inner = there.size(f"{first}.mlp.layer1")
    if not (width and head and inner):
        return {}
    return {
        "num_layers": there.count(BLOCKS),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "mlp_ratio": inner / width,
        "text_embed_dim": there.size(f"{first}.cross_attn.k_proj", 1),
        "adaln_lora_dim": there.size(f"{first}.adaln_modulation_self_attn.1"),
    }


def _conditioner(header: Header) -> dict[str, Any]:
    prefix = prefix_of(header)
    there, first = _Shapes(header, f"{prefix}{ADAPTER}"), "blocks.0"
    width, head = there.size(f"{first}.self_attn.q_proj"), there.size(f"{first}.self_attn.q_norm")
    if prefix is None or not (width and head):
        return {}
    return {
        "target_vocab_size": there.size("embed"),
        "target_dim": there.size("embed", 1),
        "model_dim": width,
        "source_dim": there.size(f"{first}.cross_attn.k_proj", 1),
        "num_layers": there.count("blocks"),
        "num_attention_heads": width // head,
        "mlp_ratio": there.size(f"{first}.mlp.0") / width,
    }


def _text(header: Header) -> dict[str, Any]:
    prefix = next((each for each in PREFIXES[TEXT] if f"{each}embed_tokens.weight" in header.shapes), None)
    if prefix is None:
        return {}
    there, first = _Shapes(header, prefix), "layers.0"
    head = there.size(f"{first}.self_attn.q_norm")
    if not head:
        return {}
    return {
        "vocab_size": there.size("embed_tokens"),
        "hidden_size": there.size("embed_tokens", 1),
        "intermediate_size": there.size(f"{first}.mlp.gate_proj"),
        "num_hidden_layers": there.count("layers"),
        "num_attention_heads": there.size(f"{first}.self_attn.q_proj") // head,
        "num_key_value_heads": there.size(f"{first}.self_attn.k_proj") // head,
        "head_dim": head,
    }
