"""The dataset in numbers: for the plan, the advice, the page and the file's metadata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import TrainingConfig
from trainer.pictures.batches import Example
from trainer.pictures.buckets import Size
from trainer.pictures.report import DatasetReport

_NAMED = 5


@dataclass(frozen=True, slots=True)
class BucketCount:
    """One bucket: its size, its pictures, its samples (repeats included) and its batches in an epoch."""

    resolution: Size
    images: int
    samples: int
    batches: int


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of a dataset.

    `train_images` and `reg_images` count the pictures that take part. `train_samples` and `reg_samples` count them
    with their repeats, as trained in an epoch. `unused_reg_images` were left out as surplus.
    `mean_ar_error` is the mean |bucket width/height - picture width/height| over pictures.
    """

    train_images: int
    reg_images: int
    unused_reg_images: int
    train_samples: int
    reg_samples: int
    batches: int
    buckets: tuple[BucketCount, ...]
    mean_ar_error: float
    notices: tuple[str, ...]

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        return self.train_samples + self.reg_samples


def count(report: DatasetReport, examples: Sequence[Example], config: TrainingConfig) -> Counts:
    """Return the numbers of `examples`, which were made from `report`."""
    training = [example for example in examples if not example.regularisation]
    regularising = [example for example in examples if example.regularisation]
    buckets = bucket_counts(examples, config.training.train_batch_size)
    return Counts(
        train_images=len(training),
        reg_images=len(regularising),
        unused_reg_images=report.reg_images - len(regularising),
        train_samples=sum(example.repeats for example in training),
        reg_samples=sum(example.repeats for example in regularising),
        batches=sum(bucket.batches for bucket in buckets),
        buckets=buckets,
        mean_ar_error=sum(abs(example.placement.ar_error) for example in examples) / max(1, len(examples)),
        notices=tuple(_notices(report, examples, config)),
    )


def bucket_counts(examples: Sequence[Example], batch_size: int) -> tuple[BucketCount, ...]:
    """Return the buckets in use, in order of their size."""
    members: dict[Size, list[int]] = {}
    for example in examples:
        members.setdefault(example.bucket, []).append(example.repeats)
    return tuple(
        BucketCount(resolution, len(repeats), sum(repeats), math.ceil(sum(repeats) / batch_size))
        for resolution, repeats in sorted(members.items())
    )


def bucket_info(counts: Counts) -> dict[str, object]:
    """Return `ss_bucket_info` as sd-scripts writes it with buckets enabled."""
    return {
        "buckets": {
            str(index): {"resolution": list(bucket.resolution), "count": bucket.samples}
            for index, bucket in enumerate(counts.buckets)
        },
        "mean_img_ar_error": counts.mean_ar_error,
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
    used = sum(example.regularisation for example in examples)
    if used < report.reg_images:
        notices.append(
            f"Only {used} of {report.reg_images} regularisation pictures are used: together they reach the number of "
            f"training pictures with repeats ({report.train_count})."
        )
    return notices


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
