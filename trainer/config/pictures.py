"""Settings of what goes in: the pictures and their captions."""

from __future__ import annotations

import math

from trainer.config.values import parse_extension, parse_resolution, parse_steps_or_share, size_of
from trainer.families import FAMILIES
from trainer.settings.section import NO_ENTRY, NOT_THERE, OWN_NAME, Absence, Entry, Section, Show, There, setting

LATENT_STEP = math.gcd(*(family.latents.step for family in FAMILIES.values()))
"""Pixels that sides of pictures are multiples of, whatever the model; some families ask for more."""


class DatasetSection(Section):
    """The pictures: folders, size, buckets, caching."""

    train_data_dir: str = setting(
        "",
        Show(
            "Picture folder",
            tab="basic",
            group="Pictures",
            widget="folder",
            place=2,
            also=("image_dir", "img_dir", "dataset_dir", "data_dir"),
        ),
        resume="data",
        metadata=Entry("ss_dataset_dirs", of_run=True),
        sd_scripts=There(Absence.REQUIRED),
    )
    """The folder that holds one folder for each concept, named N_trigger class, such as "10_sks dog".

    N says how often its pictures are repeated in one epoch; the rest of the name is the caption of pictures that have
    no caption file. Name the folder above these, not one of them. A folder with pictures directly in it counts as one
    concept with 1 repeat.
    """

    reg_data_dir: str = setting(
        "",
        Show(
            "Regularisation folder",
            tab="basic",
            group="Pictures",
            widget="folder",
            place=3,
            also=("reg_dir", "regularization_dir", "class_data_dir"),
        ),
        resume="data",
        metadata=Entry("ss_reg_dataset_dirs", of_run=True),
        sd_scripts=There(""),
    )
    """Optional: a folder of folders N_class with pictures of the class in general, such as "1_dog".

    They keep the model from taking every dog for yours. They are repeated or cut to the number of training pictures,
    so they double the steps. Without them, repeats of 1 and more epochs come to the same.
    """

    resolution: str = setting(
        "512,512",
        Show("Resolution", tab="basic", group="Pictures", unit="pixels", place=10, also=("max_resolution",)),
        resume="data",
        metadata=Entry(write=size_of),
        sd_scripts=There(Absence.REQUIRED),
        parse=parse_resolution,
        rule='a size such as 512 or "512,768", each side from 64 to 4096',
    )
    """Size to train at, "width,height" or one number for a square. Larger pictures are scaled down.

    With buckets it is the area that counts, and pictures keep their shape. Stable Diffusion 1.5: 512,512, or 768,768
    for more detail at more than twice the time and memory.
    """

    enable_bucket: bool = setting(
        True, Show("Buckets", group="Buckets"), resume="data", metadata=OWN_NAME, sd_scripts=There(False)
    )
    """Sort pictures by shape into buckets instead of asking for one size.

    A picture is scaled to the nearest bucket and at most trimmed at its edges. Pictures of one batch come from one
    bucket, so rarely used shapes make short batches.
    """

    bucket_no_upscale: bool = setting(
        True,
        Show("Never enlarge pictures", group="Buckets", when={"enable_bucket": (True,)}),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(False),
    )
    """Leave pictures that are smaller than the resolution at their own size.

    Buckets are then made from the sizes found and the smallest and largest bucket size are not used. Off: small
    pictures are enlarged, and the LoRA learns their blur.
    """

    min_bucket_reso: int = setting(
        256,
        Show(
            "Smallest bucket side",
            group="Buckets",
            unit="pixels",
            when={"enable_bucket": (True,), "bucket_no_upscale": (False,)},
        ),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(256),
        ge=64,
        le=4096,
    )
    """The shortest side a bucket may have; rounded down to a multiple of the bucket step."""

    max_bucket_reso: int = setting(
        1024,
        Show(
            "Largest bucket side",
            group="Buckets",
            unit="pixels",
            when={"enable_bucket": (True,), "bucket_no_upscale": (False,)},
        ),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(1024),
        ge=64,
        le=8192,
    )
    """The longest side a bucket may have; rounded up to a multiple of the bucket step."""

    bucket_reso_steps: int = setting(
        64,
        Show("Bucket step", group="Buckets", unit="pixels", when={"enable_bucket": (True,)}),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There(64),
        ge=LATENT_STEP,
        le=1024,
        multiple_of=LATENT_STEP,
    )
    """Sides of buckets are multiples of this; 64 suits Stable Diffusion.

    A smaller step trims less off the pictures but spreads them over many buckets with a picture or two in each, which
    makes short batches.
    """

    flip_aug: bool = setting(
        False, Show("Mirror at random", group="Pictures"), resume="data", metadata=OWN_NAME, sd_scripts=There(False)
    )
    """Show each picture mirrored half of the time.

    Doubles a small set for free. Not for anything with a left and a right: parted hair, scars, writing, badges.
    """

    cache_latents: bool = setting(
        True, Show("Cache latents", group="Caching"), resume="rounding", metadata=OWN_NAME, sd_scripts=There(False)
    )
    """Run the VAE once over all pictures before training, and keep the results in memory.

    Saves the VAE's time and memory in every step. Mirrored copies are cached too.
    """

    cache_latents_to_disk: bool = setting(
        False,
        Show("Cache latents on disk", group="Caching", when={"cache_latents": (True,)}),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Keep the cached latents in files, to be used again by the next run.

    They are found by the content of the picture, so a changed picture is encoded anew. Safe to delete.
    """

    vae_batch_size: int = setting(
        1,
        Show("VAE batch size", group="Caching", unit="pictures"),
        resume="rounding",
        metadata=NO_ENTRY,
        sd_scripts=There(1),
        ge=1,
        le=256,
    )
    """How many pictures the VAE encodes at once while caching; more is faster and takes more memory."""

    prior_loss_weight: float = setting(
        1.0,
        Show("Weight of regularisation pictures", group="Pictures", when={"reg_data_dir": "*"}),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(1.0),
        ge=0,
        le=100,
    )
    """How much the loss of regularisation pictures counts; 1 is as much as training pictures, 0 nothing."""

    max_data_loader_n_workers: int = setting(
        0,
        Show("Loader processes", group="Caching"),
        resume="free",
        metadata=NO_ENTRY,
        sd_scripts=There(8, matters=False),
        ge=0,
        le=128,
    )
    """Processes that prepare batches beside the training; 0 prepares them in the training process.

    Worth it only when latents are not cached. Each takes memory of its own, most of all on Windows. The number
    changes nothing about the result.
    """


class CaptionsSection(Section):
    """The captions, and what is done to them each time they are read."""

    caption_extension: str = setting(
        ".txt",
        Show("Caption extension", group="Captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(".caption", once=("caption_extention",)),
        parse=parse_extension,
        min_length=2,
    )
    """How caption files end: picture.png has its caption in picture.txt.

    Where there is no such file, .caption is tried, then the words in the folder's name are used.
    """

    shuffle_caption: bool = setting(
        False, Show("Shuffle tags", group="Captions"), resume="learning", metadata=OWN_NAME, sd_scripts=There(False)
    )
    """Put the comma-separated tags of a caption in a new random order each time.

    Tags in front weigh more, so shuffling teaches all alike. For lists of tags, not for sentences. Keep the trigger
    word in front with the setting below.
    """

    keep_tokens: int = setting(
        0,
        Show("Tags kept in front", group="Captions", widget="slider"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(0),
        ge=0,
        le=255,
    )
    """The first so many tags stay in front: they are neither shuffled nor dropped.

    Set it to at least 1 when you shuffle, with the trigger word first in every caption. A caption prefix counts as a
    tag.
    """

    keep_tokens_separator: str = setting(
        "", Show("Mark of kept tags", group="Captions"), resume="learning", metadata=NO_ENTRY, sd_scripts=There("")
    )
    """A mark such as ||| in the captions: tags before it are kept in front, however many they are.

    A second mark in the same caption begins a part that is kept at the end. Takes the place of the number above in
    captions that hold it.
    """

    caption_separator: str = setting(
        ",",
        Show("Tag separator", group="Captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(","),
        min_length=1,
    )
    """What stands between the tags of a caption."""

    secondary_separator: str = setting(
        "", Show("Second separator", group="Captions"), resume="learning", metadata=NO_ENTRY, sd_scripts=There("")
    )
    """A mark such as ;;; that joins tags into one for shuffling and dropping; it becomes a tag separator afterwards."""

    caption_prefix: str = setting(
        "", Show("Caption prefix", group="Captions"), resume="learning", metadata=NO_ENTRY, sd_scripts=There("")
    )
    """Words put before every caption, with a space. Counts as a tag when tags are kept in front."""

    caption_suffix: str = setting(
        "", Show("Caption suffix", group="Captions"), resume="learning", metadata=NO_ENTRY, sd_scripts=There("")
    )
    """Words put after every caption, with a space. Shuffled and dropped like any tag."""

    caption_dropout_rate: float = setting(
        0.0,
        Show("Caption dropout", group="Caption dropout", widget="slider"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(0.0),
        ge=0,
        le=1,
    )
    """Chance that a picture is trained without any caption.

    Teaches the look itself, for styles; 0.05 to 0.1 is in use. Too much and the trigger word loses its power.
    """

    caption_dropout_every_n_epochs: int = setting(
        0,
        Show("Caption dropout every", group="Caption dropout", unit="epochs"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(0),
        ge=0,
        le=1_000_000,
    )
    """Train every so-manieth epoch without captions; 0 = never."""

    caption_tag_dropout_rate: float = setting(
        0.0,
        Show("Tag dropout", group="Caption dropout", widget="slider"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(0.0),
        ge=0,
        le=1,
    )
    """Chance that each single tag is left out; tags kept in front stay."""

    enable_wildcard: bool = setting(
        False,
        Show("Wildcards in captions", group="Captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Let a caption hold choices, {red|blue}, and several lines, one of which is taken at random each time.

    Write {{ and }} for braces that are meant as such.
    """

    token_warmup_min: int = setting(
        1,
        Show("Tags at the start", group="Captions", when={"token_warmup_step": "*"}),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(1),
        ge=1,
        le=1000,
    )
    """With a tag warm-up: how many tags are used in the first step, beside those kept in front."""

    token_warmup_step: int | float = setting(
        0,
        Show("Tag warm-up", group="Captions", unit="steps"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(0),
        parse=parse_steps_or_share,
        rule="0 for none, a whole number of steps, or a share of all steps below 1",
    )
    """Begin with few tags of each caption and add the others over so many steps; 0 = use all from the start.

    Below 1 it is a share of all steps.
    """


class TextSection(Section):
    """How captions become what the UNet is given."""

    cache_text_encoder_outputs: bool = setting(
        False,
        Show("Encode captions ahead", group="Encoding captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Encode all captions before training and free the text encoders, which saves much memory with SDXL.

    Only where the text encoders are not trained. Captions that are shuffled or lose tags at random are encoded in
    several variants, one of which each step sees.
    """

    cache_text_encoder_outputs_to_disk: bool = setting(
        False,
        Show("Keep encoded captions on disk", group="Encoding captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Encode captions ahead into files, to be used again by the next run. Takes no memory while training."""

    caption_variants: int = setting(
        8,
        Show("Variants of a caption", group="Encoding captions", when={"cache_text_encoder_outputs": (True,)}),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        ge=1,
        le=1000,
    )
    """In how many random variants each caption is encoded ahead, where it is shuffled or loses tags at random.

    More come nearer to a new variant in every step, and take more memory.
    """

    weighted_captions: bool = setting(
        False,
        Show("Weights in captions", group="Encoding captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Read (word:1.2) and (word) in captions as stronger, [word] as weaker, as prompts in web UIs are.

    A backslash before a bracket makes it a plain one. Off: brackets are read as they stand.
    """
