"""`ss_datasets`: what a LoRA file says of several datasets, under sd-scripts' names. Names of folders, never paths."""

from __future__ import annotations

from trainer.config import Dataset, Subset, TrainingConfig, datasets_of, resolution_size
from trainer.pictures.counts import Counts, bucket_info
from trainer.pictures.report import DatasetReport, Folder, tag_frequency
from trainer.pictures.scan import split_name


def datasets_entry(config: TrainingConfig, report: DatasetReport, counts: Counts) -> list[dict[str, object]]:
    """Return an entry for each dataset, in order."""
    return [_dataset(number, each, report, counts) for number, each in enumerate(datasets_of(config))]


def public_name(folder: Folder) -> str:
    """Return a numbered folder's name; what a plain folder of pictures is called is nobody's business."""
    if split_name(folder.name):
        return folder.name
    number = f"_{folder.dataset + 1}.{folder.subset + 1}" if folder.place else ""
    return f"{folder.repeats}_pictures{number}"


def _dataset(number: int, dataset: Dataset, report: DatasetReport, counts: Counts) -> dict[str, object]:
    config = dataset.config
    mine = DatasetReport(tuple(folder for folder in report.folders if folder.dataset == number))
    all_lines = any(subset.config.captions.enable_wildcard for subset in dataset.subsets)
    buckets = config.dataset.enable_bucket
    return {
        "is_dreambooth": not any(subset.metadata_file for subset in dataset.subsets),
        "batch_size_per_device": config.training.train_batch_size,
        "num_train_images": mine.train_count,
        "num_reg_images": mine.reg_count,
        "resolution": list(resolution_size(config)),
        "enable_bucket": buckets,
        "min_bucket_reso": config.dataset.min_bucket_reso if buckets else None,
        "max_bucket_reso": config.dataset.max_bucket_reso if buckets else None,
        "tag_frequency": tag_frequency(mine, public_name, all_lines=all_lines),
        "bucket_info": bucket_info(counts, number) if buckets else None,
        "resize_interpolation": config.augmentation.resize_interpolation or None,
        "subsets": [_subset(folder, dataset.subsets[folder.subset]) for folder in mine.folders],
    }


def _subset(folder: Folder, subset: Subset) -> dict[str, object]:
    captions, changes = subset.config.captions, subset.config.augmentation
    entry: dict[str, object] = {
        "img_count": len(folder.pictures),
        "num_repeats": folder.repeats,
        "color_aug": changes.color_aug,
        "flip_aug": subset.config.dataset.flip_aug,
        "random_crop": changes.random_crop,
        "shuffle_caption": captions.shuffle_caption,
        "keep_tokens": captions.keep_tokens,
        "keep_tokens_separator": captions.keep_tokens_separator,
        "secondary_separator": captions.secondary_separator or None,
        "enable_wildcard": captions.enable_wildcard,
        "caption_prefix": captions.caption_prefix or None,
        "caption_suffix": captions.caption_suffix or None,
        "resize_interpolation": changes.resize_interpolation or None,
    }
    if subset.metadata_file:
        return {**entry, "metadata_file": "pictures"}
    return {
        **entry,
        "image_dir": public_name(folder),
        "class_tokens": subset.class_tokens or None,
        "is_reg": subset.is_reg,
    }
