"""Every weight of Anima's components with its shape, from their configurations alone. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainer.families.anima.facts import CONDITIONER, DENOISER, TEXT
from trainer.families.anima.targets import width_of
from trainer.families.reading.folders import Shapes
from trainer.targets import Target

_Sizes = Iterator[tuple[str, tuple[int, ...]]]
_BIASED = (".mlp.0", ".mlp.2")
"""The adapter's layers with a bias; no other layer of the three has one."""


def _linear(targets: Iterable[Target], component: str) -> _Sizes:
    for each in targets:
        if each.component == component:
            yield f"{each.path}.weight", (each.out_features, each.in_features)


def transformer_shapes(config: Mapping[str, Any], targets: Iterable[Target]) -> Shapes:
    """Return {weight of the transformer that runs: shape}."""
    found = dict(_linear(targets, DENOISER))
    found["time_embed.norm.weight"] = (width_of(config),)
    for number in range(config["num_layers"]):
        for norm in ("attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k"):
            found[f"transformer_blocks.{number}.{norm}.weight"] = (config["attention_head_dim"],)
    return found


def conditioner_shapes(config: Mapping[str, Any], targets: Iterable[Target]) -> Shapes:
    """Return {weight of the adapter: shape}."""
    width, given = config["model_dim"], config["target_dim"]
    found = dict(_linear(targets, CONDITIONER))
    found |= {f"{name.removesuffix('.weight')}.bias": shape[:1] for name, shape in found.items() if _biased(name)}
    for number in range(config["num_layers"]):
        block = f"blocks.{number}"
        found |= {f"{block}.norm_{part}.weight": (width,) for part in ("self_attn", "cross_attn", "mlp")}
        head = (width // config["num_attention_heads"],)
        found |= {f"{block}.{side}_attn.{which}_norm.weight": head for side in ("self", "cross") for which in "qk"}
    found |= {"embed.weight": (config["target_vocab_size"], given), "norm.weight": (given,)}
    found |= {"out_proj.weight": (given, width), "out_proj.bias": (given,)}
    if width != given:
        found |= {"in_proj.weight": (width, given), "in_proj.bias": (width,)}
    return found


def _biased(name: str) -> bool:
    return name.removesuffix(".weight").endswith(_BIASED)


def text_shapes(config: Mapping[str, Any], targets: Iterable[Target]) -> Shapes:
    """Return {weight of Qwen3: shape}."""
    width, head = (config["hidden_size"],), (config["head_dim"],)
    found = dict(_linear(targets, TEXT))
    for number in range(config["num_hidden_layers"]):
        layer = f"layers.{number}"
        found |= {f"{layer}.{norm}.weight": width for norm in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{layer}.self_attn.{which}_norm.weight": head for which in "qk"}
    return {**found, "embed_tokens.weight": (config["vocab_size"], *width), "norm.weight": width}
