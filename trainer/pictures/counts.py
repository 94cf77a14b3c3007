"""The dataset in numbers: for the plan, the advice, the page and the file's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.config import TrainingConfig, batch_sizes
from trainer.pictures.batches import Example
from trainer.pictures.buckets import Size
from trainer.pictures.report import DatasetReport

_NAMED = 5


@dataclass(frozen=True, slots=True)
class BucketCount:
    """One bucket of a dataset: its size, its pictures, its samples (repeats included) and its batches in an epoch."""

    resolution: Size
    images: int
    samples: int
    batches: int
    dataset: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of a dataset.

    `train_images` and `reg_images` count the pictures that take part. `train_samples` and `reg_samples` count them
    with their repeats, as trained in an epoch. `unused_reg_images` were left out as surplus.
    `ar_errors` is the mean |bucket width/height - picture width/height| over the pictures of each dataset.
    """

    train_images: int
    reg_images: int
    unused_reg_images: int
    train_samples: int
    reg_samples: int
    batches: int
    buckets: tuple[BucketCount, ...]
    ar_errors: Mapping[int, float]
    notices: tuple[str, ...]

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        return self.train_samples + self.reg_samples


def count(report: DatasetReport, examples: Sequence[Example], config: TrainingConfig) -> Counts:
    """Return the numbers of `examples`, which were made from `report`."""
    training = [example for example in examples if not example.regularisation]
    regularising = [example for example in examples if example.regularisation]
    buckets = bucket_counts(examples, batch_sizes(config))
    return Counts(
        train_images=len(training),
        reg_images=len(regularising),
        unused_reg_images=report.reg_images - len(regularising),
        train_samples=sum(example.repeats for example in training),
        reg_samples=sum(example.repeats for example in regularising),
        batches=sum(bucket.batches for bucket in buckets),
        buckets=buckets,
        ar_errors=_ar_errors(examples),
        notices=tuple(_notices(report, examples, config)),
    )


def _ar_errors(examples: Sequence[Example]) -> dict[int, float]:
    errors: dict[int, list[float]] = {}
    for example in examples:
        errors.setdefault(example.dataset, []).append(abs(example.placement.ar_error))
    return {dataset: sum(each) / len(each) for dataset, each in errors.items()}


def bucket_counts(examples: Sequence[Example], sizes: Sequence[int]) -> tuple[BucketCount, ...]:
    """Return the buckets in use, dataset by dataset, in order of their size; `sizes` are the datasets' batch sizes."""
    members: dict[tuple[int, Size], list[int]] = {}
    for example in examples:
        members.setdefault((example.dataset, example.bucket), []).append(example.repeats)
    return tuple(
        BucketCount(resolution, len(repeats), sum(repeats), math.ceil(sum(repeats) / sizes[dataset]), dataset)
        for (dataset, resolution), repeats in sorted(members.items())
    )


def bucket_info(counts: Counts, dataset: int = 0) -> dict[str, object]:
    """Return `ss_bucket_info` of a dataset as sd-scripts writes it with buckets enabled."""
    mine = [bucket for bucket in counts.buckets if bucket.dataset == dataset]
    return {
        "buckets": {
            str(index): {"resolution": list(bucket.resolution), "count": bucket.samples}
            for index, bucket in enumerate(mine)
        },
        "mean_img_ar_error": counts.ar_errors.get(dataset, 0.0),
    }


def _notices(report: DatasetReport, examples: Sequence[Example], config: TrainingConfig) -> list[str]:
    """Return what the user should know about how the pictures are used."""
    notices = []
    enlarged = [example.picture.name for example in examples if example.placement.upscaled]
    if enlarged:
        dataset = config.dataset
        if dataset.enable_bucket and dataset.bucket_no_upscale:
            why = f"smaller than one bucket step ({dataset.bucket_reso_steps} pixels) and are scaled up to it"
        else:
            why = "smaller than the size they are trained at and are scaled up"
        notices.append(f"{len(enlarged)} of {len(examples)} pictures are {why}: {_listed(enlarged)}.")
    return [*notices, *_unused_regularisation(report, examples)]


def _unused_regularisation(report: DatasetReport, examples: Sequence[Example]) -> Iterator[str]:
    """Yield for each dataset how many of its regularisation pictures are used, where not all are."""
    for number in dict.fromkeys(folder.dataset for folder in report.folders):
        mine = [folder for folder in report.folders if folder.dataset == number]
        images = sum(len(folder.pictures) for folder in mine if folder.regularisation)
        used = sum(example.regularisation for example in examples if example.dataset == number)
        if used < images:
            place = f"{mine[0].place.partition(',')[0].capitalize()}: only" if mine[0].place else "Only"
            count = sum(folder.count for folder in mine if not folder.regularisation)
            yield (
                f"{place} {used} of {images} regularisation pictures are used: together they reach the number of "
                f"training pictures with repeats ({count})."
            )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
