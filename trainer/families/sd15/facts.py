"""Stable Diffusion 1.x as numbers and names: no weights, no torch.

Structure after Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; configurations as
published with the weights; names and order of the adapted layers as sd-scripts' networks/lora.py makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.targets import Target

LATENT_CHANNELS = 4
VAE_SCALE = 0.18215
"""Latents are multiplied by it, so that they have about unit variance."""
VAE_FACTOR = 8
"""Pixels per latent, each way."""
VOCABULARY = 49408
CHUNK = 77
"""Token ids that the text encoder takes at once: begin, 75 of text, end."""

UNET_CONFIG: Mapping[str, Any] = {
    "sample_size": 64,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}

VAE_CONFIG: Mapping[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 32,
    "scaling_factor": VAE_SCALE,
}

TEXT_ENCODER_CONFIG: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": CHUNK,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}

SCHEDULER_CONFIG: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "unet": UNET_CONFIG,
    "vae": VAE_CONFIG,
    "text_encoder": TEXT_ENCODER_CONFIG,
    "scheduler": SCHEDULER_CONFIG,
}

UNET_PREFIX = "lora_unet_"
TEXT_ENCODER_PREFIX = "lora_te_text_model_"
"""transformers 5 dropped the level "text_model" from its module paths; the names in files keep it."""

_POINT = (1, 1)
_SQUARE = (3, 3)


def adapter_targets(unet: Mapping[str, Any], text_encoder: Mapping[str, Any], *, conv: bool) -> tuple[Target, ...]:
    """List the layers that an adapter attaches to, in kohya's creation order.

    First the text encoder's attention and MLP, then the UNet's down, up and middle blocks: projections, attention and
    feed-forward of the transformers; with `conv` also the layers of residual blocks and of down- and upsamplers.

    Args:
        unet: configuration as `UNet2DConditionModel` takes it.
        text_encoder: configuration as `CLIPTextConfig` takes it.
        conv: whether `conv_dim` is set (kohya's LoRA-C3Lier).
    """
    layers = [
        *(_target("text_encoder", TEXT_ENCODER_PREFIX, layer) for layer in _text_encoder_layers(text_encoder)),
        *(_target("unet", UNET_PREFIX, layer) for layer in _unet_layers(unet)),
    ]
    return tuple(target for target in layers if conv or not target.extra)


@dataclass(frozen=True, slots=True)
class _Layer:
    path: str
    in_features: int
    out_features: int
    kernel: tuple[int, int] | None = None
    extra: bool = False


def _target(component: str, prefix: str, layer: _Layer) -> Target:
    name = prefix + layer.path.replace(".", "_")
    return Target(component, layer.path, name, layer.in_features, layer.out_features, layer.kernel, layer.extra)


def _text_encoder_layers(config: Mapping[str, Any]) -> Iterator[_Layer]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    for number in range(config["num_hidden_layers"]):
        path = f"encoder.layers.{number}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield _Layer(f"{path}.self_attn.{projection}", width, width)
        yield _Layer(f"{path}.mlp.fc1", width, inner)
        yield _Layer(f"{path}.mlp.fc2", inner, width)


def _unet_layers(config: Mapping[str, Any]) -> Iterator[_Layer]:
    channels: Sequence[int] = config["block_out_channels"]
    yield from _down_blocks(config, channels)
    yield from _up_blocks(config, list(reversed(channels)))
    path, width = "mid_block", channels[-1]
    yield from _transformer(f"{path}.attentions.0", width, config)
    for number in range(2):
        yield from _residual(f"{path}.resnets.{number}", width, width, config)


def _down_blocks(config: Mapping[str, Any], channels: Sequence[int]) -> Iterator[_Layer]:
    for level, width in enumerate(channels):
        path, before = f"down_blocks.{level}", channels[max(level - 1, 0)]
        layers = range(config["layers_per_block"])
        if config["down_block_types"][level].startswith("CrossAttn"):
            for number in layers:
                yield from _transformer(f"{path}.attentions.{number}", width, config)
        for number in layers:
            yield from _residual(f"{path}.resnets.{number}", width if number else before, width, config)
        if level < len(channels) - 1:
            yield _Layer(f"{path}.downsamplers.0.conv", width, width, _SQUARE, extra=True)


def _up_blocks(config: Mapping[str, Any], channels: Sequence[int]) -> Iterator[_Layer]:
    """Each residual block takes what came up from below joined with what the way down left at its height."""
    last = len(channels) - 1
    for level, width in enumerate(channels):
        path = f"up_blocks.{level}"
        below, left = channels[max(level - 1, 0)], channels[min(level + 1, last)]
        layers = range(config["layers_per_block"] + 1)
        if config["up_block_types"][level].startswith("CrossAttn"):
            for number in layers:
                yield from _transformer(f"{path}.attentions.{number}", width, config)
        for number in layers:
            skipped = left if number == layers[-1] else width
            yield from _residual(f"{path}.resnets.{number}", (width if number else below) + skipped, width, config)
        if level < last:
            yield _Layer(f"{path}.upsamplers.0.conv", width, width, _SQUARE, extra=True)


def _transformer(path: str, width: int, config: Mapping[str, Any]) -> Iterator[_Layer]:
    kernel = None if config.get("use_linear_projection") else _POINT
    yield _Layer(f"{path}.proj_in", width, width, kernel)
    for number in range(config.get("transformer_layers_per_block") or 1):
        block = f"{path}.transformer_blocks.{number}"
        yield from _attention(f"{block}.attn1", width, width)
        yield _Layer(f"{block}.ff.net.0.proj", width, 8 * width)
        yield _Layer(f"{block}.ff.net.2", 4 * width, width)
        yield from _attention(f"{block}.attn2", width, config["cross_attention_dim"])
    yield _Layer(f"{path}.proj_out", width, width, kernel)


def _attention(path: str, width: int, context: int) -> Iterator[_Layer]:
    yield _Layer(f"{path}.to_q", width, width)
    yield _Layer(f"{path}.to_k", context, width)
    yield _Layer(f"{path}.to_v", context, width)
    yield _Layer(f"{path}.to_out.0", width, width)


def _residual(path: str, before: int, width: int, config: Mapping[str, Any]) -> Iterator[_Layer]:
    time = 4 * config["block_out_channels"][0]
    yield _Layer(f"{path}.conv1", before, width, _SQUARE, extra=True)
    yield _Layer(f"{path}.time_emb_proj", time, width, extra=True)
    yield _Layer(f"{path}.conv2", width, width, _SQUARE, extra=True)
    if before != width:
        yield _Layer(f"{path}.conv_shortcut", before, width, _POINT, extra=True)
