"""Every weight of a Stable Diffusion model with its shape, from configurations alone, and the names that files give it.

So a checkpoint's header tells whether it is whole. Names are diffusers' and transformers', those of text encoders
without the level "text_model.", which transformers 5 dropped from some of them; no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from trainer.families.family import FOLDER
from trainer.families.reading.folders import LEVEL, Shapes
from trainer.families.unet import weight_names
from trainer.families.unet.facts import CHUNK, UNET_PREFIX, VAE_PREFIX, TextEncoderFacts
from trainer.families.unet.targets import text_encoder_layers, unet_layers

_NORMS = {
    ".proj_in": "norm",
    ".attn1.to_q": "norm1",
    ".attn2.to_q": "norm2",
    ".ff.net.0.proj": "norm3",
    ".conv1": "norm1",
    ".conv2": "norm2",
}
"""The layer that follows a norm in a UNet, and the norm; it lies beside the layer's own block."""

_WITHOUT_BIAS = (".to_q", ".to_k", ".to_v")
_PROJECTION = "text_projection.weight"
_JOINED = 3
"""Query, key and value are one matrix in OpenCLIP's layout."""

Sizes = Iterator[tuple[str, tuple[int, ...]]]


def unet_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return {weight: shape} of a UNet."""
    return dict(_unet(config))


def text_shapes(config: Mapping[str, Any], *, projected: bool) -> Shapes:
    """Return {weight: shape} of a CLIP text encoder."""
    return dict(_text(config, projected=projected))


def vae_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return {weight: shape} of a VAE."""
    return dict(_vae(config))


def _unet(config: Mapping[str, Any]) -> Sizes:
    first, time = config["block_out_channels"][0], 4 * config["block_out_channels"][0]
    yield from _layer("conv_in", config["in_channels"], first, 3)
    yield from _layer("time_embedding.linear_1", first, time)
    yield from _layer("time_embedding.linear_2", time, time)
    if config.get("addition_embed_type") == "text_time":
        yield from _layer("add_embedding.linear_1", config["projection_class_embeddings_input_dim"], time)
        yield from _layer("add_embedding.linear_2", time, time)
    for layer in unet_layers(config):
        size = layer.kernel[0] if layer.kernel else 0
        bias = not layer.path.endswith(_WITHOUT_BIAS)
        yield from _layer(layer.path, layer.in_features, layer.out_features, size, bias=bias)
        for end, norm in _NORMS.items():
            if layer.path.endswith(end):
                yield from _norm(f"{layer.path.removesuffix(end)}.{norm}", layer.in_features)
    yield from _norm("conv_norm_out", first)
    yield from _layer("conv_out", first, config["out_channels"], 3)


def _text(config: Mapping[str, Any], *, projected: bool) -> Sizes:
    width = config["hidden_size"]
    yield "embeddings.token_embedding.weight", (config["vocab_size"], width)
    yield "embeddings.position_embedding.weight", (config.get("max_position_embeddings", CHUNK), width)
    for number in range(config["num_hidden_layers"]):
        for norm in ("layer_norm1", "layer_norm2"):
            yield from _norm(f"encoder.layers.{number}.{norm}", width)
    for layer in text_encoder_layers(config):
        yield from _layer(layer.path, layer.in_features, layer.out_features)
    yield from _norm("final_layer_norm", width)
    if projected:
        yield _PROJECTION, (config["projection_dim"], width)


def _vae(config: Mapping[str, Any]) -> Sizes:
    channels, depth = list(config["block_out_channels"]), config.get("layers_per_block", 1)
    latent, last = config["latent_channels"], channels[-1]
    yield from _layer("encoder.conv_in", config["in_channels"], channels[0], 3)
    yield from _levels("encoder.down_blocks", channels, depth, "downsamplers")
    yield from _middle("encoder", last, config)
    yield from _norm("encoder.conv_norm_out", last)
    yield from _layer("encoder.conv_out", last, 2 * latent, 3)
    yield from _layer("decoder.conv_in", latent, last, 3)
    yield from _middle("decoder", last, config)
    yield from _levels("decoder.up_blocks", channels[::-1], depth + 1, "upsamplers")
    yield from _norm("decoder.conv_norm_out", channels[0])
    yield from _layer("decoder.conv_out", channels[0], config["out_channels"], 3)
    if config.get("use_quant_conv", True):
        yield from _layer("quant_conv", 2 * latent, 2 * latent, 1)
    if config.get("use_post_quant_conv", True):
        yield from _layer("post_quant_conv", latent, latent, 1)


def _levels(path: str, channels: Sequence[int], depth: int, between: str) -> Sizes:
    before = channels[0]
    for level, width in enumerate(channels):
        for number in range(depth):
            yield from _residual(f"{path}.{level}.resnets.{number}", before, width)
            before = width
        if level < len(channels) - 1:
            yield from _layer(f"{path}.{level}.{between}.0.conv", width, width, 3)


def _middle(half: str, width: int, config: Mapping[str, Any]) -> Sizes:
    for number in range(2):
        yield from _residual(f"{half}.mid_block.resnets.{number}", width, width)
    if config.get("mid_block_add_attention", True):
        yield from _norm(f"{half}.mid_block.attentions.0.group_norm", width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _layer(f"{half}.mid_block.attentions.0.{name}", width, width)


def _residual(path: str, before: int, width: int) -> Sizes:
    yield from _norm(f"{path}.norm1", before)
    yield from _layer(f"{path}.conv1", before, width, 3)
    yield from _norm(f"{path}.norm2", width)
    yield from _layer(f"{path}.conv2", width, width, 3)
    if before != width:
        yield from _layer(f"{path}.conv_shortcut", before, width, 1)


def _layer(path: str, inner: int, outer: int, size: int = 0, *, bias: bool = True) -> Sizes:
    """Yield a linear layer's weights, or those of a convolution with a kernel of `size`."""
    yield f"{path}.weight", (outer, inner, *((size, size) if size else ()))
    if bias:
        yield f"{path}.bias", (outer,)


def _norm(path: str, width: int) -> Sizes:
    yield f"{path}.weight", (width,)
    yield f"{path}.bias", (width,)


# --- as files have them ---------------------------------------------------------------------------------------------


def unet_layouts(shapes: Shapes, config: Mapping[str, Any], form: str) -> Iterator[Shapes]:
    """Yield the weights of a UNet under the names of each layout that is read."""
    if form != FOLDER:
        original = {weight_names.unet_name(name, config): shape for name, shape in shapes.items()}
        yield {UNET_PREFIX + name: shape for name, shape in original.items()}
        yield original
    yield shapes


def vae_layouts(shapes: Shapes, config: Mapping[str, Any], form: str) -> Iterator[Shapes]:
    """Yield the weights of a VAE under the names of each layout that is read."""
    if form != FOLDER:
        original = {weight_names.vae_name(name, config): shape for name, shape in shapes.items()}
        yield {VAE_PREFIX + name: shape for name, shape in original.items()}
        yield original
    yield shapes
    yield {weight_names.vae_name_before_2023(name): shape for name, shape in shapes.items()}


def text_layouts(shapes: Shapes, facts: TextEncoderFacts, form: str) -> Iterator[Shapes]:
    """Yield the weights of a text encoder under the names of each layout that is read."""
    if form == FOLDER:
        yield shapes
        return
    levelled = {name if name == _PROJECTION else LEVEL + name: each for name, each in shapes.items()}
    for prefix in (facts.original, ""):
        for names in (shapes, levelled, _open_clip(levelled.items())):
            yield {prefix + name: shape for name, shape in names.items()}


def _open_clip(levelled: Iterable[tuple[str, tuple[int, ...]]]) -> Shapes:
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in levelled:
        theirs, third = weight_names.open_clip_name(name)
        shape = shape[::-1] if name == _PROJECTION else shape
        found[theirs] = shape if third is None else (_JOINED * shape[0], *shape[1:])
    return found
