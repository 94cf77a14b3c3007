"""The layers that adapters attach to are those of kohya's files, and those of the real modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.helpers.checkpoints import TEXT_ENCODER, UNET
from trainer.families.sd15 import facts
from trainer.targets import Target

KEYS = json.loads((Path(__file__).parent / "data" / "lora_keys_sd15.json").read_text())
TINY_UNET = dict(facts.UNET_CONFIG) | UNET


def shapes(target: Target, rank: int) -> tuple[list[int], list[int]]:
    down, up = [rank, target.in_features], [target.out_features, rank]
    if target.kernel:
        return [*down, *target.kernel], [*up, 1, 1]
    return down, up


def test_names_shapes_and_order_are_kohyas() -> None:
    targets = facts.adapter_targets(facts.UNET_CONFIG, facts.TEXT_ENCODER_CONFIG, conv=False)
    made = [[target.name, *shapes(target, KEYS["rank"])] for target in targets]
    assert made == KEYS["modules"]
    assert not any(target.extra for target in targets)


def test_conv_variant_has_kohyas_counts() -> None:
    """sd-scripts makes 1050 keys and 7.56 M parameters at rank 8 with conv_dim 4."""
    targets = facts.adapter_targets(facts.UNET_CONFIG, facts.TEXT_ENCODER_CONFIG, conv=True)
    unet = [target for target in targets if target.component == "unet"]
    assert (len(targets) - len(unet), len(unet)) == (72, 278)
    parameters = 0
    for target in targets:
        rank = 4 if target.kernel == (3, 3) else 8
        window = 9 if target.kernel == (3, 3) else 1
        parameters += rank * (target.in_features * window + target.out_features)
    assert round(parameters / 1e6, 2) == 7.56


@pytest.mark.parametrize(
    ("unet_config", "text_config"),
    [(facts.UNET_CONFIG, facts.TEXT_ENCODER_CONFIG), (TINY_UNET, TEXT_ENCODER)],
    ids=["published", "tiny"],
)
def test_targets_are_the_layers_of_the_modules(unet_config: dict, text_config: dict) -> None:
    with init_empty_weights(include_buffers=False):
        modules = {
            "unet": UNet2DConditionModel(**unet_config),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_config)),
        }
    for target in facts.adapter_targets(unet_config, text_config, conv=True):
        layer = modules[target.component].get_submodule(target.path)
        if target.kernel is None:
            assert isinstance(layer, nn.Linear), target.path
            assert (layer.in_features, layer.out_features) == (target.in_features, target.out_features), target.path
        else:
            assert isinstance(layer, nn.Conv2d), target.path
            assert layer.kernel_size == target.kernel, target.path
            assert (layer.in_channels, layer.out_channels) == (target.in_features, target.out_features), target.path


def test_published_configurations_build_modules_of_the_published_size() -> None:
    with init_empty_weights():
        unet = UNet2DConditionModel(**facts.UNET_CONFIG)
        text_encoder = CLIPTextModel(CLIPTextConfig(**facts.TEXT_ENCODER_CONFIG))
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964
    assert sum(weight.numel() for weight in text_encoder.parameters()) == 123_060_480
    assert unet.dtype == torch.float32
