"""The layers of FLUX.1 and its text encoders that adapters attach to, in the order in which kohya's files have them.

Names and order are those of sd-scripts' networks/lora_flux.py: every linear layer of the blocks as the original has
them, and, where ranks for them are set, those before the blocks. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.families.family import ComponentConfigs
from trainer.families.flux.facts import CLIP, DENOISER, MLP_RATIO, T5, TIMES
from trainer.families.flux.weight_names import DOUBLE, SINGLE, original_layer
from trainer.targets import Target

CLIP_PREFIX, T5_PREFIX, PREFIX = "lora_te1_text_model_", "lora_te3_", "lora_unet_"

_DOUBLE = (
    ("norm1.linear", "img_mod", 1, 6),
    ("attn.qkv", "img_attn", 1, 3),
    ("attn.to_out.0", "img_attn", 1, 1),
    ("ff.net.0.proj", "img_mlp", 1, MLP_RATIO),
    ("ff.net.2", "img_mlp", MLP_RATIO, 1),
    ("norm1_context.linear", "txt_mod", 1, 6),
    ("attn.added_qkv", "txt_attn", 1, 3),
    ("attn.to_add_out", "txt_attn", 1, 1),
    ("ff_context.net.0.proj", "txt_mlp", 1, MLP_RATIO),
    ("ff_context.net.2", "txt_mlp", MLP_RATIO, 1),
)
_SINGLE = (
    ("linear1", "single", 1, 3 + MLP_RATIO),
    ("proj_out", "single", 1 + MLP_RATIO, 1),
    ("norm.linear", "single_mod", 1, 3),
)
"""Layer, the setting of its rank without "_dim", inputs and outputs in widths of the model."""


def adapter_targets(configs: ComponentConfigs) -> tuple[Target, ...]:
    """List the layers that an adapter attaches to, in kohya's creation order: CLIP-L, T5, double blocks, single blocks,
    and those before the blocks, which are marked as the model's rim."""
    config = configs[DENOISER]
    return (*_clip(configs[CLIP]), *t5_targets(configs[T5]), *block_targets(config), *_before(config))


def _clip(config: Mapping[str, Any]) -> Iterator[Target]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    for number in range(config["num_hidden_layers"]):
        path = f"encoder.layers.{number}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shares = "" if projection == "out_proj" else f"{path}.self_attn"
            yield _text(CLIP, CLIP_PREFIX, f"{path}.self_attn.{projection}", width, width, shares)
        yield _text(CLIP, CLIP_PREFIX, f"{path}.mlp.fc1", width, inner)
        yield _text(CLIP, CLIP_PREFIX, f"{path}.mlp.fc2", inner, width)


def t5_targets(config: Mapping[str, Any], component: str = T5) -> Iterator[Target]:
    """Yield the layers of T5's encoder."""
    width, inner, heads = config["d_model"], config["d_ff"], config["num_heads"] * config["d_kv"]
    for number in range(config["num_layers"]):
        attention = f"encoder.block.{number}.layer.0.SelfAttention"
        for projection in "qkv":
            yield _text(component, T5_PREFIX, f"{attention}.{projection}", width, heads, attention)
        yield _text(component, T5_PREFIX, f"{attention}.o", heads, width)
        dense = f"encoder.block.{number}.layer.1.DenseReluDense"
        for projection in ("wi_0", "wi_1"):
            yield _text(component, T5_PREFIX, f"{dense}.{projection}", width, inner, dense)
        yield _text(component, T5_PREFIX, f"{dense}.wo", inner, width)


def _text(component: str, prefix: str, path: str, inputs: int, outputs: int, shares: str = "") -> Target:
    return Target(component, path, prefix + path.replace(".", "_"), inputs, outputs, shares=shares)


def block_targets(config: Mapping[str, Any]) -> Iterator[Target]:
    """Yield the layers of double and single blocks."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    lists = (
        ("transformer_blocks", config["num_layers"], DOUBLE, _DOUBLE),
        ("single_transformer_blocks", config["num_single_layers"], SINGLE, _SINGLE),
    )
    for blocks, count, kind, layers in lists:
        for number in range(count):
            for layer, group, inputs, outputs in layers:
                path = f"{blocks}.{number}.{layer}"
                parts = _parts(layer, width)
                yield denoiser_target(path, inputs * width, outputs * width, group, (kind.split("_")[0], number), parts)


def _parts(layer: str, width: int) -> tuple[int, ...]:
    """Return the widths of the layers that one of them is made of: query, key, value, and the feed-forward's first."""
    if layer.endswith("qkv"):
        return (width,) * 3
    return (*(width,) * 3, MLP_RATIO * width) if layer == "linear1" else ()


def _before(config: Mapping[str, Any]) -> Iterator[Target]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    yield denoiser_target("x_embedder", config["in_channels"], width, "img_in")
    told = [("timestep_embedder", "time_in", TIMES), ("text_embedder", "vector_in", config["pooled_projection_dim"])]
    if config["guidance_embeds"]:
        told.append(("guidance_embedder", "guidance_in", TIMES))
    for embedder, group, inputs in told:
        yield denoiser_target(f"time_text_embed.{embedder}.linear_1", inputs, width, group)
        yield denoiser_target(f"time_text_embed.{embedder}.linear_2", width, width, group)
    yield denoiser_target("context_embedder", config["joint_attention_dim"], width, "txt_in")


def denoiser_target(
    path: str,
    inputs: int,
    outputs: int,
    group: str,
    block: tuple[str, int] | None = None,
    parts: tuple[int, ...] = (),
) -> Target:
    """Return a layer of the transformer; one in no block is marked as the model's rim."""
    name = PREFIX + original_layer(path).replace(".", "_")
    rim = block is None
    return Target(DENOISER, path, name, inputs, outputs, extra=rim, rim=rim, group=group, block=block, parts=parts)
