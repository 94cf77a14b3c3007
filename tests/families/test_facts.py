"""The layers that adapters attach to are those of kohya's files, and those of the real modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.helpers.families import TINY
from trainer.families import FAMILIES, Recognition
from trainer.families.family import FILE, FOLDER, HUB
from trainer.families.unet.family import StableFamily
from trainer.targets import Target

DATA = Path(__file__).parents[1] / "data"
KEYS = json.loads((DATA / "lora_keys_sd15.json").read_text())
RANK = 8

# Modules of the text encoders and of the UNet without and with conv_dim, and million parameters at rank 8 with
# conv_dim 4: what sd-scripts makes.
COUNTS = {"sd15": (72, 192, 278, 7.56), "sd2": (138, 192, 278, 9.69), "sdxl": (72 + 192, 722, 788, 30.40)}


def stable(name: str) -> StableFamily:
    family = FAMILIES[name]
    assert isinstance(family, StableFamily)
    return family


def shapes(target: Target, rank: int) -> tuple[list[int], list[int]]:
    down, up = [rank, target.in_features], [target.out_features, rank]
    if target.kernel:
        return [*down, *target.kernel], [*up, 1, 1]
    return down, up


def recorded(family: str) -> list[list[Any]]:
    """Return [name, shape of the first matrix, shape of the second] of every module that sd-scripts makes, in order."""
    if family == "sd15":
        assert KEYS["rank"] == RANK
        return list(KEYS["modules"])
    lines = (line.split() for line in (DATA / f"lora_keys_{family}.txt").read_text().splitlines())
    return [
        [name, [RANK, int(taken), *([1, 1] if point else [])], [int(given), RANK, *([1, 1] if point else [])]]
        for name, taken, given, *point in lines
    ]


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_names_shapes_and_order_are_kohyas(family: str) -> None:
    targets = FAMILIES[family].targets(FAMILIES[family].configs, conv=False)
    assert [[target.name, *shapes(target, RANK)] for target in targets] == recorded(family)
    assert not any(target.extra for target in targets)


@pytest.mark.parametrize(("form", "kernel"), [(FILE, (1, 1)), (FOLDER, None), (HUB, None)])
def test_projections_of_stable_diffusion_2_follow_the_sources_layout(form: str, kernel: tuple[int, int] | None) -> None:
    """sd-scripts loads a single file into convolutions and a folder into linear layers, and its LoRAs show it."""
    family = FAMILIES["sd2"]
    targets = family.targets_of(Recognition("sd2", form, "x", family.configs), conv=False)
    found = {target.kernel for target in targets if target.path.endswith(("proj_in", "proj_out"))}
    assert found == {kernel}
    assert {target.kernel for target in targets if ".attn" in target.path or target.component != "unet"} == {None}


@pytest.mark.parametrize("family", sorted(TINY))
def test_counts_are_kohyas(family: str) -> None:
    text, plain, conv, millions = COUNTS[family]
    for with_conv, expected in ((False, plain), (True, conv)):
        listed = FAMILIES[family].targets(FAMILIES[family].configs, conv=with_conv)
        targets = [target for target in listed if not target.rim]
        assert len(listed) - len(targets) == (4 if with_conv and family != "sdxl" else 0)
        unet = [target for target in targets if target.component == "unet"]
        assert (len(targets) - len(unet), len(unet)) == (text, expected)
    parameters = 0
    for target in targets:
        rank = 4 if target.kernel == (3, 3) else RANK
        window = 9 if target.kernel == (3, 3) else 1
        parameters += rank * (target.in_features * window + target.out_features)
    assert round(parameters / 1e6, 2) == millions
    assert len({target.name for target in targets}) == len(targets)


@pytest.mark.parametrize("size", ["published", "tiny"])
@pytest.mark.parametrize("family", sorted(TINY))
def test_targets_are_the_layers_of_the_modules(family: str, size: str) -> None:
    configs = dict(FAMILIES[family].configs)
    if size == "tiny":
        configs = {name: {**config, **TINY[family].configs()[name]} for name, config in configs.items()}
    modules = empty_modules(stable(family), configs)
    for target in FAMILIES[family].targets_of(Recognition(family, FOLDER, "x", configs), conv=True):
        layer = modules[target.component].get_submodule(target.path)
        if target.kernel is None:
            assert isinstance(layer, nn.Linear), target.path
            assert (layer.in_features, layer.out_features) == (target.in_features, target.out_features), target.path
        else:
            assert isinstance(layer, nn.Conv2d), target.path
            assert layer.kernel_size == target.kernel, target.path
            assert (layer.in_channels, layer.out_channels) == (target.in_features, target.out_features), target.path


@pytest.mark.parametrize("size", ["published", "tiny"])
@pytest.mark.parametrize("family", sorted(TINY))
def test_every_weight_of_the_modules_is_known_with_its_shape(family: str, size: str) -> None:
    configs = dict(FAMILIES[family].configs)
    if size == "tiny":
        configs = {name: {**config, **TINY[family].configs()[name]} for name, config in configs.items()}
    modules = empty_modules(stable(family), configs)
    with init_empty_weights(include_buffers=False):
        modules["vae"] = AutoencoderKL(**configs["vae"])
    for component, shapes in FAMILIES[family].shapes(configs).items():
        state = modules[component].state_dict()
        found = {name.removeprefix("text_model."): tuple(weight.shape) for name, weight in state.items()}
        found.pop("embeddings.position_ids", None)
        assert dict(shapes) == found


def empty_modules(family: StableFamily, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    with init_empty_weights(include_buffers=False):
        modules: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**configs["unet"])}
        for encoder in family.facts.text_encoders:
            kind = CLIPTextModelWithProjection if encoder.projected else CLIPTextModel
            modules[encoder.component] = kind(CLIPTextConfig(**configs[encoder.component]))
    return modules


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("sd15", {"unet": 859_520_964, "text_encoder": 123_060_480}),
        ("sd2", {"unet": 865_910_724, "text_encoder": 340_387_840}),
        ("sdxl", {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}),
    ],
)
def test_published_configurations_build_modules_of_the_published_size(family: str, sizes: dict[str, int]) -> None:
    modules = empty_modules(stable(family), FAMILIES[family].configs)
    counted = {name: sum(weight.numel() for weight in module.parameters()) for name, module in modules.items()}
    assert counted == sizes
    assert all(module.dtype == torch.float32 for module in modules.values())
