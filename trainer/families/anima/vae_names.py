"""The weights of Qwen-Image's VAE: their shapes, and their names in the layout that ComfyUI's files have. No torch.

The layout is that of Wan's VAE, which it is made from (Wan Team 2025): lists of layers without names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.families.reading.folders import Shapes

_Sizes = Iterator[tuple[str, tuple[int, ...]]]

_WHOLE: Mapping[str, str] = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    **{
        f"{half}.{own}": f"{half}.{theirs}"
        for half in ("encoder", "decoder")
        for own, theirs in (
            ("conv_in", "conv1"),
            ("norm_out", "head.0"),
            ("conv_out", "head.2"),
            ("mid_block.resnets.0", "middle.0"),
            ("mid_block.attentions.0", "middle.1"),
            ("mid_block.resnets.1", "middle.2"),
        )
    },
}
"""{what names of diffusers begin with: what those of the original do}."""
_OF_BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_DOWN = re.compile(r"encoder\.down_blocks\.(\d+)\.(.+)")
_UP = re.compile(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)")


def original_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the original's name of a weight of diffusers' module."""
    if found := _DOWN.fullmatch(name):
        return f"encoder.downsamples.{found[1]}.{_inside(found[2])}"
    if found := _UP.fullmatch(name):
        block, kind, number, rest = found.groups()
        each = config["num_res_blocks"] + 1
        place = int(block) * (each + 1) + (each if kind == "upsamplers" else int(number))
        return f"decoder.upsamples.{place}.{_inside(rest)}"
    start = next((each for each in _WHOLE if name.startswith(f"{each}.")), "")
    return f"{_WHOLE[start]}.{_inside(name.removeprefix(f'{start}.'))}" if start else name


def _inside(rest: str) -> str:
    """Return the original's name of a weight within its block."""
    layer, _, kind = rest.partition(".")
    return f"{_OF_BLOCK[layer]}.{kind}" if layer in _OF_BLOCK else rest


def vae_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return {weight: shape} of the VAE."""
    widths = [config["base_dim"] * times for times in (1, *config["dim_mult"])]
    channels, pixels = config["z_dim"], config["input_channels"]
    return {
        **dict(_encoder(config, widths, 2 * channels, pixels)),
        **dict(_conv("quant_conv", 2 * channels, 2 * channels, (1, 1, 1))),
        **dict(_conv("post_quant_conv", channels, channels, (1, 1, 1))),
        **dict(_decoder(config, widths, channels, pixels)),
    }


def _encoder(config: Mapping[str, Any], widths: list[int], channels: int, pixels: int) -> _Sizes:
    yield from _conv("encoder.conv_in", pixels, widths[0])
    place, levels = 0, len(widths) - 1
    for level in range(levels):
        taken, given = widths[level : level + 2]
        for _ in range(config["num_res_blocks"]):
            yield from _residual(f"encoder.down_blocks.{place}", taken, given)
            taken, place = given, place + 1
        if level < levels - 1:
            yield from _conv(f"encoder.down_blocks.{place}.resample.1", given, given, (3, 3))
            if config["temperal_downsample"][level]:
                yield from _conv(f"encoder.down_blocks.{place}.time_conv", given, given, (3, 1, 1))
            place += 1
    yield from _middle("encoder.mid_block", widths[-1])
    yield "encoder.norm_out.gamma", (widths[-1], 1, 1, 1)
    yield from _conv("encoder.conv_out", widths[-1], channels)


def _decoder(config: Mapping[str, Any], widths: list[int], channels: int, pixels: int) -> _Sizes:
    upwards = [widths[-1], *reversed(widths[1:])]
    yield from _conv("decoder.conv_in", channels, upwards[0])
    yield from _middle("decoder.mid_block", upwards[0])
    levels, doubled = len(upwards) - 1, [*reversed(config["temperal_downsample"])]
    for level in range(levels):
        block = f"decoder.up_blocks.{level}"
        taken, given = upwards[level : level + 2]
        taken = taken // 2 if level else taken
        for number in range(config["num_res_blocks"] + 1):
            yield from _residual(f"{block}.resnets.{number}", taken, given)
            taken = given
        if level < levels - 1:
            yield from _conv(f"{block}.upsamplers.0.resample.1", given, given // 2, (3, 3))
            if doubled[level]:
                yield from _conv(f"{block}.upsamplers.0.time_conv", given, 2 * given, (3, 1, 1))
    yield "decoder.norm_out.gamma", (upwards[-1], 1, 1, 1)
    yield from _conv("decoder.conv_out", upwards[-1], pixels)


def _middle(start: str, width: int) -> _Sizes:
    yield from _residual(f"{start}.resnets.0", width, width)
    yield f"{start}.attentions.0.norm.gamma", (width, 1, 1)
    yield from _conv(f"{start}.attentions.0.to_qkv", width, 3 * width, (1, 1))
    yield from _conv(f"{start}.attentions.0.proj", width, width, (1, 1))
    yield from _residual(f"{start}.resnets.1", width, width)


def _residual(start: str, taken: int, given: int) -> _Sizes:
    for norm, width in (("norm1", taken), ("norm2", given)):
        yield f"{start}.{norm}.gamma", (width, 1, 1, 1)
    yield from _conv(f"{start}.conv1", taken, given)
    yield from _conv(f"{start}.conv2", given, given)
    if taken != given:
        yield from _conv(f"{start}.conv_shortcut", taken, given, (1, 1, 1))


def _conv(start: str, taken: int, given: int, kernel: tuple[int, ...] = (3, 3, 3)) -> _Sizes:
    yield f"{start}.weight", (given, taken, *kernel)
    yield f"{start}.bias", (given,)
