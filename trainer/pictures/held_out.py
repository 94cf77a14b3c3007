"""Pictures that are not trained but judged by: a share of each folder, or a folder of their own.

Which ones is sd-scripts' choice for the same seed (`library/train_util.py` split_train_val): the folder's pictures are
shuffled, the first ceil(n (1 - share)) are trained. There a picture can be in both parts; here the rest is kept.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

from trainer.config import TrainingConfig
from trainer.ground.errors import ConfigError, DataError, Problem
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
    if not settings.validation_split:
        return report
    total = report.train_images
    if total < settings.validation_split_min_images:
        least = settings.validation_split_min_images
        return _noted(report, f"All {total} pictures are trained: with fewer than {least} none is kept for validation.")
    seed = config.training.seed if settings.validation_seed is None else settings.validation_seed
    parts = [_split(folder, settings.validation_split, seed) for folder in report.folders]
    kept = tuple(rest for _, rest in parts if rest.pictures)
    count = sum(len(folder.pictures) for folder in kept)
    if not count:
        share = f"validation_split {settings.validation_split:g}"
        return _noted(report, f"{share} keeps no picture for validation: in no folder does it come to a whole one.")
    parted = dataclasses.replace(report, folders=tuple(folder for folder, _ in parts), held_out=kept)
    return _noted(parted, f"{count} of {total} pictures are kept for validation and not trained.")


def _split(folder: Folder, share: float, seed: int) -> tuple[Folder, Folder]:
    """Return what is trained of a folder, and what is kept, each in the order of the names."""
    shuffled = list(folder.pictures)
    random.Random(seed).shuffle(shuffled)
    # 30 * (1 - 0.1) and the like must not come out a little above a whole number.
    trained = len(shuffled) if folder.regularisation else math.ceil(round(len(shuffled) * (1 - share), 6))
    kept = {id(picture) for picture in shuffled[max(1, trained) :]}
    ours = tuple(picture for picture in folder.pictures if id(picture) not in kept)
    rest = tuple(picture for picture in folder.pictures if id(picture) in kept)
    return dataclasses.replace(folder, pictures=ours), dataclasses.replace(folder, pictures=rest, repeats=1)


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
