"""Blocks as kohya's block weights count them: numbers computed by sd-scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer.adapters import LoraSpec, make_spec
from trainer.adapters.blocks import block_index
from trainer.config import config_from_layers
from trainer.families import FAMILIES
from trainer.ground.errors import ConfigError, ModelError
from trainer.targets import Target


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in", 1),
        ("lora_unet_down_blocks_2_attentions_1_proj_in", 8),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", 3),
        ("lora_unet_mid_block_attentions_0_proj_in", 12),
        ("lora_unet_up_blocks_1_attentions_0_proj_in", 16),
        ("lora_unet_up_blocks_3_attentions_2_proj_out", 24),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", 15),
        ("lora_unet_input_blocks_4_1_proj_in", 5),
        ("lora_unet_input_blocks_8_1_proj_in", 9),
        ("lora_unet_middle_block_1_proj_in", 11),
        ("lora_unet_output_blocks_0_1_proj_in", 13),
        ("lora_unet_output_blocks_5_1_proj_in", 18),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", None),
    ],
)
def test_block_of_a_module(name: str, index: int | None) -> None:
    assert block_index(name) == index


@pytest.mark.parametrize(("family", "blocks"), [("sd15", range(1, 25)), ("sdxl", range(2, 22))])
def test_every_unet_layer_is_in_a_block(family: str, blocks: range) -> None:
    known = FAMILIES[family]
    targets = [target for target in known.targets(known.configs, conv=True) if target.component == "unet"]
    indices = {block_index(target.name) for target in targets if not target.rim}
    assert None not in indices
    assert indices == set(blocks)


GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_block_dims.json").read_text(encoding="utf-8"))
SQUARE = (3, 3)


def targets_of(family: str) -> tuple[Target, ...]:
    return FAMILIES[family].targets(FAMILIES[family].configs, conv=True)


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_ranks_and_alphas_by_block_are_those_of_sd_scripts(number: int) -> None:
    case = GOLDEN["cases"][number]
    flat = case["network_args"]
    config = config_from_layers([{**flat, "network_dim": 4, "network_alpha": 2.0} | numbers(flat)])
    spec = make_spec(config.network, ("unet",), config.lycoris, config.blocks)
    found: dict[str, list[list[float]]] = {}
    for target in spec.select(targets_of("sdxl" if case["sdxl"] else "sd15")):
        key = f"{block_index(target.name)} {'conv3' if target.kernel == SQUARE else 'linear'}"
        pair = [spec.rank(target), spec.alpha(target)]
        if pair not in found.setdefault(key, []):
            found[key].append(pair)
    expected = case["rank_alpha_by_block"]
    # Their model has attention in more blocks than the published SDXL.
    common = expected.keys() & found.keys()
    assert len(common) > 10
    assert {key: found[key] for key in common} == {key: expected[key] for key in common}
    left_out = {index for index, dim in enumerate(config.blocks.block_dims) if not dim}
    assert not {f"{index} linear" for index in left_out} & found.keys()


def numbers(flat: Mapping[str, str]) -> dict[str, object]:
    """Return the numbers that are no lists as numbers, as an import does."""
    return {key: float(value) if "." in value else int(value) for key, value in flat.items() if "," not in value}


def test_a_wrong_count_of_blocks_is_refused_with_the_right_one() -> None:
    spec = LoraSpec(4, 2.0, block_dims=(4,) * 25)
    spec.select(targets_of("sd15"))
    with pytest.raises(ModelError, match=r"block_dims has 25 numbers, and this model has 23 blocks"):
        spec.select(targets_of("sdxl"))


def test_layers_are_taken_in_left_out_and_ranked_by_name() -> None:
    plain = LoraSpec(4, 2.0, parts=("unet",))
    chosen = LoraSpec(
        4, 2.0, parts=("unet",), include_patterns=("mid_block_resnets",), exclude_patterns=("_ff_",),
        network_reg_dims=("attn1=8", "proj_in$=0"),
    )  # fmt: skip
    names = {target.name for target in plain.select(targets_of("sd15"))}
    ranks = {target.name: chosen.rank(target) for target in chosen.select(targets_of("sd15"))}
    assert not any("_ff_" in name or name.endswith("proj_in") for name in ranks)
    assert {name for name in ranks if name not in names} == {name for name in ranks if "mid_block_resnets" in name}
    assert {rank for name, rank in ranks.items() if "attn1" in name} == {8}
    assert {rank for name, rank in ranks.items() if "attn2" in name} == {4}


def test_settings_of_blocks_are_judged() -> None:
    with pytest.raises(ConfigError, match="set block_dims too"):
        config_from_layers([{"block_alphas": [1.0] * 25}])
    with pytest.raises(ConfigError, match="regular expressions"):
        config_from_layers([{"exclude_patterns": ["("]}])
    with pytest.raises(ConfigError, match="expression=rank"):
        config_from_layers([{"network_reg_dims": ["attn1"]}])
