"""Settings of what learns and for how long: the network, the length and precision of training."""

from __future__ import annotations

from typing import Literal

from trainer.adapters import KINDS
from trainer.settings.section import (
    NO_ENTRY,
    NOT_THERE,
    OWN_NAME,
    Absence,
    Entry,
    Section,
    Show,
    There,
    setting,
)


class NetworkSection(Section):
    """What is trained: the LoRA's kind and size, and where it attaches."""

    network_type: str = setting(
        "lora",
        Show("Kind of LoRA", group="Network", also=("lora_type",)),
        resume="fixed",
        metadata=Entry("ss_network_module", of_run=True),
        sd_scripts=There("lora", name="network_module"),
        choices=tuple(KINDS),
    )
    """The kind of adapter. "lora" is the standard one, which every program loads.

    The others are LyCORIS', and their files are for ComfyUI and web UIs. "locon" is LoRA with its options (DoRA,
    Tucker's form). "loha" multiplies two low ranks element by element: more expression for the size, rank 4 to 16 is
    plenty.
    "lokr" repeats a small pattern over a larger one: the smallest files. "ia3" only scales channels: tiny, weak, and
    ComfyUI does not read it. "oft" turns a layer's outputs and keeps their size; the rank is the side of its blocks.
    """

    network_dim: int = setting(
        32,
        Show(
            "Rank",
            tab="basic",
            group="Network",
            widget="slider",
            place=8,
            also=("rank", "dim", "network_rank", "lora_rank"),
        ),
        resume="fixed",
        metadata=Entry(of_run=True),
        sd_scripts=There(4),
        ge=1,
        le=4096,
    )
    """How much the LoRA can hold, and how large its file is. 32 is often enough.

    16 to 128 is in use, 2 to 8 for a trial. More also learns what it should not: backgrounds, compression, the style
    of the few pictures there are.
    """

    network_alpha: float = setting(
        16.0,
        Show("Alpha", tab="basic", group="Network", widget="slider", place=9, also=("alpha", "lora_alpha")),
        resume="fixed",
        metadata=Entry(of_run=True),
        sd_scripts=There(1),
        gt=0,
        le=4096,
        changes_memory=False,
    )
    """The LoRA's output is multiplied by alpha / rank, so it scales the learning rate with it. Usual: half the rank.

    8 to 128 is in use, not more than the rank. 16 at rank 32 halves the rate, 1 at rank 32 makes a thirty-second of
    it and wants a higher rate. When you change the rank, change alpha with it to keep the strength.
    """

    conv_dim: int | None = setting(
        None,
        Show("Rank of 3x3 convolutions", group="Network"),
        resume="fixed",
        metadata=Entry("ss_network_args", of_run=True),
        sd_scripts=There(None, inside="network_args"),
        zero_is_off=True,
        ge=1,
        le=4096,
    )
    """Train the 3x3 convolutions too, at this rank. Off: attention and feed-forward layers only.

    Gives a style finer texture for a larger file; at most the rank, often a half or a quarter of it.
    """

    conv_alpha: float | None = setting(
        None,
        Show("Alpha of 3x3 convolutions", group="Network", when={"conv_dim": "*"}),
        resume="fixed",
        metadata=Entry("ss_network_args", of_run=True),
        sd_scripts=There(None, inside="network_args"),
        gt=0,
        le=4096,
        changes_memory=False,
    )
    """Alpha of the 3x3 convolutions; left out it is 1."""

    network_train_unet_only: bool = setting(
        False, Show("UNet only", group="Network"), resume="fixed", metadata=NO_ENTRY, sd_scripts=There(False)
    )
    """Train the UNet and leave the text encoder as it is.

    Faster and smaller, since captions are encoded once. The meaning of words stays as in the base model.
    """

    network_train_text_encoder_only: bool = setting(
        False, Show("Text encoder only", group="Network"), resume="fixed", metadata=NO_ENTRY, sd_scripts=There(False)
    )
    """Train the text encoder and leave the UNet as it is; teaches words, hardly any looks."""

    network_weights: str = setting(
        "",
        Show("Go on from a LoRA", group="Network", widget="file"),
        resume="beginning",
        metadata=NO_ENTRY,
        sd_scripts=There(""),
    )
    """A LoRA file to begin from instead of from nothing.

    Loads its weights only. To go on with a run that was interrupted, resume that run instead.
    """

    dim_from_weights: bool = setting(
        False,
        Show("Rank from that LoRA", group="Network", when={"network_weights": "*"}),
        resume="fixed",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Take rank and alpha of each layer from the LoRA file begun from; the settings above are then not used."""

    init_lora_weights: str = setting(
        "",
        Show("Start", group="Network", when={"network_type": ("lora",)}, also=("pissa", "olora", "init")),
        resume="fixed",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        choices=("", "pissa", "olora"),
    )
    """What a LoRA starts from: nothing, or the strongest parts of the model's own weights, which it then moves.

    "pissa" takes the largest singular values, "olora" the first directions of a QR decomposition; both learn faster in
    the first steps. The file has twice the rank, so that it is a plain LoRA of the original model for every program.
    """

    base_weights: tuple[str, ...] = setting(
        (),
        Show("LoRAs in the model", group="Network", widget="files", also=("merge", "base_lora")),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(()),
        rule="a list of paths",
    )
    """LoRA files that are merged into the model before training, such as one of a style that is to stay.

    What is trained is then what is missing beside them: use the new LoRA together with these. Files of every kind that
    can be trained here are taken.
    """

    base_weights_multiplier: tuple[float, ...] = setting(
        (),
        Show("Strengths of LoRAs in the model", group="Network", widget="list", when={"base_weights": "*"}),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(()),
        rule="a list of numbers",
    )
    """How much of each of these LoRAs is merged, in their order; left out it is 1."""


class TrainingSection(Section):
    """How long, in what portions and in what precision."""

    train_batch_size: int = setting(
        1,
        Show(
            "Batch size",
            tab="basic",
            group="Training",
            widget="slider",
            unit="pictures",
            place=12,
            also=("batch_size",),
        ),
        resume="data",
        metadata=Entry("ss_batch_size_per_device"),
        sd_scripts=There(1),
        ge=1,
        le=1024,
        within="dataset",
    )
    """Pictures in one step. More is faster for each picture and steadier, and takes more memory.

    A larger batch means fewer steps for the same epochs and bears a higher learning rate.
    """

    gradient_accumulation_steps: int = setting(
        1,
        Show("Accumulation", group="Training", unit="batches", also=("gradient_accumulation", "grad_accum")),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(1),
        ge=1,
        le=4096,
    )
    """Add up the gradients of so many batches before one change: a larger batch without its memory.

    The number of steps falls as with a larger batch; the time for an epoch stays.
    """

    max_train_epochs: int | None = setting(
        10,
        Show(
            "Epochs",
            tab="basic",
            group="Training",
            place=11,
            also=("epoch", "epochs", "num_epochs", "num_train_epochs"),
        ),
        resume="schedule",
        metadata=Entry("ss_num_epochs", of_run=True),
        sd_scripts=There(None),
        zero_is_off=True,
        ge=1,
        le=1_000_000,
        changes_memory=False,
    )
    """How often all pictures, with their repeats, are gone through. 10 is usual; 2,000 to 3,000 steps is the aim.

    Set either this or the number of steps; where both are given in one place, the epochs count.
    """

    max_train_steps: int | None = setting(
        None,
        Show("Steps", group="Training", also=("steps", "max_steps")),
        resume="schedule",
        metadata=Entry(of_run=True),
        sd_scripts=There(1600),
        zero_is_off=True,
        ge=1,
        le=1_000_000_000,
        changes_memory=False,
    )
    """Stop after so many steps instead of after so many epochs."""

    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto",
        Show("Precision", group="Precision", also=("precision",)),
        resume="rounding",
        metadata=Entry(of_run=True),
        sd_scripts=There("no"),
    )
    """The precision of computing: "auto" takes bf16 where the GPU has it, else fp16, and full precision on a CPU.

    bf16 does not overflow and suits GPUs from 2020 on; fp16 suits older ones; "no" is float32, the largest, and on a
    GPU the slowest. The LoRA itself is trained in float32, unless one of the two settings below says otherwise.
    """

    full_bf16: bool = setting(
        False, Show("LoRA in bf16", group="Precision"), resume="fixed", metadata=NO_ENTRY, sd_scripts=There(False)
    )
    """Keep the LoRA and its gradients in bf16 too: half of their memory. It learns nearly as in float32.

    Each step is computed in float32 and rounded up or down by chance, so that changes too small for bf16 are not lost;
    the optimizer's state stays as it is in float32. Needs the precision bf16, which "auto" then becomes.
    """

    full_fp16: bool = setting(
        False, Show("LoRA in fp16", group="Precision"), resume="fixed", metadata=OWN_NAME, sd_scripts=There(False)
    )
    """Keep the LoRA and its gradients in fp16 too: half of their memory, for GPUs without bf16.

    Needs the precision fp16, which "auto" then becomes, and Adafactor, Lion or an optimizer whose name ends in 8bit or
    32bit: what the others remember of gradients is too small a number for fp16.
    """

    gradient_checkpointing: bool = setting(
        False,
        Show("Gradient checkpointing", group="Precision"),
        resume="rounding",
        metadata=OWN_NAME,
        sd_scripts=There(False),
    )
    """Take far less memory for somewhat more time: intermediate results are computed again. The result is the same."""

    step_down_on_out_of_memory: bool = setting(
        True,
        Show("Step down when memory runs out", group="Precision"),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
    )
    """Where a step runs out of memory, do it again with fewer pictures at a time, then with gradient checkpointing.

    The batch, its random numbers and the number of steps stay what they are, and the result is the same but for
    rounding; it takes longer. Off: the run ends with its state saved and says what to lower.
    """

    seed: int = setting(
        42,
        Show("Seed", group="Training"),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(Absence.REQUIRED),
        ge=0,
        le=2**32 - 1,
        changes_memory=False,
    )
    """Where all random choices come from; the same seed and settings give the same LoRA on the same machine."""

    torch_compile: bool = setting(
        False, Show("Compile", group="Precision"), resume="rounding", metadata=NO_ENTRY, sd_scripts=There(False)
    )
    """Let PyTorch compile the blocks of the UNet: faster steps after a minute or more of waiting at the start.

    For long runs on a GPU. The start takes one to several minutes more, again for each new size of picture, which the
    log tells; on a CPU it brings nothing. Needs a C++ compiler and, on a GPU, Triton. Where it fails, training goes on
    without, and says why.
    """

    deterministic: bool = setting(
        False, Show("Deterministic", group="Precision"), resume="rounding", metadata=NO_ENTRY, sd_scripts=NOT_THERE
    )
    """Use only GPU routines that give the same bits each time, at some cost in speed.

    On a CPU this is always so.
    """
