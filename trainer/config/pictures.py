"""Settings of what goes in: the pictures, and what is changed in them."""

from __future__ import annotations

import math
from typing import Any, Literal

from trainer.config.values import parse_resolution, size_of
from trainer.families import FAMILIES
from trainer.settings.section import NO_ENTRY, OWN_NAME, Absence, Entry, Section, Show, There, setting

LATENT_STEP = math.gcd(*(family.latents.step for family in FAMILIES.values()))
"""Pixels that sides of pictures are multiples of, whatever the model; some families ask for more."""


Table = dict[str, Any]
"""A dataset as it is kept: its settings by key, and `subsets`, a list of such tables."""

WITHOUT_DATASETS: dict[str, tuple[object, ...] | str] = {"datasets": ((), [])}
"""In `Show.when`: settings that datasets take the place of."""


class DatasetSection(Section):
    """The pictures: folders, size, buckets, caching."""

    train_data_dir: str = setting(
        "",
        Show(
            "Picture folder",
            tab="basic",
            group="Pictures",
            widget="folder",
            when=WITHOUT_DATASETS,
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
            when=WITHOUT_DATASETS,
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

    datasets: tuple[Table, ...] = setting(
        (),
        Show("Datasets", tab="datasets", group="Datasets", widget="tables", also=("dataset_config", "subsets")),
        resume="data",
        metadata=NO_ENTRY,
        sd_scripts=There((), matters=False, name="dataset_config"),
        rule="a list of datasets, each a table with a list of subsets",
    )
    """Several folders with settings of their own, in place of the two folders above: sd-scripts' dataset_config.

    Each dataset has its own resolution, batch size and buckets; each of its subsets is a folder with its repeats, class
    tokens and caption options. What a subset leaves out is as its dataset says, and what that leaves out is as the
    run's settings say. In a file of settings they are [[datasets]] and [[datasets.subsets]], or dataset_config names a
    file that has them.
    """

    resolution: str = setting(
        "512,512",
        Show("Resolution", tab="basic", group="Pictures", unit="pixels", place=10, also=("max_resolution",)),
        resume="data",
        metadata=Entry(write=size_of),
        sd_scripts=There(Absence.REQUIRED),
        parse=parse_resolution,
        rule='a size such as 512 or "512,768", each side from 64 to 4096',
        within="dataset",
    )
    """Size to train at, "width,height" or one number for a square. Larger pictures are scaled down.

    With buckets it is the area that counts, and pictures keep their shape. Stable Diffusion 1.5: 512,512, or 768,768
    for more detail at more than twice the time and memory.
    """

    enable_bucket: bool = setting(
        True,
        Show("Buckets", group="Buckets"),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(False),
        within="dataset",
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
        within="dataset",
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
        within="dataset",
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
        within="dataset",
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
        within="dataset",
    )
    """Sides of buckets are multiples of this; 64 suits Stable Diffusion.

    A smaller step trims less off the pictures but spreads them over many buckets with a picture or two in each, which
    makes short batches.
    """

    flip_aug: bool = setting(
        False,
        Show("Mirror at random", group="Pictures"),
        resume="data",
        metadata=OWN_NAME,
        sd_scripts=There(False),
        within="subset",
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
        Show("Weight of regularisation pictures", group="Pictures"),
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


class AugmentationSection(Section):
    """What is changed in a picture each time that it is shown, and masks that say which parts of it count."""

    color_aug: bool = setting(
        False,
        Show("Change colours at random", group="Pictures"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(False),
        within="subset",
    )
    """Change hue or brightness of every third picture a little each time. Needs pictures that are not cached.

    Half of the changes turn the hue by up to 16 degrees, the others make the picture slightly lighter or darker. Not
    where the colours are to be learned.
    """

    random_crop: bool = setting(
        False,
        Show("Cut at random", group="Pictures"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(False),
        within="subset",
    )
    """Cut what is too much of a picture at random, not from both sides alike. Needs pictures that are not cached.

    Only pictures whose shape differs from their bucket's have anything to cut.
    """

    resize_interpolation: Literal["", "lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"] = (
        setting(
            "",
            Show("Scaling", group="Pictures"),
            resume="data",
            metadata=Entry(write=lambda value: value or None),
            sd_scripts=There(""),
            within="subset",
        )
    )
    """By what filter pictures are scaled to their bucket; empty is lanczos.

    linear is bilinear, cubic is bicubic, area is box. Where a picture is shrunk, each of them but nearest averages over
    all that falls on a pixel.
    """

    alpha_mask: bool = setting(
        False,
        Show("Transparency as mask", group="Masks"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
        within="subset",
    )
    """Let transparent parts of a picture count less in the loss, fully transparent ones not at all.

    Pictures without transparency count whole.
    """

    conditioning_data_dir: str = setting(
        "",
        Show("Mask folder", group="Masks", widget="folder", also=("mask_dir", "mask_path")),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(""),
        within="subset",
    )
    """A folder with a mask for each picture, under the picture's name: white counts in the loss, black does not.

    Grey counts in part. The mask is scaled and cut as its picture is; of colours the red channel is read. Goes before
    the transparency of pictures.
    """

    masked_loss: bool = setting(
        False,
        Show("Loss by masks", group="Masks", when={"conditioning_data_dir": "*"}),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Weight the loss by the masks in the mask folder. Transparency as mask works without this."""
