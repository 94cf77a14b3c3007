"""Every weight of FLUX.1's transformer and of T5's encoder with its shape, from configurations alone. No torch.

So a checkpoint's header tells whether it is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainer.families.flux.facts import DENOISER, T5
from trainer.families.flux.weight_names import LAYERS, SWAPPED, diffusers_names
from trainer.families.reading.folders import Shapes
from trainer.targets import Target

_LAST = "proj_out"


def transformer_shapes(config: Mapping[str, Any], targets: Iterable[Target]) -> Shapes:
    """Return {weight of the module that runs: shape}; of its linear layers `targets` are all but the last two."""
    found: dict[str, tuple[int, ...]] = {}
    width, head = config["num_attention_heads"] * config["attention_head_dim"], config["attention_head_dim"]
    inner = {each.path: (each.out_features, each.in_features) for each in targets if each.component == DENOISER}
    for path, shape in {**inner, SWAPPED: (2 * width, width), _LAST: (config["in_channels"], width)}.items():
        found |= {f"{path}.weight": shape, f"{path}.bias": shape[:1]}
    for blocks, count in (("transformer_blocks", "num_layers"), ("single_transformer_blocks", "num_single_layers")):
        norms = [layer for layer in LAYERS[blocks] if ".norm_" in layer]
        found |= {f"{blocks}.{number}.{norm}.weight": (head,) for number in range(config[count]) for norm in norms}
    return found


def as_diffusers(shapes: Shapes, targets: Iterable[Target]) -> Shapes:
    """Return a transformer's shapes under the names of diffusers, where what is one layer here is several."""
    parts = {each.path: each.parts for each in targets if each.component == DENOISER and each.parts}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        widths = parts.get(name.rpartition(".")[0], shape[:1])
        found |= {own: (width, *shape[1:]) for own, width in zip(diffusers_names(name), widths, strict=True)}
    return found


def t5_shapes(config: Mapping[str, Any], targets: Iterable[Target], component: str = T5) -> Shapes:
    """Return {weight: shape} of T5's encoder but for its table of tokens, which has one of two names."""
    return dict(_t5(config, targets, component))


def _t5(config: Mapping[str, Any], targets: Iterable[Target], component: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for each in targets:
        if each.component == component:
            yield f"{each.path}.weight", (each.out_features, each.in_features)
    width = (config["d_model"],)
    for number in range(config["num_layers"]):
        yield from ((f"encoder.block.{number}.layer.{half}.layer_norm.weight", width) for half in range(2))
    buckets = config.get("relative_attention_num_buckets", 32)
    yield "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (buckets, config["num_heads"])
    yield "encoder.final_layer_norm.weight", width
