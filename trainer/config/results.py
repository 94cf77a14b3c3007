"""Settings of what comes out: files, sample pictures, logs, metadata."""

from __future__ import annotations

from typing import Any, Literal

from trainer.config.values import parse_file_name, parse_lines
from trainer.settings.section import NO_ENTRY, NOT_THERE, OWN_NAME, Absence, Entry, Section, Show, There, setting

_APART: dict[str, Any] = {"resume": "free", "metadata": NO_ENTRY}
"""Of settings that change nothing of what is learned, and of which no file tells."""

_OFTEN: dict[str, Any] = {**_APART, "sd_scripts": There(None), "zero_is_off": True, "ge": 1}
_EPOCHS: dict[str, Any] = {**_OFTEN, "le": 1_000_000}
_STEPS: dict[str, Any] = {**_OFTEN, "le": 1_000_000_000}
"""Of settings that say every how many epochs or steps something is done."""


def _modelspec(name: str) -> dict[str, Any]:
    """Return what settings have in common that a file tells as an entry of modelspec's."""
    return {"resume": "free", "metadata": Entry(f"modelspec.{name}", of_run=True), "sd_scripts": There("")}


class SavingSection(Section):
    """Where the LoRA goes, and how often it is saved."""

    output_dir: str = setting(
        "outputs",
        Show("Output folder", tab="basic", group="Saving", widget="folder", place=5, also=("output_folder",)),
        **_APART,
        sd_scripts=There(Absence.REQUIRED),
        min_length=1,
        changes_memory=False,
    )
    """The folder for the LoRA files, and for the folder of the run beside them; made if it is not there."""

    output_name: str = setting(
        "lora",
        Show("Output name", tab="basic", group="Saving", place=4, also=("lora_name",)),
        resume="free",
        metadata=OWN_NAME,
        sd_scripts=There("last"),
        parse=parse_file_name,
        min_length=1,
        changes_memory=False,
    )
    """The name of the LoRA file, without folder and ending: "lora" becomes lora.safetensors.

    Saves on the way are called lora-000004.safetensors (after epoch 4) and lora-step00000500.safetensors.
    """

    save_every_n_epochs: int | None = setting(
        1, Show("Save every", group="Saving", unit="epochs"), **_EPOCHS, changes_memory=False
    )
    """Save a LoRA after every so many epochs, to choose the best from; 0 saves only the last."""

    save_every_n_steps: int | None = setting(
        None, Show("Save every", group="Saving", unit="steps"), **_STEPS, changes_memory=False
    )
    """Save a LoRA after every so many steps."""

    save_last_n_epochs: int | None = setting(
        None, Show("Keep the last", group="Saving", unit="saves of epochs"), **_EPOCHS, changes_memory=False
    )
    """Keep only so many of the LoRAs saved after epochs; older ones are deleted."""

    save_last_n_steps: int | None = setting(
        None, Show("Keep the last", group="Saving", unit="steps' saves"), **_STEPS, changes_memory=False
    )
    """Keep only LoRAs saved within the last so many steps; older ones are deleted. Steps, not files."""

    save_n_epoch_ratio: int | None = setting(
        None,
        Show("Save so many times", group="Saving", unit="files over all epochs"),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=There(None),
        zero_is_off=True,
        ge=1,
        le=1_000_000,
        changes_memory=False,
    )
    """Spread so many saves over the epochs, in place of "save every so many epochs": 5 of 20 epochs is every fourth."""

    save_state: bool = setting(
        False,
        Show("Keep states with the files", group="Saving"),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=There(False, matters=False),
        changes_memory=False,
    )
    """Keep the full state of each LoRA that is saved on the way, to go on from there; else the newest two are kept.

    They lie in the run's folder, and each takes about three times the LoRA's room in float32.
    """

    save_last_n_epochs_state: int | None = setting(
        None,
        Show("Keep the last", group="Saving", unit="states of epochs", when={"save_state": (True,)}),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=There(None, matters=False),
        zero_is_off=True,
        ge=1,
        le=1_000_000,
        changes_memory=False,
    )
    """Keep only so many of the states of epochs. Left out, as many as of the LoRAs saved after epochs."""

    save_last_n_steps_state: int | None = setting(
        None,
        Show("Keep the last", group="Saving", unit="steps' states", when={"save_state": (True,)}),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=There(None, matters=False),
        zero_is_off=True,
        ge=1,
        le=1_000_000_000,
        changes_memory=False,
    )
    """Keep only states of the last so many steps. Steps, not states. Left out, as with the LoRAs saved after steps."""

    use_ema: bool = setting(
        False,
        Show("Average of the LoRA", group="Saving", also=("ema", "enable_ema")),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
    )
    """Keep a moving average of the LoRA while it is trained, and save it beside each file, as NAME-ema.safetensors.

    An average is calmer than the newest step, which helps at high rates. It changes nothing of the training, and takes
    the LoRA's memory once more, in float32.
    """

    ema_decay: float = setting(
        0.999,
        Show("Decay of the average", group="Saving", when={"use_ema": (True,)}),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        gt=0,
        lt=1,
    )
    """How much of the average stays at each step: 0.999 is about the last thousand steps, 0.99 the last hundred.

    In the first steps it is less, so that the start is soon forgotten.
    """

    sample_ema: bool = setting(
        False,
        Show("Show the average", group="Saving", when={"use_ema": (True,)}),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
    )
    """Draw sample pictures, and validate, with the average in place of the newest step."""

    save_precision: Literal["fp16", "bf16", "float"] = setting(
        "fp16", Show("Precision of the file", group="Saving"), **_APART, sd_scripts=There("float"), changes_memory=False
    )
    """Number format in the file: fp16 and bf16 make it half as large as float, which no one sees in pictures."""

    save_state_minutes: float = setting(
        5.0,
        Show("Save for resuming every", group="Saving", unit="minutes"),
        **_APART,
        sd_scripts=NOT_THERE,
        gt=0,
        le=10_000,
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
        **_APART,
        sd_scripts=There(""),
        parse=parse_lines,
    )
    """What to draw: one prompt a line, or the path of a .txt file of such lines, or of a .toml or .json of sd-scripts.

    A line may end with --n what to avoid, --w width, --h height, --d seed, --l guidance, --s steps, --ss sampler. A
    seed makes the pictures comparable. Lines that begin with # are left out.
    """

    sample_every_n_epochs: int | None = setting(
        None,
        Show("Sample every", group="Samples", unit="epochs"),
        **_EPOCHS,
    )
    """Draw the prompts after every so many epochs. Training waits meanwhile."""

    sample_every_n_steps: int | None = setting(
        None,
        Show("Sample every", group="Samples", unit="steps"),
        **_STEPS,
    )
    """Draw the prompts after every so many steps."""

    sample_at_first: bool = setting(
        False,
        Show("Sample before training", group="Samples"),
        **_APART,
        sd_scripts=There(False),
    )
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
    ] = setting("euler_a", Show("Sampler", group="Samples"), **_APART, sd_scripts=There("ddim"))
    """How samples are drawn, where the prompt's line does not say it."""


class LoggingSection(Section):
    """Logs beside the program's own."""

    logging_dir: str = setting(
        "", Show("Log folder", group="Logging", widget="folder"), **_APART, sd_scripts=There(""), changes_memory=False
    )
    """Where TensorBoard's files go, each run's into a folder of its name. Empty: into the folder of the run."""

    log_with: Literal["", "tensorboard"] = setting(
        "", Show("Log with", group="Logging"), **_APART, sd_scripts=There(""), changes_memory=False
    )
    """Write the loss and the rates for TensorBoard too. The run's own log is always written."""


class MetadataSection(Section):
    """What LoRA files say about themselves, and in whose names they are written."""

    save_copy_for: Literal["none", "diffusers", "comfyui"] = setting(
        "none",
        Show("Second file for", group="Saving", also=("key names", "lora_format")),
        changes_memory=False,
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
    )
    """Write beside each file one with another program's key names, as NAME-diffusers.safetensors or NAME-comfyui.

    The first has kohya's names, which ComfyUI, web UIs and diffusers read. diffusers leaves some layers of some models
    out without a word; in its own names it reads all of them. For network_type "lora" alone.
    """

    metadata_title: str = setting("", Show("Title", group="Metadata"), **_modelspec("title"), changes_memory=False)
    """The title in the file's metadata; empty: the output name."""

    metadata_author: str = setting("", Show("Author", group="Metadata"), **_modelspec("author"), changes_memory=False)
    """Who made the LoRA, as the file will say."""

    metadata_description: str = setting(
        "", Show("Description", group="Metadata", widget="multiline"), **_modelspec("description"), changes_memory=False
    )
    """What it does, such as the trigger word and the strength to use."""

    metadata_license: str = setting(
        "", Show("Licence", group="Metadata"), **_modelspec("license"), changes_memory=False
    )
    """On what terms others may use it."""

    metadata_tags: str = setting("", Show("Tags", group="Metadata"), **_modelspec("tags"), changes_memory=False)
    """Words to find it by, separated by commas."""

    training_comment: str = setting(
        "",
        Show("Comment", group="Metadata", widget="multiline"),
        resume="free",
        metadata=Entry(write=lambda comment: comment or None),
        sd_scripts=There(""),
        changes_memory=False,
    )
    """A note on the training, kept in the file as ss_training_comment."""

    no_metadata: bool = setting(
        False, Show("Without metadata", group="Metadata"), **_APART, sd_scripts=There(False), changes_memory=False
    )
    """Write only what programs need to load the file, and title, author and the other words above.

    With metadata, the file tells its settings, the tags of the captions and the names of numbered folders, such as
    "10_sks dog"; never paths.
    """
