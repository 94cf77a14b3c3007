"""Settings of learning rates within an adapter: LoRA+, by block of the UNet, by a layer's name; and when to stop."""

from __future__ import annotations

from typing import Any

from trainer.config.values import parse_block_weights, parse_pattern_rates, parse_steps_or_share
from trainer.settings.section import NO_ENTRY, NOT_THERE, Entry, Section, Show, There, setting

_IN_ARGUMENTS = Entry("ss_network_args", of_run=True)
_RULE = "numbers such as 0.5,0.75,1, or cosine, sine, linear, reverse_linear or zeros, with +0.25 after it or without"
_RATIO: dict[str, Any] = {
    "resume": "fixed",
    "metadata": _IN_ARGUMENTS,
    "sd_scripts": There(None, inside="network_args"),
    "zero_is_off": True,
    "gt": 0,
    "le": 1000,
}
_BY_BLOCK: dict[str, Any] = {
    "resume": "fixed",
    "metadata": _IN_ARGUMENTS,
    "sd_scripts": There("", inside="network_args"),
    "parse": parse_block_weights,
    "rule": _RULE,
}


class RatesSection(Section):
    """Learning rates within an adapter, beside those of the model's parts."""

    loraplus_lr_ratio: float | None = setting(
        None,
        Show("LoRA+ ratio", group="Rates", when={"network_type": ("lora", "locon")}, also=("loraplus", "lora+")),
        **_RATIO,
    )
    """How many times faster a LoRA's second matrices learn than its first ones (LoRA+); 16 is what its authors advise.

    Off: equally fast. The learning rate is then that of the first matrices; it had better be lower than without.
    """

    loraplus_unet_lr_ratio: float | None = setting(
        None, Show("LoRA+ ratio of the UNet", group="Rates", when={"network_type": ("lora", "locon")}), **_RATIO
    )
    """LoRA+'s ratio for the UNet; left out it is the one for all."""

    loraplus_text_encoder_lr_ratio: float | None = setting(
        None, Show("LoRA+ ratio of text encoders", group="Rates", when={"network_type": ("lora", "locon")}), **_RATIO
    )
    """LoRA+'s ratio for text encoders; left out it is the one for all."""

    down_lr_weight: str = setting(
        "", Show("Rate of blocks down", group="Rates", also=("block_lr", "block_lr_weight")), **_BY_BLOCK
    )
    """What the UNet's rate is multiplied by in each block of the way down, the first block first; 0 leaves a block out.

    12 numbers, 9 for SDXL, such as "0,0,0.5,...", or a course over them: "cosine" falls from 1 to 0, "sine" rises,
    "linear" rises and "reverse_linear" falls along a line, "zeros" is 0. "cosine+.25" adds 0.25 to each.
    """

    mid_lr_weight: str = setting("", Show("Rate of blocks in the middle", group="Rates"), **_BY_BLOCK)
    """The same for the middle: 1 number, 3 for SDXL."""

    up_lr_weight: str = setting("", Show("Rate of blocks up", group="Rates"), **_BY_BLOCK)
    """The same for the way up: 12 numbers, 9 for SDXL, the deepest block first, or a course."""

    block_lr_zero_threshold: float = setting(
        0.0,
        Show("Smallest rate of a block", group="Rates"),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(0.0, inside="network_args"),
        ge=0,
        le=1000,
    )
    """Leave out the blocks that are given this or less above."""

    network_reg_lrs: tuple[str, ...] = setting(
        (),
        Show("Rates by name", group="Rates", widget="list"),
        resume="fixed",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        parse=parse_pattern_rates,
        rule='"expression=rate" each, such as "attn1=5e-5"',
    )
    """Learning rates by a layer's name in the file, each as "expression=rate"; the first that fits counts.

    0 leaves such layers out.

    They hold in place of the UNet's or the text encoder's rate and of those by block. LoRA+ multiplies them too.
    """

    stop_text_encoder_training: int | float = setting(
        0,
        Show("Stop the text encoder after", group="Rates", unit="steps", also=("stop_text_encoder_training_pct",)),
        resume="schedule",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        parse=parse_steps_or_share,
        rule="0 for never, a whole number of steps, or a share of all steps below 1",
    )
    """Train the text encoder for so many steps only, then the UNet alone; below 1 it is a share of all steps.

    Words settle long before looks do. What the text encoder has learned stays in the file. 0: it is trained to the end.
    """
