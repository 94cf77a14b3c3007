"""Settings of LyCORIS' kinds of adapter: where they attach and what form they have."""

from __future__ import annotations

from trainer.adapters.coverage import PRESETS
from trainer.settings.section import Entry, Section, Show, There, setting

_IN_ARGUMENTS = Entry("ss_network_args", of_run=True)
_MATRICES = {"network_type": ("locon", "loha", "lokr")}
_LOKR = {"network_type": ("lokr",)}
_OFT = {"network_type": ("oft",)}


class LycorisSection(Section):
    """What kinds of adapter beyond the plain LoRA have, as LyCORIS names it."""

    lycoris_preset: str = setting(
        "",
        Show("Layers", group="Network", also=("preset",)),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There("", name="preset", inside="network_args"),
        choices=("", *PRESETS),
    )
    """Which layers are adapted. Left out: attention and feed-forward, with convolutions those of residual blocks too.

    "full" is everything that LyCORIS adapts, "attn-mlp" attention and feed-forward, "attn-only" attention alone; the
    names that begin with unet leave the text encoder out; "ia3" is what (IA)^3 was made for. 3x3 convolutions need a
    rank of their own besides (conv_dim).
    """

    lycoris_preset_file: str = setting(
        "",
        Show("Layers by a file", group="Network", widget="file", also=("preset_file",)),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There("", matters=False, name=None),
    )
    """A preset of LyCORIS of your own: a .toml file that says which classes and names of layers are adapted.

    It takes the place of the preset above. It may have enable_conv, unet_target_module, unet_target_name, the same for
    text_encoder, exclude_name and use_fnmatch, with the names of sd-scripts' models.
    """

    rs_lora: bool = setting(
        False,
        Show("Rank-stabilised scale", group="Network", also=("rslora",)),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, inside="network_args"),
    )
    """Divide alpha by the root of the rank in place of the rank (rsLoRA), so that high ranks learn as fast as low ones.

    The file's alpha says so, and every program reads it right. 16 at rank 64 is then a strength of 2, not of 0.25.
    """

    dora_wd: bool = setting(
        False,
        Show("DoRA", group="Network", when=_MATRICES, also=("dora", "weight_decompose")),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, inside="network_args"),
    )
    """Train how long the weights are apart from where they point (DoRA). Closer to full training, and slower.

    With locon, loha and lokr. ComfyUI reads it exactly where "DoRA by output" is off.
    """

    wd_on_output: bool = setting(
        False,
        Show("DoRA by output", group="Network", when={"dora_wd": (True,)}),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(True, matters=False, inside="network_args"),
    )
    """Take DoRA's lengths by output, as LyCORIS does by itself; off: by input.

    By output, ComfyUI and web UIs show 7 to 22 percent of the effect otherwise than it was trained; by input, LyCORIS'
    own loader refuses the file.
    """

    use_tucker: bool = setting(
        False,
        Show("Tucker's form", group="Network", when={"network_type": ("locon", "loha", "lokr"), "conv_dim": "*"}),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, once=("use_cp", "use_conv_cp"), opposite="disable_conv_cp", inside="network_args"),
    )
    """Give 3x3 convolutions a core of their own, which makes them far smaller. With lokr, ComfyUI skips such layers."""

    use_scalar: bool = setting(
        False,
        Show("Learned scale", group="Network", when=_MATRICES),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, inside="network_args"),
    )
    """Multiply what is added by a number that is learned from 0 on; it is part of a matrix in the file."""

    factor: int = setting(
        -1,
        Show("Factor", group="Network", when=_LOKR, also=("lokr_factor",)),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(-1, inside="network_args"),
        ge=-1,
        le=4096,
    )
    """What LoKr divides channels by: 4 to 16 are usual, larger is a smaller file; -1 divides as evenly as can be."""

    decompose_both: bool = setting(
        False,
        Show("Factor both matrices", group="Network", when=_LOKR),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, inside="network_args"),
    )
    """Let LoKr's small matrix be a product of two as well, where that is smaller."""

    full_matrix: bool = setting(
        False,
        Show("Whole matrices", group="Network", when=_LOKR),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, inside="network_args"),
    )
    """Keep both of LoKr's matrices whole, whatever the rank: what recipes with a rank of 100000 mean."""

    unbalanced_factorization: bool = setting(
        False,
        Show("Unbalanced factors", group="Network", when=_LOKR),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, inside="network_args"),
    )
    """Swap the two factors of LoKr's outputs. ComfyUI reads such files, LyCORIS' own loader does not."""

    train_on_input: bool = setting(
        False,
        Show("Scale inputs", group="Network", when={"network_type": ("ia3",)}),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, matters=False, inside="network_args"),
    )
    """Let (IA)^3 scale a layer's inputs in place of its outputs."""

    constraint: float = setting(
        0.0,
        Show("Constraint", group="Network", when=_OFT),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(0.0, inside="network_args"),
        ge=0,
        le=1000,
    )
    """How far OFT may turn; 0 = as far as it likes. ComfyUI takes it for another number: files are then read wrong."""

    rescaled: bool = setting(
        False,
        Show("Rescaled outputs", group="Network", when=_OFT),
        resume="fixed",
        metadata=_IN_ARGUMENTS,
        sd_scripts=There(False, inside="network_args"),
    )
    """Let OFT learn a multiplier of each output too. ComfyUI leaves it out: a seventh of the effect is then missing."""
