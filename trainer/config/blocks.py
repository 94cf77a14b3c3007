"""Settings of where an adapter is large or small: ranks by block and by name, and layers taken in or left out."""

from __future__ import annotations

from typing import Any

from trainer.config.values import parse_alphas, parse_dims, parse_pattern_dims, parse_patterns
from trainer.settings.section import NO_ENTRY, NOT_THERE, Entry, Section, Show, There, setting

_NUMBERS = "one number for each block, 25 (23 for SDXL), such as 4,4,8,..."
_BY_BLOCK: dict[str, Any] = {
    "resume": "fixed",
    "metadata": Entry("ss_network_args", of_run=True),
    "sd_scripts": There((), inside="network_args"),
}
_BY_NAME: dict[str, Any] = {"resume": "fixed", "metadata": NO_ENTRY, "sd_scripts": NOT_THERE}


class BlocksSection(Section):
    """Ranks and alphas by block of the UNet or by name, and which layers are taken in or left out."""

    block_dims: tuple[int, ...] = setting(
        (),
        Show("Ranks by block", group="Blocks", widget="list"),
        parse=parse_dims,
        rule=f"whole numbers from 0 to 4096, {_NUMBERS}",
        **_BY_BLOCK,
    )
    """The rank of each block of the UNet in place of one for all: 25 numbers, 23 for SDXL; 0 leaves a block out.

    For SD 1.x and 2.x: 0 is before the first block, down 1 to 11, middle 12, up 13 to 24. For SDXL: 1 to 9 down, 10 to
    12 middle, 13 to 21 up. The text encoder keeps the rank that is set above.
    """

    block_alphas: tuple[float, ...] = setting(
        (),
        Show("Alphas by block", group="Blocks", widget="list", when={"block_dims": "*"}),
        parse=parse_alphas,
        rule=f"numbers from 0 on, {_NUMBERS}",
        **_BY_BLOCK,
    )
    """The alpha of each block; left out it is the one for all."""

    conv_block_dims: tuple[int, ...] = setting(
        (),
        Show("Ranks of convolutions by block", group="Blocks", widget="list", when={"block_dims": "*"}),
        parse=parse_dims,
        rule=f"whole numbers from 0 to 4096, {_NUMBERS}",
        **_BY_BLOCK,
    )
    """The rank of the 3x3 convolutions of each block; needs ranks by block too."""

    conv_block_alphas: tuple[float, ...] = setting(
        (),
        Show("Alphas of convolutions by block", group="Blocks", widget="list", when={"block_dims": "*"}),
        parse=parse_alphas,
        rule=f"numbers from 0 on, {_NUMBERS}",
        **_BY_BLOCK,
    )
    """The alpha of the 3x3 convolutions of each block; left out it is the one for all convolutions."""

    include_patterns: tuple[str, ...] = setting(
        (),
        Show("Layers to take in", group="Blocks", widget="list"),
        parse=parse_patterns,
        rule="regular expressions",
        **_BY_NAME,
    )
    """Adapt every layer whose name in the file one of these expressions finds, whatever else is set.

    "mid_block_resnets" takes in the residual blocks of the middle. Names are those that `python launch.py keys` lists.
    """

    exclude_patterns: tuple[str, ...] = setting(
        (),
        Show("Layers to leave out", group="Blocks", widget="list"),
        parse=parse_patterns,
        rule="regular expressions",
        **_BY_NAME,
    )
    """Leave out every layer whose name in the file one of these expressions finds, such as "_ff_" or "attn2_to_k"."""

    network_reg_dims: tuple[str, ...] = setting(
        (),
        Show("Ranks by name", group="Blocks", widget="list"),
        parse=parse_pattern_dims,
        rule='"expression=rank" each, such as "attn1=8"',
        **_BY_NAME,
    )
    """Ranks by a layer's name in the file, each as "expression=rank"; the first that fits counts, 0 leaves it out."""
