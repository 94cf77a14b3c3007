"""Blocks as kohya's block weights count them: numbers computed by sd-scripts."""

from __future__ import annotations

import pytest

from trainer.adapters.lora.blocks import block_index
from trainer.families import FAMILIES


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
    names = [target.name for target in known.targets(known.configs, conv=True) if target.component == "unet"]
    indices = {block_index(name) for name in names}
    assert None not in indices
    assert indices == set(blocks)
