"""The layers of UNets and text encoders that adapters attach to, in the order in which kohya's files have them.

Names and order are those that sd-scripts' networks/lora.py makes by walking its modules; no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.families.family import ComponentConfigs
from trainer.families.unet.facts import UNET_ADAPTER_PREFIX, StableFacts, TextEncoderFacts
from trainer.families.unet.weight_names import unet_name
from trainer.targets import Target

_POINT = (1, 1)
_SQUARE = (3, 3)
_ORIGINAL_PLACE = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.(\d+))?\.")
_TEXT_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_STAGES = ("input_blocks", "middle_block", "output_blocks")


def adapter_targets(
    facts: StableFacts, configs: ComponentConfigs, *, conv: bool, single_file: bool = True
) -> tuple[Target, ...]:
    """List the layers that an adapter attaches to, in kohya's creation order.

    First the attention and MLP of the text encoders, then of the UNet the projections, attention and feed-forward of
    its transformers; with `conv` also the layers of residual blocks and of down- and upsamplers, and those
    outside of all blocks, which are marked as the model's rim.

    Args:
        configs: each component's, as its class of diffusers or transformers takes it.
        conv: whether `conv_dim` is set (kohya's LoRA-C3Lier).
        single_file: whether the checkpoint is one file, and no folder of diffusers'.
    """
    unet = configs["unet"]
    if single_file and facts.projections_as_convolutions:
        unet = {**unet, "use_linear_projection": False}
    layers = [
        *(
            _text_target(encoder, layer)
            for encoder in facts.text_encoders
            for layer in text_encoder_layers(configs[encoder.component])
        ),
        *(_original_order(unet) if facts.original_names else _diffusers_order(unet)),
    ]
    return tuple(target for target in layers if conv or not target.extra)


@dataclass(frozen=True, slots=True)
class _Layer:
    path: str
    in_features: int
    out_features: int
    kernel: tuple[int, int] | None = None
    extra: bool = False
    shares: str = ""
    rim: bool = False

    def target(self, component: str, path: str, name: str, alias: str = "") -> Target:
        """Return the layer as what an adapter attaches to; `name` and `alias` have dots still."""
        return Target(
            component,
            path,
            name.replace(".", "_"),
            self.in_features,
            self.out_features,
            self.kernel,
            self.extra,
            self.shares,
            alias.replace(".", "_"),
            rim=self.rim,
        )


def _text_target(encoder: TextEncoderFacts, layer: _Layer) -> Target:
    # transformers 5 dropped the level "text_model" from the module without projection; the names in files keep it.
    path = f"text_model.{layer.path}" if encoder.projected else layer.path
    return layer.target(encoder.component, path, encoder.adapter + layer.path)


def _diffusers_order(config: Mapping[str, Any]) -> Iterator[Target]:
    for layer in (*unet_layers(config), *_rim(config)):
        yield layer.target("unet", layer.path, UNET_ADAPTER_PREFIX + layer.path)


def _rim(config: Mapping[str, Any]) -> Iterator[_Layer]:
    """Yield the layers outside the blocks that LyCORIS finds by diffusers' names."""
    first = config["block_out_channels"][0]
    yield _Layer("conv_in", config["in_channels"], first, _SQUARE, extra=True, rim=True)
    yield _Layer("conv_out", first, config["out_channels"], _SQUARE, extra=True, rim=True)
    yield _Layer("time_embedding.linear_1", first, 4 * first, extra=True, rim=True)
    yield _Layer("time_embedding.linear_2", 4 * first, 4 * first, extra=True, rim=True)


def _original_order(config: Mapping[str, Any]) -> Iterator[Target]:
    """Yield the layers under the original layout's names, as they follow one another there.

    Some files have diffusers' names for them, which sd-scripts reads as well.
    """
    named = [
        (unet_name(f"{layer.path}.weight", config).removesuffix(".weight"), layer) for layer in unet_layers(config)
    ]
    for name, layer in sorted(named, key=lambda pair: _original_place(pair[0])):
        alias = UNET_ADAPTER_PREFIX + layer.path
        yield layer.target("unet", layer.path, UNET_ADAPTER_PREFIX + name, alias)


def _original_place(name: str) -> tuple[int, int, int]:
    """Return where a layer's block stands; the order inside a block is the same in both layouts."""
    found = _ORIGINAL_PLACE.match(name)
    assert found is not None, f"{name} is in no block"
    stage, number, part = found.groups()
    return _STAGES.index(stage), int(number), int(part or 0)


def text_encoder_layers(config: Mapping[str, Any]) -> Iterator[_Layer]:
    """Yield a text encoder's linear layers, without the level "text_model."."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    for number in range(config["num_hidden_layers"]):
        path = f"encoder.layers.{number}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shares = "" if projection == "out_proj" else f"{path}.self_attn"
            yield _Layer(f"{path}.self_attn.{projection}", width, width, shares=shares)
        yield _Layer(f"{path}.mlp.fc1", width, inner)
        yield _Layer(f"{path}.mlp.fc2", inner, width)


def text_layer(path: str) -> int:
    """Return the number, from 0, of the text encoder's layer that a target's path is in."""
    found = _TEXT_LAYER.search(path)
    assert found is not None, f"{path} is in no layer"
    return int(found.group(1))


def unet_layers(config: Mapping[str, Any]) -> Iterator[_Layer]:
    """Yield the layers of a UNet's blocks."""
    channels: Sequence[int] = config["block_out_channels"]
    yield from _down_blocks(config, channels)
    yield from _up_blocks(config, list(reversed(channels)))
    path, width = "mid_block", channels[-1]
    yield from _transformer(f"{path}.attentions.0", width, transformer_depths(config)[-1], config)
    for number in range(2):
        yield from _residual(f"{path}.resnets.{number}", width, width, config)


def transformer_depths(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return how many transformer blocks each level's attentions have, from the finest level down."""
    depth = config.get("transformer_layers_per_block") or 1
    levels = len(config["block_out_channels"])
    return (depth,) * levels if isinstance(depth, int) else tuple(depth)


def _down_blocks(config: Mapping[str, Any], channels: Sequence[int]) -> Iterator[_Layer]:
    for level, (width, depth) in enumerate(zip(channels, transformer_depths(config), strict=True)):
        path, before = f"down_blocks.{level}", channels[max(level - 1, 0)]
        layers = range(config["layers_per_block"])
        if config["down_block_types"][level].startswith("CrossAttn"):
            for number in layers:
                yield from _transformer(f"{path}.attentions.{number}", width, depth, config)
        for number in layers:
            yield from _residual(f"{path}.resnets.{number}", width if number else before, width, config)
        if level < len(channels) - 1:
            yield _Layer(f"{path}.downsamplers.0.conv", width, width, _SQUARE, extra=True)


def _up_blocks(config: Mapping[str, Any], channels: Sequence[int]) -> Iterator[_Layer]:
    """Each residual block takes what came up from below joined with what the way down left at its height."""
    last = len(channels) - 1
    for level, (width, depth) in enumerate(zip(channels, reversed(transformer_depths(config)), strict=True)):
        path = f"up_blocks.{level}"
        below, left = channels[max(level - 1, 0)], channels[min(level + 1, last)]
        layers = range(config["layers_per_block"] + 1)
        if config["up_block_types"][level].startswith("CrossAttn"):
            for number in layers:
                yield from _transformer(f"{path}.attentions.{number}", width, depth, config)
        for number in layers:
            skipped = left if number == layers[-1] else width
            yield from _residual(f"{path}.resnets.{number}", (width if number else below) + skipped, width, config)
        if level < last:
            yield _Layer(f"{path}.upsamplers.0.conv", width, width, _SQUARE, extra=True)


def _transformer(path: str, width: int, depth: int, config: Mapping[str, Any]) -> Iterator[_Layer]:
    kernel = None if config.get("use_linear_projection") else _POINT
    yield _Layer(f"{path}.proj_in", width, width, kernel)
    for number in range(depth):
        block = f"{path}.transformer_blocks.{number}"
        yield from _attention(f"{block}.attn1", width, width, looks_at_itself=True)
        yield _Layer(f"{block}.ff.net.0.proj", width, 8 * width)
        yield _Layer(f"{block}.ff.net.2", 4 * width, width)
        yield from _attention(f"{block}.attn2", width, config["cross_attention_dim"], looks_at_itself=False)
    yield _Layer(f"{path}.proj_out", width, width, kernel)


def _attention(path: str, width: int, context: int, *, looks_at_itself: bool) -> Iterator[_Layer]:
    yield _Layer(f"{path}.to_q", width, width, shares=path if looks_at_itself else "")
    yield _Layer(f"{path}.to_k", context, width, shares=path)
    yield _Layer(f"{path}.to_v", context, width, shares=path)
    yield _Layer(f"{path}.to_out.0", width, width)


def _residual(path: str, before: int, width: int, config: Mapping[str, Any]) -> Iterator[_Layer]:
    time = 4 * config["block_out_channels"][0]
    yield _Layer(f"{path}.conv1", before, width, _SQUARE, extra=True)
    yield _Layer(f"{path}.time_emb_proj", time, width, extra=True)
    yield _Layer(f"{path}.conv2", width, width, _SQUARE, extra=True)
    if before != width:
        yield _Layer(f"{path}.conv_shortcut", before, width, _POINT, extra=True)
