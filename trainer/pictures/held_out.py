"""Pictures that are not trained but judged by: a share of each folder, or a folder of their own.

Which ones is sd-scripts' choice for the same seed (`library/train_util.py` split_train_val): the folder's pictures are
shuffled, the first ceil(n (1 - share)) are trained. There a picture can be in both parts; here the rest is kept. Each
dataset may say share and seed for itself. Of a list of pictures none is kept, as there.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

from trainer.config import TrainingConfig, datasets_of
from trainer.ground.errors import ConfigError, DataError, Problem
from trainer.pictures.findings import pictures
from trainer.pictures.report import DatasetReport, Folder

Look = Callable[[TrainingConfig], DatasetReport]
"""Scans the pictures that settings name."""

_OF_TRAINING, _OF_VALIDATION = "train_data_dir", "val_data_dir"


def with_held_out(report: DatasetReport, config: TrainingConfig, look: Look) -> DatasetReport:
    """Return the report with the pictures for validation, which are taken from the folders where no folder has them.

    Raises:
        ConfigError, DataError: the folder for validation cannot be used.
    """
    settings = config.validation
    if not settings.max_validation_share:
        return report
    if settings.val_data_dir:
        return dataclasses.replace(report, held_out=_folders_of_their_own(config, look))
    shares = _shares(report, config)
    if not any(share for share, _ in shares):
        return report
    total = report.train_images
    if total < settings.validation_split_min_images:
        least = settings.validation_split_min_images
        return _noted(report, f"All {total} pictures are trained: with fewer than {least} none is kept for validation.")
    parts = [_split(folder, *each) for folder, each in zip(report.folders, shares, strict=True)]
    parted = dataclasses.replace(report, folders=tuple(trained for trained, _ in parts))
    kept, both = _untrained([rest for _, rest in parts], parted)
    parted = _with_notices(dataclasses.replace(parted, held_out=kept), config, shares, both)
    count = sum(len(folder.pictures) for folder in kept)
    if not count:
        largest = max(share for share, _ in shares)
        words = f"validation_split {largest:g} keeps no picture for validation: in no folder does it come to one."
        return _noted(parted, words)
    return _noted(parted, f"{count} of {total} pictures are kept for validation and not trained.")


def _shares(report: DatasetReport, config: TrainingConfig) -> list[tuple[float, int]]:
    """Return (share, seed) of each folder, as its dataset says or else the run."""
    datasets = datasets_of(config)
    found = []
    for folder in report.folders:
        own = datasets[folder.dataset] if datasets else None
        listed = bool(own and own.subsets[folder.subset].metadata_file)
        said = own.config.validation if own else config.validation
        seed = config.training.seed if said.validation_seed is None else said.validation_seed
        found.append((0.0 if listed or folder.regularisation else said.validation_split, seed))
    return found


def _split(folder: Folder, share: float, seed: int) -> tuple[Folder, Folder]:
    """Return what is trained of a folder, and what is kept, each in the order of the names."""
    shuffled = list(folder.pictures)
    random.Random(seed).shuffle(shuffled)
    trained = max(1, math.ceil(len(shuffled) * (1 - share)))
    kept = {id(picture) for picture in shuffled[trained:]}
    ours = tuple(picture for picture in folder.pictures if id(picture) not in kept)
    rest = tuple(picture for picture in folder.pictures if id(picture) in kept)
    return dataclasses.replace(folder, pictures=ours), dataclasses.replace(folder, pictures=rest, repeats=1)


def _untrained(kept: Sequence[Folder], trained: DatasetReport) -> tuple[tuple[Folder, ...], int]:
    """Return what is kept without pictures that another dataset trains, and how many those are."""
    seen = {picture.path for folder in trained.folders for picture in folder.pictures}
    found = [
        dataclasses.replace(folder, pictures=tuple(each for each in folder.pictures if each.path not in seen))
        for folder in kept
    ]
    both = sum(len(folder.pictures) for folder in kept) - sum(len(folder.pictures) for folder in found)
    return tuple(folder for folder in found if folder.pictures), both


def _with_notices(
    report: DatasetReport, config: TrainingConfig, shares: Sequence[tuple[float, int]], both: int
) -> DatasetReport:
    """Say of which datasets nothing is kept though they ask for it, and of which pictures."""
    datasets = datasets_of(config)
    asked = [
        folder.place
        for folder, (share, _) in zip(report.folders, shares, strict=True)
        if datasets and not folder.regularisation and not share
        if datasets[folder.dataset].config.validation.validation_split
    ]
    if asked:
        places = ", ".join(dict.fromkeys(asked))
        report = _noted(report, f"{places}: all are trained, as of a list of pictures none is kept for validation.")
    if both:
        words = f"{pictures(both)} that one dataset keeps for validation and another one trains are not judged by."
        report = _noted(report, words)
    return report


def _folders_of_their_own(config: TrainingConfig, look: Look) -> tuple[Folder, ...]:
    dataset = config.dataset.model_copy(
        update={_OF_TRAINING: config.validation.val_data_dir, "reg_data_dir": "", "datasets": ()}
    )
    validation = config.validation.model_copy(update={_OF_VALIDATION: "", "validation_split": 0.0})
    try:
        found = look(dataclasses.replace(config, dataset=dataset, validation=validation))
    except ConfigError as error:
        raise ConfigError([_of_validation(problem) for problem in error.problems]) from None
    except DataError as error:
        message = error.message.replace(f"{_OF_TRAINING}:", f"{_OF_VALIDATION}:")
        raise DataError(message, error.remedy) from None
    return tuple(dataclasses.replace(folder, repeats=1) for folder in found.folders)


def _of_validation(problem: Problem) -> Problem:
    key = _OF_VALIDATION if problem.key == _OF_TRAINING else problem.key
    remedy = {_OF_VALIDATION if name == _OF_TRAINING else name: value for name, value in (problem.remedy or {}).items()}
    return dataclasses.replace(problem, key=key, remedy=remedy)


def _noted(report: DatasetReport, words: str) -> DatasetReport:
    return dataclasses.replace(report, notices=(*report.notices, words))
