"""The sum that leads from pictures and repeats to the number of steps, with every difference as a term of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.config import batch_sizes
from trainer.pictures.counts import Counts
from trainer.pictures.report import DatasetReport, Folder
from trainer.planning.timetable import Timetable

MOST_TERMS = 2
"""Terms of images × repeats that are written out; of more, their sum."""


def sum_of_steps(report: DatasetReport, counts: Counts, timetable: Timetable) -> str:
    """Return the arithmetic in one line, which reaches `timetable.total_steps`.

    Images × repeats, with what regularisation adds or loses by being balanced, over the batch size; then the batches
    that are short because their bucket is, the batches of one step, and the epochs.
    """
    sizes = set(batch_sizes(timetable.config))
    words, samples = _samples(report, counts), counts.samples
    batch = min(sizes)
    if len(sizes) > 1:
        words = f"({words}) in {_number(counts.batches)} batches of {' and '.join(map(str, sorted(sizes)))}"
    elif batch > 1:
        words = f"({words})" if " + " in words or " − " in words else words
        words += f" ÷ {batch} a batch{_rounded(samples, batch)}"
    short = counts.batches - math.ceil(samples / batch)
    if short > 0 and len(sizes) == 1:
        words += f" + {_number(short)} short {'batch' if short == 1 else 'batches'} of buckets"
    per_step = timetable.accumulation * timetable.ranks
    if per_step > 1:
        words = f"({words})" if any(sign in words for sign in (" + ", " ÷ ", " in ")) else words
        words += f" ÷ {per_step} batches a step{_rounded(counts.batches, per_step)}"
    words += f" = {_number(timetable.steps_per_epoch)} an epoch"
    epochs = f"{_number(timetable.total_epochs)} {'epoch' if timetable.total_epochs == 1 else 'epochs'}"
    whole = timetable.steps_per_epoch * timetable.total_epochs
    cut = whole - timetable.total_steps
    words += f"; × {epochs}"
    if cut:
        words += f" − {_number(cut)} of the last one"
    return f"{words} = {_number(timetable.total_steps)} steps"


def _samples(report: DatasetReport, counts: Counts) -> str:
    words = _of(report.train_folders, report.train_count, "images × repeats", counts.train_samples)
    if report.reg_folders:
        words += f" + {_of(report.reg_folders, report.reg_count, 'regularisation', counts.reg_samples)}"
    return words


def _of(folders: Sequence[Folder], named: int, what: str, used: int) -> str:
    """Return what the folders' names come to, and what of it is left out or taken again."""
    terms = [f"{pictures} × {repeats}" for folder in folders for repeats, pictures in folder.repeated.items()]
    if len(terms) <= MOST_TERMS:
        words = f"{' + '.join(terms)} {what}"
    else:
        words = f"{_number(named)} {what}" + (f" in {len(folders)} folders" if len(folders) > 1 else "")
    if used < named:
        return f"{words} − {_number(named - used)} left out"
    return f"{words} + {_number(used - named)} taken again" if used > named else words


def _rounded(whole: int, part: int) -> str:
    return ", rounded up," if whole % part else ""


def _number(value: int) -> str:
    return f"{value:,}"
