"""Settings of what comes out: files, sample pictures, logs, metadata."""

from __future__ import annotations

from typing import Literal

from trainer.config.values import parse_file_name
from trainer.settings.section import Section, Show, setting


class SavingSection(Section):
    """Where the LoRA goes, and how often it is saved."""

    output_dir: str = setting(
        "outputs",
        Show("Output folder", tab="basic", group="Saving", widget="folder", place=5, also=("output_folder",)),
        min_length=1,
    )
    """The folder for the LoRA files, and for the folder of the run beside them; made if it is not there."""

    output_name: str = setting(
        "lora",
        Show("Output name", tab="basic", group="Saving", place=4, also=("lora_name",)),
        parse=parse_file_name,
        min_length=1,
    )
    """The name of the LoRA file, without folder and ending: "lora" becomes lora.safetensors.

    Saves on the way are called lora-000004.safetensors (after epoch 4) and lora-step00000500.safetensors.
    """

    save_every_n_epochs: int | None = setting(
        1, Show("Save every", group="Saving", unit="epochs"), zero_is_off=True, ge=1, le=1_000_000
    )
    """Save a LoRA after every so many epochs, to choose the best from; 0 saves only the last."""

    save_every_n_steps: int | None = setting(
        None, Show("Save every", group="Saving", unit="steps"), zero_is_off=True, ge=1, le=1_000_000_000
    )
    """Save a LoRA after every so many steps."""

    save_last_n_epochs: int | None = setting(
        None, Show("Keep the last", group="Saving", unit="saves of epochs"), zero_is_off=True, ge=1, le=1_000_000
    )
    """Keep only so many of the LoRAs saved after epochs; older ones are deleted."""

    save_last_n_steps: int | None = setting(
        None, Show("Keep the last", group="Saving", unit="steps' saves"), zero_is_off=True, ge=1, le=1_000_000_000
    )
    """Keep only LoRAs saved within the last so many steps; older ones are deleted. Steps, not files."""

    save_precision: Literal["fp16", "bf16", "float"] = setting("fp16", Show("Precision of the file", group="Saving"))
    """Number format in the file: fp16 and bf16 make it half as large as float, which no one sees in pictures."""

    save_state_minutes: float = setting(
        5.0, Show("Save for resuming every", group="Saving", unit="minutes"), gt=0, le=10_000
    )
    """How much work an interruption may cost: the full state is saved this often, after each epoch and at a stop."""


class SamplingSection(Section):
    """Pictures drawn while training, to see how it goes."""

    sample_prompts: str = setting(
        "",
        Show(
            "Sample prompts",
            tab="basic",
            group="Samples",
            widget="multiline",
            place=13,
            also=("prompts", "validation_prompt"),
        ),
    )
    """What to draw: one prompt a line, or the path of a .txt file of such lines.

    A line may end with --n what to avoid, --w width, --h height, --d seed, --l guidance, --s steps, --ss sampler. A
    seed makes the pictures comparable. Lines that begin with # are left out.
    """

    sample_every_n_epochs: int | None = setting(
        None, Show("Sample every", group="Samples", unit="epochs"), zero_is_off=True, ge=1, le=1_000_000
    )
    """Draw the prompts after every so many epochs. Training waits meanwhile."""

    sample_every_n_steps: int | None = setting(
        None, Show("Sample every", group="Samples", unit="steps"), zero_is_off=True, ge=1, le=1_000_000_000
    )
    """Draw the prompts after every so many steps."""

    sample_at_first: bool = setting(False, Show("Sample before training", group="Samples"))
    """Draw the prompts once before the first step, to compare with."""

    sample_sampler: Literal[
        "ddim",
        "pndm",
        "lms",
        "euler",
        "euler_a",
        "heun",
        "dpm_2",
        "dpm_2_a",
        "dpmsolver",
        "dpmsolver++",
        "dpmsingle",
        "k_lms",
        "k_euler",
        "k_euler_a",
        "k_dpm_2",
        "k_dpm_2_a",
    ] = setting("euler_a", Show("Sampler", group="Samples"))
    """How samples are drawn, where the prompt's line does not say it."""


class LoggingSection(Section):
    """Logs beside the program's own."""

    logging_dir: str = setting("", Show("Log folder", group="Logging", widget="folder"))
    """Where TensorBoard's files go. Empty: into the folder of the run."""

    log_with: Literal["", "tensorboard"] = setting("", Show("Log with", group="Logging"))
    """Write the loss and the rates for TensorBoard too. The run's own log is always written."""


class MetadataSection(Section):
    """What the LoRA file says about itself."""

    metadata_title: str = setting("", Show("Title", group="Metadata"))
    """The title in the file's metadata; empty: the output name."""

    metadata_author: str = setting("", Show("Author", group="Metadata"))
    """Who made the LoRA, as the file will say."""

    metadata_description: str = setting("", Show("Description", group="Metadata", widget="multiline"))
    """What it does, such as the trigger word and the strength to use."""

    metadata_license: str = setting("", Show("Licence", group="Metadata"))
    """On what terms others may use it."""

    metadata_tags: str = setting("", Show("Tags", group="Metadata"))
    """Words to find it by, separated by commas."""

    training_comment: str = setting("", Show("Comment", group="Metadata", widget="multiline"))
    """A note on the training, kept in the file as ss_training_comment."""

    no_metadata: bool = setting(False, Show("Without metadata", group="Metadata"))
    """Write only what programs need to load the file.

    With metadata, the file tells its settings and the tags of the captions; never folders or paths.
    """
